"""Settings are chosen on train rows alone: how streams for tuning are cut, and what the search finds there."""

import io
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import toy_experiment
from rich.console import Console
from toy_experiment import TOML, toys  # noqa: F401

from perdure import Rows, Task, cli
from perdure.experiment import pieces, tune
from perdure.experiment.config import Plan, load
from perdure.experiment.settings import RequestError
from perdure.experiment.tune import Range
from perdure.streams import Stream


def unreadable(rows: Rows) -> Rows:
    def refuse(x: Any) -> Any:
        raise AssertionError("a test row was read")

    return rows.map(refuse)


def blinded(stream: Stream) -> Stream:
    tasks = [Task(t.train, None, name=t.name, classes=t.classes) for t in stream]
    for blind, task in zip(tasks, stream, strict=True):
        object.__setattr__(blind, "test", unreadable(task.test))
    return Stream(tasks, name=stream.name)


def stream(labels: int = 2, rows: int = 120, tasks: int = 4, seed: int = 0) -> Stream:
    draws = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(tasks):
        x, y = torch.randn(rows, 5, generator=draws), torch.arange(rows) % labels
        made.append(Task(Rows(x, y), Rows(x, y), name=f"t{len(made)}"))
    return blinded(Stream(made, name="s"))


def everything(part: Rows) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in part.read(torch.arange(len(part))).tolist()]


def test_pieces_share_out_the_first_tasks_train_rows():
    for scenario, labels in (("domain", 2), ("task", 2), ("task", 6), ("class", 6)):
        found = pieces.first_task(stream(labels), scenario)
        assert len(found) == 3
        held = [part for piece in found for part in (piece.train, piece.test)]
        assert sorted(row for part in held for row in everything(part)) == sorted(everything(stream(labels)[0].train))
        assert all(len(piece.test) == 8 for piece in found)  # a fifth of 40
        by_label = labels == 6
        assert [len(piece.classes) for piece in found] == [2, 2, 2]
        assert len({label for piece in found for label in piece.classes}) == (6 if by_label else 2)


def test_pieces_by_looks_differ_in_looks_and_not_in_labels():
    found = pieces.first_task(stream(2, rows=600), "domain")
    x = stream(2, rows=600)[0].train.read(torch.arange(600))
    direction = torch.linalg.svd(x - x.mean(0))[2][0]
    along = [piece.train.read(torch.arange(len(piece.train))) @ direction for piece in found]
    means = torch.stack([part.mean() for part in along])
    assert (means.diff().sign().unique()).tolist() in ([1.0], [-1.0]) and means.diff().abs().min() > 0.5
    assert [sorted(piece.classes) for piece in found] == [[0, 1]] * 3


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(RequestError, match="first task has 2 labels, and 3 pieces of new classes need 6"):
        pieces.first_task(stream(2), "class")
    with pytest.raises(RequestError, match="2 pieces are too few"):
        pieces.first_task(stream(6), "class", 2)
    with pytest.raises(RequestError, match="3 tasks; with the first 3 used for tuning none is left"):
        pieces.first_three(stream(tasks=3))


def test_the_first_three_tasks_are_taken_without_their_test_rows():
    found = pieces.first_three(stream(tasks=5))
    assert [task.name for task in found] == ["t0", "t1", "t2"]
    for task, whole in zip(found, stream(tasks=5), strict=False):
        assert sorted(everything(task.train) + everything(task.test)) == sorted(everything(whole.train))


def test_tasks_to_tune_on_have_the_labels_of_their_own_tasks_in_their_order():
    made = []
    for number, (classes, labels) in enumerate(zip(ORDERS, [(0, 1, 2), (1, 2), (0, 1, 2), (0,)], strict=True)):
        y = torch.tensor(labels)[torch.arange(90) % len(labels)]
        made.append(Task(Rows(torch.randn(90, 5), y), name=f"t{number}", classes=classes))
    whole = Stream(made, name="s")
    assert [task.classes for task in pieces.first_three(whole)] == ORDERS[:3]
    assert [piece.classes for piece in pieces.first_task(Stream(made[1:], name="s"), "domain")] == [ORDERS[1]] * 3
    assert [piece.classes for piece in pieces.first_task(Stream(made[2:], name="s"), "task")] == [ORDERS[2]] * 3
    first = Task(Rows(torch.randn(90, 5), torch.arange(90) % 6), name="first", classes=(5, 4, 9, 3, 2, 1, 0))
    cut = pieces.first_task(Stream([first], name="s"), "class")
    assert [piece.classes for piece in cut] == [(5, 4), (3, 2), (1, 0)]  # nothing of 9 was seen
    assert [set(piece.train.labels) for piece in cut] == [{5, 4}, {3, 2}, {1, 0}]


ORDERS = [(0, 1, 2), (0, 1, 2), (2, 1, 0), (0, 3)]


