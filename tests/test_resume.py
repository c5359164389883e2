"""Stopped anywhere and begun again equals never stopped, bit for bit; what fails leaves the last save point."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import blobs, small_stream
from torch import Tensor
from trees import differences, snapshot, stored

from perdure import Callback, Learner, Rows, Task, methods, models, streams

STREAM = small_stream(tasks=2, rows=40)


def jitter(x: Tensor, draws: torch.Generator) -> Tensor:
    return x + 0.1 * torch.randn(x.shape, generator=draws)


def made(callbacks: Any = (), **changes: Any) -> Learner:
    """A learner with everything that could go astray: chance, moments, statistics, memories, a schedule, patience."""
    settings = {
        "method": lambda: methods.LwF(0.5) + methods.EWC(2.0, rows=30, fisher="sampled") + methods.Replay(20),
        "model": lambda: models.mlp(12, (10, 8), dropout=0.3, norm=True),
        "scenario": "class",
        "epochs": 2,
        "batch_size": 8,
        "augment": jitter,
        "save_every": 1e9,
    } | changes
    return Learner(settings.pop("model")(), settings.pop("method")(), callbacks=callbacks, **settings)


class Stop(Callback):
    """Raises after the given step of all, once."""

    def __init__(self, step: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.step, self.error = step, error

    def after_step(self, learner: Learner) -> None:
        if learner.clock.step == self.step:
            self.step = -1
            raise self.error("stopped")


def learnt(learner: Learner, stream: Any = STREAM) -> dict[str, Any]:
    for task in stream[learner.clock.task :]:
        learner.learn(task)
    return snapshot(learner)


# ---- save points inside a task ----

KINDS: dict[str, dict[str, Any]] = {
    "adam": {},
    "momentum": {"optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True}, "schedule": "linear"},
    "adamw": {"optimizer": {"name": "adamw", "weight_decay": 0.1}, "schedule": {"name": "cosine", "warmup": 3}},
    "trainer": {"accumulate": 2, "batch_size": 5, "clip": 0.5, "validation": 0.2, "patience": 1, "epochs": 5},
    "bf16": {"precision": "bf16", "schedule": {"name": "exponential", "decay": 0.99, "restart": False}},
    "joint": {"method": methods.Joint, "scenario": "task"},
    "mas": {
        "method": lambda: methods.MAS(rows=20) + methods.Replay("3 kB", policy="ring"),
        "scenario": "task",
        "heads": "shared",
    },
    "convnet": {
        "method": lambda: methods.Replay(20, policy="balanced"),
        "model": lambda: models.convnet((1, 4, 3), (4,)),
        "augment": None,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_killed_inside_a_task_and_resumed_from_the_file_equals_never_stopped(kind, tmp_path):
    settings, stream = KINDS[kind], STREAM
    if kind == "convnet":
        images = [[rows.map(lambda x: x.view(-1, 1, 4, 3)) for rows in (t.train, t.test)] for t in STREAM]
        stream = [Task(train, test, name=t.name) for (train, test), t in zip(images, STREAM, strict=True)]
    unbroken = made(**settings)
    truth, steps = learnt(unbroken, stream), unbroken.clock.step
    for step in (2, steps // 2 + 2, steps):
        file = tmp_path / f"{kind}{step}"
        learner = made([Stop(step)], save_to=file, save_every=0.0, **settings)
        with pytest.raises(KeyboardInterrupt):
            learnt(learner, stream)
        assert differences(snapshot(learner), stored(file)) == [], "in memory too it is back at the save point"
        learner = Learner.load(file, augment=settings.get("augment", jitter), save_every=1e9)
        assert learner.clock.step == step - 1
        assert differences(truth, learnt(learner, stream)) == [], f"after step {step} of {steps}"


def test_stopped_again_and_again_it_still_ends_the_same(tmp_path):
    truth = learnt(made())
    file = tmp_path / "file"
    learner = made([Stop(2)], save_to=file, save_every=0.0)
    stops = 0
    while learner.clock.task < len(STREAM):
        try:
            learnt(learner)
        except KeyboardInterrupt:
            stops += 1
            step = learner.clock.step + 4
            learner = Learner.load(file, augment=jitter, callbacks=[Stop(step)], save_to=file, save_every=0.0)
    assert stops >= 6
    assert differences(truth, snapshot(learner)) == []
    assert differences(truth, stored(file)) == []


def test_the_file_at_a_tasks_end_is_the_same_as_what_save_writes(tmp_path):
    learner = made(save_to=tmp_path / "point")
    learner.learn(STREAM[0])
    learner.save(tmp_path / "saved")
    assert differences(stored(tmp_path / "point"), stored(tmp_path / "saved")) == []


def test_without_save_every_a_save_point_is_written_at_task_ends_only(tmp_path):
    file, seen = tmp_path / "file", []

    class Look(Callback):
        def after_step(self, learner: Learner) -> None:
            seen.append(stored(file)["clock"]["task"] if file.exists() else None)

    learnt(made([Look()], save_to=file))
    assert set(seen) == {None, 1}
    assert stored(file)["clock"]["task"] == 2


# ---- one process or five ----

FIVE = streams.Stream([Task(blobs((i, (3 * i + 1) % 6), 50, i), blobs((i,), 20, i), name=f"t{i}") for i in range(5)])
CHILDREN = """
import os, sys, torch
import torch._dynamo  # what every optimizer imports when it is made: here once for all
from pathlib import Path
from test_resume import FIVE, Learner, jitter, made
torch.set_num_threads(1)
file = Path(sys.argv[1])
for task in FIVE:
    child = os.fork()
    if child == 0:
        learner = Learner.load(file, augment=jitter) if file.exists() else made(validation=0.2, clip=1.0)
        learner.learn(task)
        learner.save(file)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_tasks_learnt_in_five_processes_equal_one_process_bit_for_bit(tmp_path):
    truth = learnt(made(validation=0.2, clip=1.0), FIVE)
    words = [sys.executable, "-c", CHILDREN, str(tmp_path / "file")]
    environment = {**os.environ, "PYTHONHASHSEED": "12"}
    subprocess.run(words, check=True, cwd=Path(__file__).parent, env=environment, timeout=300)
    found = stored(tmp_path / "file")
    assert found["clock"]["task"] == 5
    assert differences(truth, found) == []


