"""TensorFlow saves in one process, Perdure teaches in this one, TensorFlow loads and predicts in a third."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import torch
from tensorflow_beside import digits

from perdure import Learner, Task, methods
from perdure.answers import convert
from perdure.integrations import keras as bridge

pytest_plugins = ["tensorflow_beside"]
pytestmark = pytest.mark.keras
torch.set_num_threads(1)

CLOSE = 1e-5
CPU = torch.device("cpu")
CLASSES = {
    "convolutional": [0, 1, 2, 3, 4],
    "dense": ["red", "green", "blue"],
    "binary": ["no", "yes"],
    "text": ["bad", "good"],
    "recurrent": ["down", "up"],
}
every_kind = pytest.mark.parametrize("kind", CLASSES)


def probes(folder, kind):
    """Rows that TensorFlow was asked, ready for the network; their labels; what it answered."""
    found = dict(np.load(folder / f"{kind}.npz"))
    y, answers = torch.from_numpy(found.pop("y")), torch.from_numpy(found.pop("answers"))
    x = {name: torch.from_numpy(part) for name, part in found.items()}
    return x.get("x", x), y, answers


def news(kind, x):
    """A task of two new classes, of rows of the same kind."""
    draws = torch.Generator().manual_seed(5)
    if kind == "convolutional":
        images, labels = digits((7, 9), 600)
        return Task((images / 255, labels), name="new")
    y = ["fifth", "sixth"] * 100
    sign = torch.tensor([2.0, -2.0] * 100)
    if kind == "text":
        tokens = torch.randint(1, 50, (200, 9), generator=draws)
        return Task((torch.where(sign[:, None] > 0, tokens // 5 * 5, tokens // 5 * 5 + 1), y), name="new")
    if isinstance(x, dict):
        x = {name: torch.randn(200, *part.shape[1:], generator=draws) + sign[:, None] for name, part in x.items()}
        return Task((x, y), name="new")
    x = torch.randn(200, *x.shape[1:], generator=draws)
    return Task((x + sign.view(-1, *[1] * (x.ndim - 1)), y), name="new")


def taught(folder, kind, method=None, epochs=2):
    """A learner that TensorFlow's model began and that has learnt two classes more."""
    x, y, _ = probes(folder, kind)
    network = bridge.load(folder / f"{kind}.keras", CLASSES[kind])
    learner = Learner(network, method or methods.Replay(200), scenario="class", batch_size=32, epochs=epochs)
    learner.consolidate((x, [CLASSES[kind][label] for label in y]))
    task = news(kind, x)
    learner.learn(task)
    return learner, x, task.train.read(torch.arange(100))


@every_kind
def test_the_network_answers_as_tensorflow_did(saved, measured, kind):
    x, _, answers = probes(saved, kind)
    network = bridge.load(saved / f"{kind}.keras", CLASSES[kind]).eval()
    with torch.no_grad():
        scores = network(convert(x, CPU))
        found = scores if kind == "text" else scores.softmax(1)
    wanted = torch.cat([1 - answers, answers], 1) if kind == "binary" else answers
    apart = float((found - wanted).abs().max())
    measured(f"{kind:14} as TensorFlow saved it and as Perdure loads it: {apart:.1e} apart at most")
    assert found.shape == wanted.shape and apart <= CLOSE


@every_kind
def test_what_was_learnt_goes_back_to_tensorflow_with_equal_predictions(
    saved, tmp_path, measured, answers_of_tensorflow, kind
):
    learner, old, new = taught(saved, kind)
    path = tmp_path / "taught.keras"
    columns = bridge.save(learner, path)
    assert columns == learner.classes == [*CLASSES[kind], *([7, 9] if kind == "convolutional" else ["fifth", "sixth"])]
    assert json.loads((tmp_path / "taught.classes.json").read_text())["columns"] == columns
    apart = 0.0
    for x in (old, new):
        found = answers_of_tensorflow(path, convert(x, CPU))
        wanted = learner.predict_proba(x)
        assert found.shape == wanted.shape == (len(found), len(columns))
        apart = max(apart, float(((found.softmax(1) if kind == "text" else found) - wanted).abs().max()))
    measured(f"{kind:14} as Perdure taught it and as TensorFlow loads it: {apart:.1e} apart at most")
    assert apart <= CLOSE
    start = dict(bridge.load(saved / f"{kind}.keras", CLASSES[kind]).body.named_parameters())
    moved = max(float((p - start[name]).detach().abs().max()) for name, p in learner.model.body.named_parameters())
    assert moved > 1e-3, "nothing was learnt below the head, so that equality would say nothing"


