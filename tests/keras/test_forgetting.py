"""What TensorFlow's network knew is kept by a method, and lost by fine-tuning: the contract's rule."""

import statistics

import pytest
import torch
from tensorflow_beside import digits

from perdure import Learner, Task, methods
from perdure.checkpoint import clone
from perdure.integrations import keras as bridge

pytest_plugins = ["tensorflow_beside"]
pytestmark = pytest.mark.keras
torch.set_num_threads(1)

SEEDS = range(5)
OLD = (0, 1, 2, 3, 4)


def scaled(which, rows, part="train"):
    images, labels = digits(which, rows, part)
    return images / 255, labels


def emptied(method):
    """A mutant: all that it kept is gone when the new task begins."""
    blank, begin = clone(method.state()), method.begin

    def forget(host, task):
        if task is not None and task.name == "new":
            method.load_state(clone(blank))
        begin(host, task)

    method.begin = forget
    return method


def untaught(method):
    """A mutant: the teacher's scores do not count."""
    method.strength = 0.0
    return method


MAKE = {
    "fine-tuning": methods.Finetune,
    "replay, 200 rows": lambda: methods.Replay(200),
    "LwF, no rows": methods.LwF,
    "replay, emptied": lambda: emptied(methods.Replay(200)),
    "LwF, strength 0": lambda: untaught(methods.LwF()),
}


def accuracies(folder, make):
    """The accuracy on test rows of the old digits after two new ones were learnt, a seed each; and on the new."""
    old, new = [], []
    for seed in SEEDS:
        network = bridge.load(folder / "convolutional.keras", OLD)
        learner = Learner(network, make(), scenario="class", batch_size=32, epochs=2, seed=seed)
        learner.consolidate(scaled(OLD, 200))
        learner.learn(Task(scaled((7, 9), 600), name="new"))
        for which, found in ((OLD, old), ((7, 9), new)):
            images, labels = scaled(which, 500, "test")
            found.append(float((learner.predict(images) == torch.tensor(labels)).double().mean()))
    return old, new


def beats(found, plain):
    """Paired differences whose mean is above three standard errors."""
    apart = [a - b for a, b in zip(found, plain, strict=True)]
    error = statistics.stdev(apart) / len(apart) ** 0.5
    return statistics.mean(apart) > 3 * error


def test_a_method_keeps_what_tensorflow_taught_and_a_broken_one_does_not(saved, measured):
    images, labels = scaled(OLD, 500, "test")
    with torch.no_grad():
        answers = bridge.load(saved / "convolutional.keras", OLD).eval()(images).argmax(1)
    measured(f"before            old digits {100 * float((answers == torch.tensor(labels)).double().mean()):.1f} %")
    old = {}
    for name, make in MAKE.items():
        old[name], new = accuracies(saved, make)
        spread = f"{100 * statistics.mean(old[name]):5.1f} ± {100 * statistics.stdev(old[name]):.1f} (sd, 5 seeds)"
        measured(f"{name:17} old digits {spread} %, new digits {100 * statistics.mean(new):.1f} %")
        assert statistics.mean(new) > 0.7, "what learns nothing forgets nothing"
    kept = [name for name in MAKE if beats(old[name], old["fine-tuning"])]
    assert kept == ["replay, 200 rows", "LwF, no rows"]