# ---- exceptions ----


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt], ids=lambda e: e.__name__)
@pytest.mark.parametrize("step", [1, 9, 12])
def test_an_exception_leaves_the_last_save_point_and_learning_again_equals_never_interrupted(step, error):
    truth = learnt(made())
    stop = Stop(step, error)
    learner = made([stop])
    before = snapshot(learner)
    with pytest.raises(error):
        for task in STREAM:
            learner.learn(task)
            before = snapshot(learner)
    assert differences(before, snapshot(learner)) == []
    assert learner.clock.task == (step > 10)
    assert differences(truth, learnt(learner)) == []


@pytest.mark.parametrize("moment", ["begin", "replay", "penalty", "project", "after_step", "end"])
def test_an_exception_in_any_hook_of_the_method_is_undone(moment, monkeypatch):
    truth = learnt(made())
    learner = made()
    learner.learn(STREAM[0])
    before = snapshot(learner)

    def fail(*_: object) -> None:
        raise MemoryError("no more")

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(learner.method.parts[2], moment, fail)
        learner.learn(STREAM[1])
    assert differences(before, snapshot(learner)) == []
    assert differences(truth, learnt(learner)) == []


@pytest.mark.parametrize("moment", ["before_task", "after_epoch", "after_task"])
def test_an_exception_in_a_callback_is_undone(moment):
    truth = learnt(made())
    learner = made()
    learner.learn(STREAM[0])
    before = snapshot(learner)
    broken = Callback()

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    setattr(broken, moment, fail)
    learner.callbacks.append(broken)
    with pytest.raises(ZeroDivisionError):
        learner.learn(STREAM[1])
    learner.callbacks.remove(broken)
    assert differences(before, snapshot(learner)) == []
    assert differences(truth, learnt(learner)) == []


def test_growth_of_the_head_into_a_new_block_is_undone():
    tasks = [Task(blobs(tuple(range(i, i + 12)), 48, i), name=f"t{i}") for i in (0, 12)]
    truth = learnt(made(), tasks)
    learner = made([Stop(15)])
    learner.learn(tasks[0])
    parameters = list(learner.model.parameters())
    assert learner.clock.step == 12
    with pytest.raises(KeyboardInterrupt):
        learner.learn(tasks[1])
    assert (learner.model.head.columns, learner.model.head.capacity) == (12, 16)
    now = list(learner.model.parameters())
    assert [id(p) for p in now] == [id(p) for p in parameters], "the same objects"
    assert {id(p) for g in learner.optimizer.param_groups for p in g["params"]} == {id(p) for p in parameters}
    assert set(learner.optimizer.state) == set(parameters)
    assert learner.classes == list(range(12))
    assert differences(truth, learnt(learner, tasks)) == []
    assert learner.model.head.capacity == 32


# ---- a task that is open ----


