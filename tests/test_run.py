"""A run is a folder: stopped anywhere and begun again, it ends with the results of a run that was never stopped."""

import io
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from toy_experiment import TOML, toys  # noqa: F401

from perdure import checkpoint
from perdure.experiment.config import Plan, plan
from perdure.experiment.folder import Folder, FolderError
from perdure.experiment.results import Results
from perdure.experiment.run import Watch, cells, run
from perdure.experiment.screen import Forecast
from perdure.experiment.settings import RequestError
from perdure.learner import Learner
from perdure.metrics import summary


def planned(**changes: Any) -> Plan:
    return plan(tomllib.loads(TOML) | changes)


def execute(made: Plan, out: Path, fresh: bool = False) -> tuple[dict[str, Any], str]:
    """The results of a run but for `measured`, and what it said."""
    said = io.StringIO()
    run(made, out, Console(file=said, width=200), fresh)
    document = json.loads((out / "results.json").read_text())
    assert document["measured"] == Results.read(out).model_dump(mode="json")["measured"]
    del document["measured"]
    return document, said.getvalue()


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ctrl-C after so many steps of this session, whichever cell they belong to."""
    after_step: Callable[..., None] = Watch.after_step
    count = iter(range(1, step + 1))

    def interrupted(watch: Watch, learner: Any) -> None:
        after_step(watch, learner)
        if next(count, step) == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Watch, "after_step", interrupted)


def test_every_cell_is_in_the_results_seed_by_seed(tmp_path: Path):
    made = planned(seeds=[3, 1])
    assert [cell.folder for cell in cells(made)][:7] == [
        "class-finetune-seed3",
        "class-ewc-strong-seed3",
        "class-replay-lwf-seed3",
        "task-finetune-seed3",
        "task-ewc-strong-seed3",
        "task-replay-lwf-seed3",
        "class-finetune-seed1",
    ]
    found, said = execute(made, tmp_path / "run")
    assert [(cell["scenario"], cell["method"], cell["seed"]) for cell in found["cells"]] == [c.key for c in cells(made)]
    assert all(cell["complete"] for cell in found["cells"])
    states = [checkpoint.read(state, "learner") for state in (tmp_path / "run").glob("cells/*/state.perdure")]
    learnt = {tuple(state["weights"]["body.1.weight"].flatten().tolist()) for state in states}
    assert len(learnt) == len(states) == 12, "no two cells learnt the same weights"
    assert "task, replay + lwf, seed 1: task 2 of 2 (2, 3) learnt" in said
    assert (tmp_path / "run" / "report.html").exists()


def test_the_numbers_are_those_of_the_learners(tmp_path: Path):
    found, _ = execute(planned(methods=["replay"], scenarios=["class"]), tmp_path / "run")
    (cell,) = found["cells"]
    assert cell["settings"] == {"capacity": 2000, "folder": None, "rows": None, "policy": "reservoir"}
    assert cell["title"] == "Experience replay"
    assert cell["steps"] == 2 * 2 * 3  # tasks, epochs, batches of 8 out of 20 rows
    assert cell["memory_bytes"] > 40 * 6 * 4
    assert cell["accuracy"][0][1] is None
    assert cell["metrics"] == summary(cell["accuracy"], cell["initial"])
    assert found["benchmark"]["train_rows"] == [20, 20]


def test_intransigence_is_measured_against_the_joint_cell_of_the_same_scenario_and_seed(tmp_path: Path):
    slow = {"batch_size": 8}
    found, _ = execute(planned(methods=["finetune", "joint"], seeds=[0, 1], training=slow), tmp_path / "run")
    joint = {(c["scenario"], c["seed"]): c["accuracy"] for c in found["cells"] if c["method"] == "joint"}
    assert len({json.dumps([matrix[0][0], matrix[1][1]]) for matrix in joint.values()}) > 2
    for cell in found["cells"]:
        reference = joint[cell["scenario"], cell["seed"]]
        expected = (
            None if cell["method"] == "joint" else sum(reference[k][k] - cell["accuracy"][k][k] for k in (0, 1)) / 2
        )
        assert cell["metrics"]["intransigence"] == pytest.approx(expected)


def test_a_trace_is_kept_when_asked_for(tmp_path: Path):
    found, _ = execute(planned(methods=["finetune"], scenarios=["task"], eval_every=2), tmp_path / "run")
    trace = found["cells"][0]["trace"]
    assert {point["task"] for point in trace} == {0, 1}
    assert found["cells"][0]["metrics"]["minimum_accuracy"] is not None


@pytest.mark.parametrize(("first", "second"), [(1, 2), (7, 12), (20, 9)])
def test_interrupted_anywhere_and_begun_again_is_never_interrupted(tmp_path: Path, monkeypatch, first, second):
    made = planned(save_every=1e-9, scenarios=["class"], eval_every=5)
    expected, _ = execute(made, tmp_path / "whole")
    # The step at which a run is stopped has no save point yet: it alone is taken again.
    for step, cell in ((first, (first - 1) // 12), (second, (first + second - 2) // 12)):
        said = io.StringIO()
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(KeyboardInterrupt):
                run(made, tmp_path / "broken", Console(file=said, width=200))
        assert f"stopped in cell {cell + 1} of 3 (class, {made.entries[cell].label}, seed 0)" in said.getvalue()
    steps: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(Watch, "after_step", lambda watch, learner: steps.append(learner.clock.step))
        found, _ = execute(made, tmp_path / "broken")
    assert found == expected
    assert len(steps) == 36 - (first - 1) - (second - 1)


def test_a_finished_run_is_not_run_again(tmp_path: Path, monkeypatch):
    made = planned(methods=["finetune"])
    expected, _ = execute(made, tmp_path / "run")
    seconds = Results.read(tmp_path / "run").measured.cells
    monkeypatch.setattr(Watch, "after_step", lambda watch, learner: pytest.fail("a step was taken"))
    (tmp_path / "run" / "results.json").unlink()
    assert execute(made, tmp_path / "run")[0] == expected
    assert [cell.train_seconds for cell in Results.read(tmp_path / "run").measured.cells] == [
        cell.train_seconds for cell in seconds
    ]


def test_seconds_add_up_over_the_pieces(tmp_path: Path, monkeypatch):
    made = planned(methods=["finetune"], scenarios=["class"], save_every=1e-9)
    with monkeypatch.context() as patch:
        stop_at(patch, 9)
        with pytest.raises(KeyboardInterrupt):
            run(made, tmp_path / "run", Console(file=io.StringIO()))
    before = Learner.load(tmp_path / "run" / "cells" / "class-finetune-seed0" / "state.perdure").cost.train_seconds
    assert before > 0
    execute(made, tmp_path / "run")
    assert Results.read(tmp_path / "run").measured.cells[0].train_seconds > before


def test_another_experiment_is_refused_naming_what_differs(tmp_path: Path):
    execute(planned(methods=["finetune"], scenarios=["class"]), tmp_path / "run")
    other = planned(methods=["finetune"], scenarios=["task"], training={"batch_size": 8, "clip": 1.0})
    with pytest.raises(FolderError) as caught:
        execute(other, tmp_path / "run")
    said = str(caught.value)
    assert "scenarios is ['class'] there and ['task'] here" in said
    assert "training.clip is not set there and 1.0 here" in said
    assert "training.epochs is 2 there and 1 here" in said
    assert "batch_size" not in said
    assert "--fresh" in said


def test_other_data_is_another_experiment(tmp_path: Path):
    made = planned(methods=["finetune"], scenarios=["class"])
    execute(made, tmp_path / "run")
    other = planned(methods=["finetune"], scenarios=["class"], benchmark={"name": "toy", "rows": 44})
    changed = Plan(made.experiment, other.stream, made.entries, made.recipe)
    with pytest.raises(FolderError, match=r"data\.0, 1 is \w+ there and \w+ here"):
        execute(changed, tmp_path / "run")


def test_fresh_begins_anew_and_touches_nothing_but_its_own_cells(tmp_path: Path):
    execute(planned(methods=["finetune"], scenarios=["class"]), tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    (tmp_path / "run" / "cells" / "mine.txt").write_text("mine")
    (tmp_path / "run" / "cells" / "class-finetune-seed0" / ".state.perdure.1.tmp").write_text("left by a kill")
    found, _ = execute(planned(methods=["finetune"], scenarios=["task"]), tmp_path / "run", fresh=True)
    assert [cell["scenario"] for cell in found["cells"]] == ["task"]
    left = {str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert left == {
        ".lock",
        "notes.txt",
        "cells/mine.txt",
        "cells/task-finetune-seed0/state.perdure",
        "config.json",
        "results.json",
        "report.html",
    }


def test_two_processes_do_not_run_in_one_folder(tmp_path: Path):
    made = planned(methods=["finetune"], scenarios=["class"])
    with Folder(tmp_path / "run").held(), pytest.raises(FolderError, match="another process runs in"):
        execute(made, tmp_path / "run", fresh=True)
    execute(made, tmp_path / "run")


def test_a_damaged_state_is_refused_with_a_sentence(tmp_path: Path):
    made = planned(methods=["finetune"], scenarios=["class"])
    execute(made, tmp_path / "run")
    state = tmp_path / "run" / "cells" / "class-finetune-seed0" / "state.perdure"
    state.write_bytes(state.read_bytes()[:-9])
    execute(made, tmp_path / "run")  # finished: it is not needed
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(RequestError, match=r"state\.perdure.*or delete it: its cell begins anew"):
        execute(made, tmp_path / "run")


def test_a_method_that_diverges_breaks_off_alone_and_each_time_alike(tmp_path: Path):
    wild = {"batch_size": 8, "optimizer": {"name": "sgd", "lr": 1e30}}
    made = planned(methods=["finetune", "joint"], scenarios=["class"], training=wild)
    found, said = execute(made, tmp_path / "run")
    assert "class, finetune, 0 broke off: the loss became NaN or infinite" in said
    assert [(cell["complete"], cell["metrics"], cell["accuracy"]) for cell in found["cells"]] == [(False, None, [])] * 2
    assert execute(made, tmp_path / "run")[0] == found


def test_what_an_architecture_has_built_stands_in_the_results(tmp_path: Path):
    small = {"name": "pathnet", "modules": 4, "active": 2, "width": 2, "population": 2, "trial": 1}
    made = planned(methods=["finetune", {"name": "progressive", "width": 0.5}, small], scenarios=["task"])
    found, _ = execute(made, tmp_path / "run")
    plain, columns, paths = found["cells"]
    assert not {"parameters", "shared"} & plain.keys()
    assert not {"shared"} & columns.keys() and not {"parameters"} & paths.keys()
    # 6 -> 8 -> 2; then 6 -> 4 with an adapter of 8 onto 4 (and an alpha) beside it under the head of 2
    first, second = {"column": 56 + 18, "adapters": 0}, {"column": 28 + 10, "adapters": 1 + 36 + 8}
    assert columns["parameters"] == [
        {"task": "0, 1", **first, "trained": 74, "frozen": 0, "total": 74},
        {"task": "2, 3", **second, "trained": 83, "frozen": 74, "total": 157},
    ]
    learner = Learner.load(tmp_path / "run" / "cells" / "task-pathnet-seed0" / "state.perdure")
    (one, other), ways = learner.method.paths.values(), [("0, 1", "0, 1"), ("0, 1", "2, 3"), ("2, 3", "2, 3")]
    counts = [
        [len({*a} & {*b}) for a, b in zip(*pair, strict=True)] for pair in ((one, one), (one, other), (other, other))
    ]
    assert paths["shared"] == [
        {"first": a, "second": b, "modules": count} for (a, b), count in zip(ways, counts, strict=True)
    ]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "How Progressive networks grows" in page and "What the tasks of PathNet share" in page
    assert page.count("<h3>How ") == page.count("<h3>What the tasks of ") == 1
    execute(made, tmp_path / "run")
    assert Results.read(tmp_path / "run").cells[1].parameters is not None  # also where nothing was left to learn


def test_what_only_a_later_task_shows_is_a_sentence_that_names_the_cell(tmp_path: Path):
    made = planned(methods=["finetune", {"name": "icarl", "capacity": 3}], scenarios=["class"])
    with pytest.raises(RequestError, match=r"^class, icarl, 0: capacity is 3, and there are 4 classes"):
        execute(made, tmp_path / "run")
    assert [cell.method for cell in Results.read(tmp_path / "run").cells] == ["finetune"]


def test_a_method_that_was_not_seen_is_forecast_with_the_mean_of_the_others():
    forecast = Forecast({("class", "a", 0): 10, ("class", "b", 0): 10, ("class", "c", 0): 10})
    assert forecast.seconds_left is None
    forecast.advance(("class", "a", 0), 10, 20.0)  # 2 seconds a step
    forecast.advance(("class", "b", 0), 5, 20.0)  # 4 seconds a step
    assert forecast.seconds_left == 5 * 4 + 10 * 3
    assert forecast.share == 0.5
    forecast.finish(("class", "b", 0), 5)  # it stopped early
    assert forecast.seconds_left == 10 * 3


def test_a_terminal_shows_a_bar_with_cell_loss_and_time_left(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("perdure.experiment.screen.REFRESH", 0.0)
    said = io.StringIO()
    console = Console(file=said, force_terminal=True, width=160)
    run(planned(methods=["finetune"], scenarios=["class"]), tmp_path / "run", console)
    assert "class finetune seed 0" in said.getvalue()
    assert "loss" in said.getvalue()
    assert "left" in said.getvalue()
    assert "learnt, accuracy so far" not in said.getvalue()


def test_what_a_killed_process_had_half_written_is_swept_away(tmp_path: Path):
    made = planned(methods=["finetune"], scenarios=["class"])
    execute(made, tmp_path / "run")
    left = [tmp_path / "run" / ".results.json.1.tmp", tmp_path / "run/cells/class-finetune-seed0/.state.perdure.1.tmp"]
    for file in left:
        file.write_bytes(b"half")
    execute(made, tmp_path / "run")
    assert not any(file.exists() for file in left)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(FolderError, match="is a file; a run needs a folder"):
        execute(planned(), tmp_path / "run")