def test_a_file_that_went_back_is_taken_up_again_with_its_classes(saved, tmp_path, answers_of_tensorflow):
    learner, x, _ = taught(saved, "convolutional")
    bridge.save(learner, tmp_path / "march.keras")
    again = Learner(bridge.load(tmp_path / "march.keras"), methods.LwF(), scenario="class")
    assert again.classes == learner.classes
    torch.testing.assert_close(again.predict_proba(x), learner.predict_proba(x), rtol=0, atol=1e-6)
    images, labels = digits((5, 6), 200)
    again.learn(Task((images / 255, labels), name="more"))
    assert bridge.save(again, tmp_path / "april.keras") == [0, 1, 2, 3, 4, 7, 9, 5, 6]
    assert answers_of_tensorflow(tmp_path / "april.keras", convert(x[:3], CPU)).shape == (3, 9)


def test_a_head_of_several_blocks_becomes_one_dense(saved, tmp_path, answers_of_tensorflow):
    x, _, _ = probes(saved, "binary")
    network = bridge.load(saved / "binary.keras", CLASSES["binary"])
    learner = Learner(network, methods.Finetune(), scenario="class", batch_size=40)
    learner.learn(Task((x, [f"label {row % 40}" for row in range(200)]), name="many"))
    assert len(network.head.weights) > 2
    bridge.save(learner, tmp_path / "many.keras")
    found = answers_of_tensorflow(tmp_path / "many.keras", x)
    assert found.shape == (200, 42)
    torch.testing.assert_close(found, learner.predict_proba(x), rtol=0, atol=CLOSE)
    layers = keras.saving.load_model(tmp_path / "many.keras").layers
    assert [type(layer).__name__ for layer in layers] == ["InputLayer", "Dense", "Dropout", "Dense"]


def test_with_a_head_a_task_each_column_says_of_which_task_it_is(saved, tmp_path, answers_of_tensorflow):
    x, y, _ = probes(saved, "binary")
    network = bridge.load(saved / "binary.keras", CLASSES["binary"])
    learner = Learner(network, methods.EWC(), scenario="task", batch_size=40)
    learner.learn(Task((x, y.tolist()), name="march"))
    columns = bridge.save(learner, tmp_path / "tasks.keras")
    assert columns == [["pretrained", "no"], ["pretrained", "yes"], ["march", 0], ["march", 1]]
    found = answers_of_tensorflow(tmp_path / "tasks.keras", x)[:, 2:]
    torch.testing.assert_close(
        found / found.sum(1, keepdim=True), learner.predict_proba(x, "march"), rtol=0, atol=CLOSE
    )


def test_several_labels_a_row_come_back_as_sigmoids(saved, tmp_path, answers_of_tensorflow):
    x, _, _ = probes(saved, "binary")
    network = bridge.adapt(keras.saving.load_model(saved / "binary.keras"))
    learner = Learner(network, methods.EWC(), scenario="class", objective="multi-label", batch_size=40)
    learner.learn(Task((x, (x[:, :3] > 0).float().numpy()), name="three"))
    bridge.save(learner, tmp_path / "labels.keras")
    found = answers_of_tensorflow(tmp_path / "labels.keras", x)
    assert found.shape == (200, 3)
    torch.testing.assert_close(found, learner.predict_proba(x), rtol=0, atol=CLOSE)


# ---- the page and the example ----

ROOT = Path(__file__).parents[2]


def test_the_lines_of_the_page_run(saved, tmp_path, monkeypatch, answers_of_tensorflow):
    page = (ROOT / "docs" / "keras.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    shutil.copy(saved / "binary.keras", tmp_path / "pets.keras")
    monkeypatch.chdir(tmp_path)
    images = torch.randn(60, 12, generator=torch.Generator().manual_seed(0))
    names = {"images": images, "labels": ["fox", "owl"] * 30}
    exec(compile(block, "docs/keras.md", "exec"), names)
    assert names["learner"].classes == ["cat", "dog", "fox", "owl"]
    found = answers_of_tensorflow(tmp_path / "march.keras", images)
    torch.testing.assert_close(found, names["learner"].predict_proba(images), rtol=0, atol=CLOSE)


def test_the_example_runs_in_small_form(tmp_path, answers_of_tensorflow):
    script = ROOT / "examples" / "keras_digits.py"
    assert len(script.read_text().splitlines()) <= 60
    done = subprocess.run([sys.executable, script, tmp_path, "300"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout.splitlines()
    assert said[-2] == "columns of ten.keras: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"
    assert float(said[-1].split()[-1]) <= CLOSE
    images, labels = digits(tuple(range(10)), 500, "test")
    right = answers_of_tensorflow(tmp_path / "ten.keras", images / 255).argmax(1) == torch.tensor(labels)
    assert right.double().mean() > 0.2, "no better than the last two digits alone, which fine-tuning would know"
