"""Settings are chosen on train rows alone: how streams for tuning are cut, and what the search finds there."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_experiment
from rich.console import Console
from toy_experiment import TOML, toys  # noqa: F401

from perdure import Rows, Task, cli
from perdure.experiment import config, learners, pieces, tune
from perdure.experiment import ranges as ranges_of
from perdure.experiment.config import Plan, load
from perdure.experiment.ranges import Range
from perdure.experiment.settings import RequestError
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


def searched(plan: Plan, out: Path, **changes: Any) -> dict[str, Any]:
    """What a search for the strength chose."""
    given: dict[str, Any] = {"ranges": {"strength": Range(0.01, 100)}, "trials": 1, **changes}
    return tune.tune(plan, "EWC strong", given.pop("scenario", "task"), out, Console(file=io.StringIO()), **given)


def test_a_search_that_is_gone_on_with_is_as_one_that_never_stopped(plan, tmp_path, monkeypatch):
    asked: list[float] = []

    def graded(plan: Plan, entry: Any, chosen: Any, scenario: str, stream: Stream, seed: int) -> float:
        asked.append(chosen["strength"])
        if len(asked) == stop:
            raise KeyboardInterrupt
        if chosen["strength"] > 50:
            raise FloatingPointError
        return 1.0 / (1 + abs(chosen["strength"] - 3.0))

    monkeypatch.setattr(tune, "grade", graded)
    stop = 0
    searched(plan, tmp_path / "whole", trials=20)
    whole = list(asked)
    assert len(set(whole)) == 20 and any(strength > 50 for strength in whole)
    for number in (1, 3, 14):  # interrupted in the first trial, among the random ones, and later
        asked.clear()
        stop = number
        with pytest.raises(KeyboardInterrupt):
            searched(plan, tmp_path / f"broken {number}", trials=20)
        assert asked.pop() == whole[number - 1]  # taken again
        stop = 0
        searched(plan, tmp_path / f"broken {number}", trials=17)
        searched(plan, tmp_path / f"broken {number}", trials=20)
        assert asked == whole
    noted = json.loads((tmp_path / "broken 3" / "trials.json").read_text())
    assert len(noted["trials"]) + len(noted["diverged"]) == 20
    assert all(settings["strength"] > 50 for settings in noted["diverged"]) and noted["diverged"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ranges": {"strength": Range(0.01, 10)}}, r"ranges\.strength is \[0\.01, 100\.0\] there"),
        ({"ranges": {"strength": Range(0.01, 100), "decay": Range(0.5, 1)}}, r"ranges\.decay is not set there"),
        ({"seeds": (0, 1)}, r"seeds is \[0\] there and \[0, 1\] here"),
        (
            {"scenario": "class", "on": "first-three", "tasks": 4},
            "scenario is task there and class here; on is first-task there",
        ),
        ({"training": "all outputs"}, "training.protocol is as they come there and all outputs here"),
        ({"rows": 180}, r"data\.piece 1 is \w+ there"),
    ],
)
def test_another_search_in_the_same_folder_is_refused(plan, tmp_path, monkeypatch, changes, words):
    monkeypatch.setattr(tune, "grade", lambda *given: 0.5)
    searched(plan, tmp_path)
    training = plan.experiment.training.model_copy(update={"protocol": changes.pop("training", "as they come")})
    made = replace(plan, experiment=plan.experiment.model_copy(update={"training": training}))
    made = replace(made, stream=blinded(toy_experiment.toy(changes.pop("rows", 240), changes.pop("tasks", 2))))
    with pytest.raises(RequestError, match=f"holds another search: .*{words}.* another folder with --out"):
        searched(made, tmp_path, **changes)
    searched(plan, tmp_path)  # the same goes on


def test_the_protocol_of_the_outputs_holds_in_the_search_too(plan, tmp_path, monkeypatch):
    made: list[Any] = []
    make = learners.make
    monkeypatch.setattr(learners, "make", lambda *a, **k: made.append(make(*a, **k)) or made[-1])
    for protocol, ahead in (("as they come", []), ("all outputs", ["piece 1", "piece 2", "piece 3"])):
        training = plan.experiment.training.model_copy(update={"protocol": protocol})
        changed = replace(plan, experiment=plan.experiment.model_copy(update={"training": training}))
        searched(changed, tmp_path / protocol)
        assert made[-1].clock.task == 3  # that which was graded
        assert [name for name, _, is_ahead in made[-1].labels.opened if is_ahead] == ahead


def of_one_method(plan: Plan, spec: dict[str, Any], scenario: str = "task") -> Plan:
    found = config.plan({**plan.document, "scenarios": [scenario], "methods": [{**spec, "label": "it"}]})
    return replace(plan, entries=found.entries)


def test_whole_numbers_are_searched_as_whole_numbers(plan, tmp_path, monkeypatch):
    asked: list[Any] = []
    monkeypatch.setattr(tune, "grade", lambda *given: asked.append(given[2]) or 0.5)
    console = Console(file=io.StringIO())
    replays = of_one_method(plan, {"name": "replay", "capacity": 30})
    tune.tune(replays, "it", "task", tmp_path, console, ranges={"capacity": Range.parse("10..1000")}, trials=6)
    assert asked[0] == {"capacity": 30} and len({found["capacity"] for found in asked}) > 3
    assert all(type(found["capacity"]) is int and 10 <= found["capacity"] <= 1000 for found in asked)
    assert type(json.loads((tmp_path / "method.json").read_text())["capacity"]) is int
    for values, words in (
        ("0.5..10", "capacity takes whole numbers, and the range is 0.5..10"),
        ("10,0.5", "--range capacity: expected a whole number or a string, found 0.5"),
        ("10,0", "--range capacity: "),
    ):
        with pytest.raises(RequestError, match=words):
            tune.tune(replays, "it", "task", tmp_path / "b", console, ranges={"capacity": Range.parse(values)})
    for place, values, words in (
        ("decay", "0.5..2", "decay is 2.0"),
        ("fisher", "exact,exat", "Did you mean 'exact'"),
        ("pull", "1..2", "pull: expected 'gradient' or 'proximal', found 1.0"),
    ):
        with pytest.raises(RequestError, match=words):
            searched(plan, tmp_path / "c", ranges={place: Range.parse(values)})


def test_the_parts_of_a_composition_are_tuned_by_their_names(plan, tmp_path, monkeypatch):
    asked: list[Any] = []
    monkeypatch.setattr(tune, "grade", lambda *given: asked.append(given[2]) or 1 / given[2]["lwf.strength"])
    console = Console(file=io.StringIO())
    ranges = {"replay.capacity": Range.parse("20,40"), "lwf.strength": Range(0.1, 10)}
    found = tune.tune(plan, "replay + lwf", "task", tmp_path, console, ranges=ranges, trials=5)
    best = min(asked, key=lambda chosen: chosen["lwf.strength"])
    assert len(asked) == 5 and asked[0]["lwf.strength"] == 1.0
    assert [part["name"] for part in found["parts"]] == ["replay", "lwf"]
    assert (found["parts"][0]["capacity"], found["parts"][1]["strength"]) == tuple(best[place] for place in ranges)
    assert plan.entries[2].spec["parts"][1]["strength"] == 1.0  # the plan is as it was
    assert list(ranges_of.usual(plan.entries[2].spec)) == ["lwf.strength"]
    for place in ("strength", "lwf.capacity", "mas.strength"):
        with pytest.raises(RequestError, match=f"replay \\+ lwf has no setting '{place}'; it has replay.capacity, "):
            tune.tune(plan, "replay + lwf", "task", tmp_path / "b", console, ranges={place: Range(1, 2)})


def test_a_composition_is_really_tuned(plan, tmp_path):
    console, ranges = Console(file=io.StringIO()), {"replay.capacity": Range(8, 40)}
    found = tune.tune(plan, "replay + lwf", "task", tmp_path, console, ranges=ranges, trials=2)
    assert 8 <= found["parts"][0]["capacity"] <= 40


def test_what_cannot_be_learnt_is_refused_before_the_first_trial(plan, tmp_path):
    console, ranges = Console(file=io.StringIO()), {"width": Range(0.5, 2)}
    columns = of_one_method(plan, {"name": "progressive"})
    with pytest.raises(RequestError, match="it in scenario 'domain': progressive works in scenario task, not 'domain'"):
        tune.tune(columns, "it", "domain", tmp_path / "a", console, ranges=ranges)
    assert not (tmp_path / "a").exists()
    small = replace(of_one_method(plan, {"name": "icarl", "capacity": 2}, "class"), stream=toy_experiment.toy(240, 4))
    ranges = {"capacity": Range(choices=(2,))}
    with pytest.raises(RequestError, match=r"it with {'capacity': 2}: capacity is 2, and there are 3 classes"):
        tune.tune(small, "it", "class", tmp_path / "b", console, ranges=ranges, trials=1, on="first-three")


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