def stopped_inside(step: int = 5, **settings: Any) -> Learner:
    learner = made([Stop(step)], save_every=0.0, **settings)
    with pytest.raises(KeyboardInterrupt):
        learner.learn(STREAM[0])
    return learner


def test_another_task_is_refused_by_name_while_one_is_open():
    learner = stopped_inside()
    before = snapshot(learner)
    other_rows = Task(blobs((0, 1), 40, 9), name="task 0")
    for task in (STREAM[1], other_rows):
        with pytest.raises(RuntimeError, match=r"'task 0' stands at epoch 0, batch 4; .* or call learner.abandon"):
            learner.learn(task)
    with pytest.raises(RuntimeError, match="'task 0' is open"):
        learner.consolidate(STREAM[0].train, "task 0")
    assert differences(before, snapshot(learner)) == []
    assert differences(learnt(made()), learnt(learner)) == []


def test_abandon_gives_the_task_up_and_keeps_what_was_learnt_so_far():
    learner = stopped_inside(validation=0.2, patience=1)
    weights = snapshot(learner)["weights"]
    learner.abandon()
    assert differences(weights, snapshot(learner)["weights"]) == []
    assert not learner.clock.begun
    assert learner.classes == [0, 1]
    learner.learn(STREAM[1])
    assert learner.clock.task == 1
    assert learner.classes == [0, 1, 2, 3]
    learner.learn(STREAM[0])
    assert learner.clock.task == 2


# ---- what is not finite ----

EXPLODES = {"optimizer": {"name": "sgd", "lr": 1e30}, "augment": None, "method": methods.Finetune}
LONG = Task(blobs((0, 1), 200, 0), name="long")


def test_a_loss_that_is_not_finite_ends_the_task_within_100_steps():
    steps = []

    class Count(Callback):
        def after_step(self, learner: Learner) -> None:
            steps.append(learner.clock.step)

    learner = made([Count()], **EXPLODES, epochs=20)
    before = snapshot(learner)
    with pytest.raises(FloatingPointError, match=r"'long'.*lower the learning rate, or set clip"):
        learner.learn(LONG)
    assert max(steps) < 100 < 20 * 25
    assert differences(before, snapshot(learner)) == []
    learner.optimizer.param_groups[0]["initial_lr"] = learner.optimizer.param_groups[0]["lr"] = 0.01
    learner.learn(LONG)
    assert all(p.isfinite().all() for p in learner.model.parameters())


def test_no_save_point_is_written_of_a_state_that_is_not_finite(tmp_path):
    file = tmp_path / "file"
    learner = made(save_to=file, save_every=0.0, **(EXPLODES | {"optimizer": {"name": "sgd", "lr": 0.01}}))
    learner.learn(Task(blobs((0, 1), 50, 1), name="short"))

    class Explode(Callback):
        def after_step(self, learner: Learner) -> None:
            if learner.clock.step == 20:
                learner.optimizer.param_groups[0]["lr"] = 1e30

    learner.callbacks.append(Explode())
    with pytest.raises(FloatingPointError):
        learner.learn(LONG)
    found = stored(file)
    assert 19 <= found["clock"]["step"] <= 21
    assert all(tensor.isfinite().all() for tensor in found["weights"].values())
    assert differences(found, snapshot(learner)) == []


def test_weights_that_explode_in_the_very_last_step_are_noticed(tmp_path):
    settings = EXPLODES | {"model": lambda: models.mlp(12, (4,)), "optimizer": {"name": "sgd", "lr": 1e38}}
    losses = []

    class Look(Callback):
        def after_step(self, learner: Learner) -> None:
            losses.append(learner.loss.isfinite().item())

    learner = made([Look()], **settings | {"epochs": 1, "save_to": tmp_path / "file"})
    before = snapshot(learner)
    with pytest.raises(FloatingPointError, match="in task number 1, by step 1"):
        learner.learn(Task(Rows(1e4 * torch.eye(12)[:8], [0, 1] * 4), name="one step"))
    assert losses == [True]
    assert differences(before, snapshot(learner)) == []
    assert not (tmp_path / "file").exists()


def test_after_a_failure_hooks_come_and_go_as_before():
    learner, calls = made([Stop(3)]), []
    before = learner.model.head.register_forward_hook(lambda *_: calls.append("before"))
    with pytest.raises(KeyboardInterrupt):
        learner.learn(STREAM[0])
    calls.clear()
    after = learner.model.head.register_forward_hook(lambda *_: calls.append("after"))
    learner.model(torch.zeros(2, 12))
    before.remove()
    after.remove()
    learner.model(torch.zeros(2, 12))
    assert calls == ["before", "after"]
