"""Rows of a memory in files: the same rows as in RAM, and after any kill those of the last save point."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import small_stream
from trees import differences

from perdure import Learner, Rows, Task, methods, models
from perdure.checkpoint import CheckpointError, clone
from perdure.memory import ClassBalanced, Reservoir, Ring

POLICIES = [Reservoir, ClassBalanced, Ring]


def batch(start: int, count: int) -> dict:
    number = torch.arange(start, start + count)
    return {"x": (number[:, None] + torch.arange(6)).to(torch.uint8), "y": number % 3, "flag": number % 2 == 0}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("capacity", [10, "400 B"])
def test_on_disk_and_in_ram_the_same_rows_are_kept_and_drawn(policy, capacity, tmp_path):
    one, other = policy(capacity, 3), policy(capacity, 3, tmp_path / "rows")
    for start, count in ((0, 4), (4, 30), (34, 7)):
        for memory in (one, other):
            memory.add(batch(start, count), torch.arange(start, start + count) % 3)
            memory.settle() if start == 4 else None
        assert same(one.all(), other.all())
        assert same(one.draw(5), other.draw(5)) and same(one.draw(3, past=True), other.draw(3, past=True))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("later", [0, 1, 2])
def test_one_can_go_back_to_a_mark(policy, later, tmp_path):
    memory = policy(12, 0, tmp_path / "rows")
    memory.add(batch(0, 9), torch.arange(9) % 3)
    memory.mark()
    state, kept = clone(memory.state()), {name: column.clone() for name, column in memory.all().items()}
    for start in (9, 29, 49):  # slots are overwritten more than once
        memory.add(batch(start, 20), torch.arange(start, start + 20) % 3)
    for turn in range(later):
        memory.mark()
        memory.add(batch(70 + 9 * turn, 9), torch.arange(9) % 3)
    assert not same(memory.all(), kept)
    again = policy(12, 0, tmp_path / "rows")
    again.load_state(state)
    assert same(again.all(), kept)
    again.add(batch(9, 20), torch.arange(9, 29) % 3)
    fresh = policy(12, 0)
    for start, count in ((0, 9), (9, 20)):
        fresh.add(batch(start, count), torch.arange(start, start + count) % 3)
    assert same(again.all(), fresh.all())


def test_a_save_point_that_the_files_have_left_behind_is_refused(tmp_path):
    memory = Reservoir(12, 0, tmp_path / "rows")
    memory.add(batch(0, 9))
    memory.mark()
    state = clone(memory.state())
    for number in range(4):
        memory.mark()
        memory.add(batch(9 + 9 * number, 9))
    with pytest.raises(CheckpointError, match="moved on"):
        Reservoir(12, 0, tmp_path / "rows").load_state(state)


def test_marks_without_a_change_between_them_are_one(tmp_path):
    memory = Reservoir(12, 0, tmp_path / "rows")
    memory.add(batch(0, 9))
    memory.mark()
    state, kept = clone(memory.state()), {name: column.clone() for name, column in memory.all().items()}
    for _ in range(9):  # as by learner.save, again and again
        memory.mark()
    again = Reservoir(12, 0, tmp_path / "rows")
    again.load_state(state)
    assert same(again.all(), kept)


@pytest.mark.parametrize(
    ("old", "new"), [('"uint8"', '"load"'), ('"columns"', '"column"'), ('"rows": 12', '"rows": 13'), ("{", "[")]
)
def test_a_changed_description_of_the_files_is_refused(old, new, tmp_path):
    memory = Reservoir(12, 0, tmp_path / "rows")
    memory.add(batch(0, 9))
    head = tmp_path / "rows" / "rows.json"
    head.write_text(head.read_text().replace(old, new, 1))
    with pytest.raises(CheckpointError):
        Reservoir(12, 0, tmp_path / "rows").load_state(clone(memory.state()))


def test_a_damaged_log_is_refused(tmp_path):
    memory = Reservoir(12, 0, tmp_path / "rows")
    memory.add(batch(0, 12))
    memory.mark()
    state = clone(memory.state())
    memory.add(batch(12, 30))
    (log,) = (p for p in (tmp_path / "rows").glob("log-*") if p.stat().st_size)
    data = bytearray(log.read_bytes())
    data[8:16] = (10**6).to_bytes(8, "little")
    log.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="damaged"):
        Reservoir(12, 0, tmp_path / "rows").load_state(state)


def test_files_of_another_memory_or_none_are_refused(tmp_path):
    for name in ("one", "two"):
        memory = Reservoir(12, 0, tmp_path / name)
        memory.add(batch(0, 9))
    state = clone(memory.state())
    with pytest.raises(CheckpointError, match="another memory"):
        Reservoir(12, 0, tmp_path / "one").load_state(state)
    with pytest.raises(CheckpointError, match="not in"):
        Reservoir(12, 0, tmp_path / "three").load_state(state)
    with pytest.raises(CheckpointError, match="folder"):
        Reservoir(12, 0).load_state(state)
    with pytest.raises(ValueError, match="not empty"):
        Reservoir(12, 0, tmp_path / "one").add(batch(0, 9))
    (tmp_path / "two" / "column-0").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="cut short"):
        Reservoir(12, 0, tmp_path / "two").load_state(state)


def test_rows_that_become_wider_are_refused(tmp_path):
    memory = Reservoir(12, 0, tmp_path / "rows")
    memory.add({"x": torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="one shape"):
        memory.add({"x": torch.zeros(2, 4)})
    with pytest.raises(ValueError, match="leave folder out"):
        methods.DER(folder=str(tmp_path / "other"))


# ---- in a learner ----


def made(folder, **settings) -> Learner:
    method = methods.Replay(30, policy="balanced", folder=folder and str(folder))
    return Learner(models.mlp(12, (8,)), method, scenario="class", batch_size=8, **settings)


def test_learning_is_the_same_on_disk(tmp_path):
    one, other = made(None), made(tmp_path / "rows")
    for task in small_stream(rows=48):
        one.learn(task)
        other.learn(task)
    assert differences(dict(one.model.state_dict()), dict(other.model.state_dict())) == []


def test_an_error_in_the_first_task_leaves_no_files(tmp_path):
    learner = made(tmp_path / "rows", optimizer={"name": "sgd", "lr": 1e30})
    with pytest.raises(FloatingPointError):
        learner.learn(small_stream(rows=48)[0])
    assert not (tmp_path / "rows").exists()
    learner.optimizer.param_groups[0].update(lr=0.01, initial_lr=0.01)
    learner.learn(small_stream(rows=48)[0])
    assert len(learner.method.store) == 30


CHILD = """
import os, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
from test_disk import killed_stream, made
from perdure import Callback, Learner
file, kill = {file!r}, int(sys.argv[1])