def test_a_label_of_one_row_may_be_held_out():
    for rows in range(12, 40):  # somewhere among them the rare row is held out
        y = torch.tensor([*[0, 1] * rows, 2])
        task = Task(Rows(torch.randn(len(y), 5), y), name="rare")
        found = [
            *pieces.first_three(Stream([task] * 4, name="s")),
            *pieces.first_task(Stream([task], name="s"), "task"),
        ]
        assert all(one.classes == (0, 1, 2) for one in found)


def test_too_few_rows_to_hold_some_out_are_refused():
    lone = Task(Rows(torch.randn(3, 5), torch.tensor([0, 1, 1])), name="lone")
    with pytest.raises(RequestError, match="piece 1 would have 0 rows, and needs 2"):
        pieces.first_task(Stream([lone], name="s"), "task")


@pytest.fixture
def plan(tmp_path) -> Plan:
    path = tmp_path / "toy.toml"
    path.write_text(TOML.replace("seeds = [0]", "seeds = [0]\n").replace("rows = 40", "rows = 240, tasks = 4"))
    found = load(path)
    return replace(found, stream=blinded(toy_experiment.toy(240, 2)))


def test_the_search_finds_the_strength_that_keeps_the_past(plan, tmp_path, monkeypatch):
    asked = []

    def graded(plan: Plan, entry: Any, chosen: Any, scenario: str, stream: Stream, seed: int) -> float:
        asked.append(chosen["strength"])
        return 1.0 / (1 + abs(chosen["strength"] - 3.0))

    monkeypatch.setattr(tune, "grade", graded)
    said = io.StringIO()
    arguments = {"ranges": {"strength": Range(0.01, 100)}, "trials": 12}
    chosen = tune.tune(plan, "EWC strong", "task", tmp_path / "a", Console(file=said), **arguments)
    assert asked[0] == 10.0 and len(asked) == 12  # the setting that stood there is tried first
    assert chosen["name"] == "ewc" and chosen["strength"] == min(asked, key=lambda value: abs(value - 3))
    again = tune.tune(plan, "EWC strong", "task", tmp_path / "a", Console(file=said), **{**arguments, "trials": 14})
    assert len(asked) == 14 and abs(again["strength"] - 3) <= abs(chosen["strength"] - 3)  # gone on with
    noted = json.loads((tmp_path / "a" / "trials.json").read_text())
    assert len(noted["trials"]) == 14 and noted["on"] == "first-task"
    assert json.loads((tmp_path / "a" / "method.json").read_text()) == again


def test_a_real_search_reads_no_test_row(plan, tmp_path):
    ranges = {"strength": Range(0.1, 10)}
    chosen = tune.tune(plan, "EWC strong", "task", tmp_path, Console(file=io.StringIO()), ranges=ranges, trials=2)
    assert 0.1 <= chosen["strength"] <= 10
    with pytest.raises(AssertionError, match="a test row was read"):
        plan.stream[0].test.read(torch.arange(2))


def test_what_is_asked_wrongly_is_refused(plan, tmp_path):
    console = Console(file=io.StringIO())
    with pytest.raises(RequestError, match="unknown method of this experiment 'EWC'"):
        tune.tune(plan, "EWC", "task", tmp_path, console)
    with pytest.raises(RequestError, match="no range is known for finetune"):
        tune.tune(plan, "finetune", "task", tmp_path, console)
    with pytest.raises(RequestError, match="EWC strong has no setting 'stength'"):
        tune.tune(plan, "EWC strong", "task", tmp_path, console, ranges={"stength": Range(1, 2)})
    for text in ("1..", "0..1", "2..1"):
        with pytest.raises(RequestError, match="is no range; write"):
            Range.parse(text)
    assert Range.parse("1, 2,x").choices == (1, 2, "x") and Range.parse("0.5..2") == Range(0.5, 2.0)


def test_the_command_tunes_on_the_first_three_and_the_run_leaves_them_out(tmp_path, capsys):
    path = tmp_path / "toy.toml"
    path.write_text(TOML.replace("rows = 40", "rows = 80, tasks = 4"))
    words = ["tune", str(path), "--method", "EWC strong", "--scenario", "task", "--on", "first-three", "--trials", "1"]
    assert cli.main([*words, "--range", "strength=1..2", "--out", str(tmp_path / "out")]) == 0
    assert "must not count: run with --set skip=3" in capsys.readouterr().out.replace("\n", " ")
    assert len(load(path, ["skip=3"]).stream) == 1
    assert cli.main([*words, "--range", "strength", "--out", str(tmp_path / "out")]) == 2
    assert "expected SETTING=LOW..HIGH" in capsys.readouterr().err
    assert cli.main(["run", str(path), "--set", "skip=4"]) == 2
    assert "4 tasks left out of 4 leave none" in capsys.readouterr().err
