"""Save points on disk: whole, then only what has changed; whenever a process ends, one of them is read."""

import threading

import pytest
import torch
from conftest import small_stream
from trees import differences, snapshot

from perdure import Callback, Learner, checkpoint, journal, methods, models
from perdure.checkpoint import CheckpointError
from perdure.journal import Journal


def tree(rows: int = 5000, seed: int = 0) -> dict:
    draws = torch.Generator().manual_seed(seed)
    return {
        "clock": {"step": 1, "name": "a"},
        "memory": {
            "0": {"store": {"x": torch.randint(256, (rows, 300), generator=draws, dtype=torch.uint8), "seen": 7}}
        },
        "weights": {"w": torch.randn(20, 5, generator=draws)},
        "list": [torch.ones(3), None],
    }


def changed(old: dict, rows: list[int], more: int = 0) -> dict:
    new = checkpoint.clone(old)
    x = torch.cat([new["memory"]["0"]["store"]["x"], torch.zeros(more, 300, dtype=torch.uint8)])
    x[rows] = 255 - x[rows]
    new["memory"]["0"]["store"].update(x=x, seen=8)
    new["weights"]["w"] += 1
    new["clock"]["step"] += 1
    return new


def written(path, *trees, whole=False) -> Journal:
    found = Journal(path, "learner")
    for number, one in enumerate(trees):
        found.write(one, whole=whole or number == 0)
        found.wait()
    return found


def test_what_is_read_is_the_last_save_point(tmp_path):
    path, first = tmp_path / "state", tree()
    second = changed(first, [3, 77])
    third = changed(second, [3, 4999], more=20)
    for trees in ((first,), (first, second), (first, second, third)):
        written(path, *trees)
        assert differences(trees[-1], journal.read(path, "learner")) == []


def test_only_rows_that_changed_are_written(tmp_path):
    path, first = tmp_path / "state", tree()
    written(path, first, changed(first, [3, 77]))
    whole, delta = path.stat().st_size, (tmp_path / "state.delta").stat().st_size
    assert whole > 5000 * 300 and delta < 2 * 300 + 6000


def test_nan_that_stays_is_no_change_and_minus_zero_is_one(tmp_path):
    path = tmp_path / "state"
    first = {"memory": torch.full((4000, 100), torch.nan)}
    first["memory"][5] = 0.0
    second = checkpoint.clone(first)
    second["memory"][5] = -0.0
    written(path, first, second)
    assert (tmp_path / "state.delta").stat().st_size < 4000
    found = journal.read(path, "learner")["memory"]
    assert found[5].signbit().all() and found[0].isnan().all()


@pytest.mark.parametrize("other", ["half of the rows", "other columns", "other type", "fewer rows"])
def test_what_has_changed_too_much_is_written_whole(other, tmp_path):
    path, first = tmp_path / "state", tree()
    second = changed(first, list(range(2600)) if other == "half of the rows" else [])
    x = second["memory"]["0"]["store"]["x"]
    if other == "other columns":
        x = torch.cat([x, x], 1)
    if other == "other type":
        x = x.to(torch.int16)
    if other == "fewer rows":
        x = x[:100]
    second["memory"]["0"]["store"]["x"] = x
    written(path, first, second)
    assert differences(second, journal.read(path, "learner")) == []


def test_many_small_changes_become_a_whole_file_again(tmp_path):
    path, current = tmp_path / "state", tree()
    written_by = written(path, current)
    before = path.read_bytes()
    for start in range(0, 3000, 250):
        current = changed(current, list(range(start, start + 250)))
        written_by.write(current, whole=False)
        written_by.wait()
        assert differences(current, journal.read(path, "learner")) == []
    assert path.read_bytes() != before


def test_a_delta_of_an_earlier_whole_file_is_left_alone(tmp_path):
    path, first = tmp_path / "state", tree()
    second = changed(first, [3])
    third = changed(second, [4])
    written(path, first, second)
    stale = (tmp_path / "state.delta").read_bytes()
    written(path, third)
    assert not (tmp_path / "state.delta").exists()
    (tmp_path / "state.delta").write_bytes(stale)  # as if the process had ended before it was removed
    assert differences(third, journal.read(path, "learner")) == []


def test_a_damaged_delta_is_refused(tmp_path):
    path, first = tmp_path / "state", tree()
    written(path, first, changed(first, [3]))
    delta = tmp_path / "state.delta"
    data = bytearray(delta.read_bytes())
    data[len(data) // 2] ^= 1
    delta.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="damaged"):
        journal.read(path, "learner")


def test_what_goes_wrong_is_told_by_the_next_call(tmp_path):
    broken = Journal(tmp_path / "folder" / "state", "learner")
    (tmp_path / "folder").write_text("a file where a folder should be")
    broken.write(tree(), whole=True)
    with pytest.raises(OSError, match="folder"):
        broken.wait()


# ---- in a learner ----


class Eager:
    """A learner that saves after every step."""

    def __init__(self, path):
        self.learner = Learner(
            models.mlp(12, (10,)), methods.Replay(40), scenario="class", batch_size=8, save_to=path, save_every=0.0
        )


def test_training_goes_on_while_a_save_point_is_written(tmp_path, monkeypatch):
    gate, steps = threading.Event(), []
    real = checkpoint.write

    def slow(*arguments):
        gate.wait(20)
        return real(*arguments)

    monkeypatch.setattr(checkpoint, "write", slow)
    learner = Eager(tmp_path / "state").learner

    class Opens(Callback):
        def after_step(self, learner):
            steps.append(learner.clock.step)
            if len(steps) == 1:
                learner._point.taken -= 7  # due, and not yet so late that it would wait
            if len(steps) == 5:
                gate.set()

    learner.callbacks.append(Opens())
    learner.save_every = 5.0
    learner.learn(small_stream(rows=64)[0])
    assert len(steps) == 8


def test_after_a_task_there_is_one_file(tmp_path):
    learner = Eager(tmp_path / "state").learner
    for task in small_stream(rows=64):
        learner.learn(task)
        assert [file.name for file in tmp_path.iterdir()] == ["state"]
        assert differences(snapshot(learner), snapshot(Learner.load(tmp_path / "state"))) == []


def test_stopped_between_two_whole_files_it_goes_on_from_the_delta(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "LARGE", 1)
    unbroken, broken = Eager(tmp_path / "one").learner, Eager(tmp_path / "two").learner
    stream = small_stream(rows=64)

    class Stops(Callback):
        def after_step(self, learner):
            if learner.clock.task == 1 and learner.clock.taken == 6:
                learner._journal.wait()
                for name in ("two", "two.delta"):
                    if (tmp_path / name).exists():
                        (tmp_path / f"kept.{name}").write_bytes((tmp_path / name).read_bytes())
                raise KeyboardInterrupt

    broken.callbacks.append(Stops())
    for task in stream:
        unbroken.learn(task)
    broken.learn(stream[0])
    with pytest.raises(KeyboardInterrupt):
        broken.learn(stream[1])
    assert (tmp_path / "kept.two.delta").exists()
    (tmp_path / "kept.two.delta").rename(tmp_path / "state.delta")
    (tmp_path / "kept.two").rename(tmp_path / "state")
    resumed = Learner.load(tmp_path / "state")
    assert resumed.clock.begun and resumed.clock.taken > 0
    for task in stream[1:]:
        resumed.learn(task)
    assert differences(snapshot(unbroken), snapshot(resumed)) == []