class Kills(Callback):
    def after_step(self, learner):
        if learner.clock.step == kill:
            os.kill(os.getpid(), 9)

settings = dict(callbacks=[Kills()], save_to=file, save_every=0.0)
learner = Learner.load(file, **settings) if os.path.exists(file) else made({rows!r}, **settings)
for task in killed_stream()[learner.clock.task:]:
    learner.learn(task)
"""


def killed_stream() -> list[Task]:
    draws = torch.Generator().manual_seed(0)
    return [
        Task(Rows(torch.randn(64, 12, generator=draws), (torch.arange(64) % 2 + 2 * n).tolist()), name=str(n))
        for n in range(3)
    ]


def test_killed_again_and_again_it_ends_the_same(tmp_path):
    unbroken = made(None)
    for task in killed_stream():
        unbroken.learn(task)
    file, rows = str(tmp_path / "state"), str(tmp_path / "rows")
    program = CHILD.format(tests=str(Path(__file__).parent), file=file, rows=rows)
    for kill in (3, 7, 9, 15, 16, 22, 10**9):
        done = subprocess.run(
            [sys.executable, "-c", program, str(kill)], stderr=subprocess.PIPE, text=True, env=os.environ
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
    assert done.returncode == 0
    found = Learner.load(file)
    assert differences(dict(unbroken.model.state_dict()), dict(found.model.state_dict())) == []
    assert same(unbroken.method.store.all(), found.method.store.all())
