"""Tables of published results: what is compared with what, and that a table is run, gone on with and written."""

import fcntl
import io
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import stdev
from typing import Any

import example_results
import pytest
import torch
from conftest import small_stream
from rich.console import Console
from torch.nn import functional

from perdure import Learner, cli, models
from perdure.experiment import proof, wrong
from perdure.experiment.reproduce import folder, gather, place, reproduce
from perdure.experiment.results import CellPart, Results
from perdure.experiment.settings import RequestError
from perdure.experiment.table import SCENARIOS, Table, load, names

TINY = """
title = "A tiny table"
protocol = "Two digits at a time, three steps."
hours = 0.01
[experiment]
benchmark = { name = "split-mnist", tasks = 2, classes = [0, 1, 2, 3] }
seeds = [0, 1]
model = { name = "mlp", hidden = [4] }
infer = ["entropy"]
[experiment.training]
steps = 3
[sources]
book = "A book, page 1"
[[rows]]
label = "fine-tuning"
method = "finetune"
scenarios = ["task", "class"]
published = { class = [50.0, 100.0] }
source = "book"
[[rows]]
label = "EWC | strong"
method = { name = "ewc", rows = 20 }
scenarios = ["class"]
changes = { all = { "method.strength" = 2.0 }, class = { "training.steps" = 2, seeds = [7] } }
notes = { class = "Too few steps." }
"""


@pytest.fixture
def tiny(tmp_path) -> str:
    path = tmp_path / "tiny.toml"
    path.write_text(TINY.replace("EWC | strong", "EWC, strong"))
    return str(path)


def cell(**changes: Any) -> CellPart:
    metrics = dict.fromkeys(
        ("average_incremental_accuracy", "forgetting", "backward_transfer", "forward_transfer", "intransigence",
         "minimum_accuracy", "worst_case_accuracy")
    )  # fmt: skip
    plain: dict[str, Any] = {
        "method": "m", "title": "M", "upper_bound": False, "scenario": "class", "seed": 0, "settings": {},
        "complete": True, "initial": None, "accuracy": [[0.9, None], [0.5, 0.7]], "trace": None, "steps": 20,
        "multiply_adds": 1, "parameter_bytes": 1, "memory_bytes": 1,
        "metrics": {**metrics, "average_accuracy": 0.6, "learning_accuracy": 0.8},
    }  # fmt: skip
    return CellPart.model_validate({**plain, **changes})


def table(**changes: Any) -> Table:
    row = {"label": "m", "method": "finetune", "published": {"class": (60.0, 2.0)}, "source": "s"}
    plain = {
        "title": "T",
        "protocol": "P",
        "hours": 1.0,
        "experiment": {"benchmark": {"name": "split-mnist"}},
        "sources": {"s": "S"},
        "rows": (row,),
    }
    return Table.model_validate({**plain, **changes}, strict=False)


def measures(*values: float) -> proof.Measured:
    return proof.Measured(values, values, {}, values, 1, 0)


@pytest.mark.parametrize(
    ("values", "published", "said"),
    [
        ((59.0, 61.0), (60.0, 2.0), "within"),
        ((61.0, 62.0), (60.0, 2.0), "within"),  # 1.5 off, the paper's deviation is 2
        ((62.9, 63.1), (60.0, 2.0), "better, +3.0"),
        ((56.9, 57.1), (60.0, 2.0), "below, -3.0"),
        ((50.0, 60.0), (60.0, 2.0), "within"),  # 5 off, ours is 7
        ((60.0, 60.2), (60.0,), "within"),
        ((59.89, 59.93), (60.0,), "within"),  # 0.09 off, and our deviation is 0.03: the paper's digits end there
        ((59.86, 59.86), (60.0,), "within"),  # 0.14 off, which reads as 0.1
        ((59.8, 59.82), (60.0,), "below, -0.2"),
        ((59.8, 59.82), (60.0, 0.2), "within"),
        ((60.59, 60.61), (60.0,), "better, +0.6"),
        ((61.0,), (60.0, 2.0), "+1.0, one seed"),
        ((61.0, 62.0), None, ""),
    ],
)
def test_the_verdict_is_about_one_standard_deviation(values, published, said):
    rows = (
        {"label": "m", "method": "finetune", "published": {"class": published} if published else {}, "source": "s"},
    )
    line = next(line for line in table(rows=rows).lines() if line.scenario == "class")
    assert proof.verdict(line, measures(*values)) == said


def test_fewer_steps_are_better():
    counting = table(measure="steps", threshold=0.97)
    line = next(line for line in counting.lines() if line.scenario == "class")
    assert proof.verdict(line, measures(860.0, 862.0)) == "below, +801.0"
    assert proof.verdict(line, measures(9.0, 11.0)) == "better, -50.0"
    assert proof.verdict(line, measures(59.0, 61.0)) == "within"


def test_a_seed_that_diverged_takes_the_verdict_away():
    line = next(line for line in table().lines() if line.scenario == "class")
    broken = cell(seed=1, complete=False, accuracy=[], metrics=None, steps=0)
    found = proof.measured(line, merged(cell(), broken, cell(seed=2)))
    assert found is not None and (len(found.values), found.diverged) == (2, 1)
    assert proof.verdict(line, found) == "1 of 3 seeds diverged"
    rows = page_of(table(), merged(cell(), broken, cell(seed=2)))
    assert rows["m"][1:4] == ["60.0 ± 0.0", "60 ± 2", "1 of 3 seeds diverged"]
    assert page_of(table(), merged(broken))["m"][1:4] == ["none finished", "60 ± 2", "1 of 1 seeds diverged"]
    assert proof.summary(table(), merged(cell(), broken)) == "60.0; 1 of 2 seeds diverged"
    assert proof.summary(table(), merged(broken)) == "nothing finished; 1 of 1 seeds diverged"


def merged(*cells: CellPart, **config: Any) -> Results:
    """Results of a table's lines."""
    example = Results.model_validate(example_results.results(tasks=2, seeds=1))
    return example.model_copy(update={"cells": list(cells), "config": config})


def page_of(shown: Table, results: Results) -> dict[str, list[str]]:
    """The rows of the table on the page, by label."""
    lines = [line for line in proof.section(shown, results, Path()).splitlines() if line.startswith("| ")]
    return {row[0]: row for row in ([part.strip() for part in line.strip("|").split("|")] for line in lines)}


def traced(seed: int, reached: int | None, method: str = "m", steps: int = 200) -> CellPart:
    """A run of two tasks with half the steps each, whose last task was at 95 % after `reached` steps."""
    points = [(steps // 2 + step, 1, 0.95 if step == reached else 0.1) for step in range(10, steps // 2 + 1, 10)]
    trace = [{"step": step, "task": task, "accuracy": [0.9, value]} for step, task, value in points]
    return cell(seed=seed, method=method, trace=trace, steps=steps)


ROWS = ({"label": "after", "method": "finetune", "against": "scratch"}, {"label": "scratch", "method": "finetune"})


def test_a_speed_up_is_the_geometric_mean_of_the_ratios_of_pairs():
    counting = table(rows=ROWS, measure="steps", threshold=0.9)
    line = next(line for line in counting.lines() if line.scenario == "class")
    runs = [(0, 20, 40), (100, 50, 50), (200, 10, 80)]  # ratios 2, 1, 8
    cells = [
        traced(seed, steps, name)
        for seed, *both in runs
        for name, steps in zip(("after", "scratch"), both, strict=True)
    ]
    logs = [math.log(2), 0.0, math.log(8)]
    mean, half = sum(logs) / 3, 4.30265 * stdev(logs) / math.sqrt(3)
    said = f"{math.exp(mean):.2f} ({math.exp(mean - half):.2f} to {math.exp(mean + half):.2f}), 3 pairs with *scratch*"
    assert said.startswith("2.52 (") and proof.speed_up(line, merged(*cells)) == said
    alone = [*cells[:2], traced(7, 10, "after"), traced(8, 90, "scratch")]  # two without a partner
    assert proof.speed_up(line, merged(*alone)) == "2.00, 1 pair with *scratch*"
    rows = page_of(counting, merged(*cells))
    assert rows["method"][:4] == ["method", "steps to 90 %", "speed-up", "paper"]
    assert rows["after"][:3] == ["after", "26.7 ± 20.8", said] and rows["scratch"][1:3] == ["56.7 ± 20.8", ""]
    assert "pair by pair" in proof.section(counting, merged(*cells), Path())
    with pytest.raises(ValueError, match="after is against 'scratch': that takes a row of a table of steps"):
        table(rows=ROWS)
    with pytest.raises(ValueError, match="m is against 'nobody'"):
        table(rows=({"label": "m", "method": "finetune", "against": "nobody"},), measure="steps", threshold=0.9)


def test_a_mean_with_a_run_that_never_got_there_is_a_bound():
    counting = table(measure="steps", threshold=0.9)
    rows = page_of(counting, merged(traced(0, 20), traced(1, None)))
    assert rows["m"][1] == "at least 60.0 (1 of 2 never)"


def test_published_numbers_need_a_source():
    with pytest.raises(ValueError, match="m has published numbers and no source among s"):
        table(rows=({"label": "m", "method": "finetune", "published": {"class": (60.0,)}},))


def test_the_score_is_the_average_accuracy_or_the_steps_to_the_threshold_in_the_last_task():
    points = [(2, 0, 0.99), (10, 0, 0.99), (12, 1, 0.6), (14, 1, 0.95), (16, 1, 0.7), (18, 1, 0.97)]
    trace = [{"step": step, "task": task, "accuracy": [0.9, value]} for step, task, value in points]
    traced = cell(trace=trace)
    assert proof.score(table(), traced) == pytest.approx(60.0)
    counting = table(measure="steps", threshold=0.9)
    assert proof.score(counting, traced) == 4  # the second task begins after step 10
    assert proof.steps_to(0.98, traced) is None and proof.score(table(measure="steps", threshold=0.98), traced) == 10
    assert proof.score(counting, cell(complete=False, metrics=None)) is None


@pytest.mark.parametrize("name", names())
def test_every_line_of_a_shipped_table_is_a_sound_experiment(name, data_folder):
    wrong.register()
    shipped = load(name)
    assert shipped.hours <= 3
    lines = list(shipped.lines())
    assert len({line.slug for line in lines}) == len(lines)
    for row in shipped.rows:
        assert set(row.published) <= set(row.scenarios) and set(row.notes) | set(row.changes) <= {*SCENARIOS, "all"}
    for line in lines:
        document = line.document()
        if "path" in document["benchmark"]:
            document["benchmark"] = {**document["benchmark"], "path": str(data_folder / "cifar10")}
        assert document["methods"][0]["label"] == line.row.label


def test_a_line_has_its_own_changes(tiny):
    lines = {line.slug: line for line in load(tiny).lines()}
    assert list(lines) == ["fine-tuning-task", "fine-tuning-class", "ewc-strong-class"]
    document = lines["ewc-strong-class"].document()
    assert document["methods"] == [{"name": "ewc", "rows": 20, "strength": 2.0, "label": "EWC, strong"}]
    assert document["training"] == {"steps": 2} and document["seeds"] == [7]
    assert lines["fine-tuning-class"].document()["training"] == {"steps": 3}


def test_a_table_is_run_and_written_and_gone_on_with(tiny, tmp_path):
    out, said = tmp_path, io.StringIO()
    reproduce(tiny, out, Console(file=said, width=200), jobs=1, only=["fine-tuning-class"])
    assert "1 of 1: fine-tuning-class: " in said.getvalue()
    page = (tmp_path / "RESULTS.md").read_text()
    assert "| EWC, strong | not run yet |" in page and "Not run yet: `perdure reproduce split-mnist`" in page
    first = Results.read(folder(out, list(load(tiny).lines())[1]))
    reproduce(tiny, out, Console(file=said), jobs=2)
    again = Results.read(folder(out, list(load(tiny).lines())[1]))
    assert (again.cells, again.measured.cells) == (first.cells, first.measured.cells)  # to the second: not run again
    results = Results.read(place(out, load(tiny)))
    assert {(c.method, c.scenario, c.seed) for c in results.cells} == {
        ("fine-tuning", "task", 0), ("fine-tuning", "task", 1),
        ("fine-tuning", "class", 0), ("fine-tuning", "class", 1),
        ("EWC, strong", "class", 7),
    }  # fmt: skip
    assert all(len(c.inferred or {}) == (c.scenario == "task") for c in results.cells)
    page = (tmp_path / "RESULTS.md").read_text()
    assert "- **EWC, strong**: Too few steps." in page and "strength 2" in page and "steps 2" in page
    found = proof.measured(list(load(tiny).lines())[1], results)
    assert found is not None and re.search(rf"\| fine-tuning \| {found.mean:.1f} ± .* \| 50 ± 100 \| within \|", page)
    assert (place(out, load(tiny)) / "report.html").exists()


def test_a_line_that_was_run_with_other_settings_is_no_current_one(tiny, tmp_path):
    reproduce(tiny, tmp_path, Console(file=io.StringIO()), jobs=1)
    before = (tmp_path / "RESULTS.md").read_text()
    assert proof.OLD not in before.replace(proof.HEAD, "")
    path = Path(tiny)
    path.write_text(path.read_text().replace('"method.strength" = 2.0', '"method.strength" = 3.0'))
    reproduce(tiny, tmp_path, Console(file=io.StringIO()), jobs=1, only=["fine-tuning-class"])
    lines = (tmp_path / "RESULTS.md").read_text().replace(proof.HEAD, "").splitlines()
    row = next(line for line in lines if line.startswith("| EWC, strong |"))
    assert "| run with other settings |" in row and "strength 2" in row  # as it was run
    assert any("methods[0].strength is 2.0 there and 3.0 here" in line for line in lines)
    assert sum(proof.OLD in line for line in lines) == 2
    path.write_text(path.read_text().replace("steps = 3\n", "steps = 4\n"))
    page = "\n".join(proof.section(load(tiny), Results.read(place(tmp_path, load(tiny))), tmp_path).splitlines())
    assert page.count(f"| {proof.OLD} |") == 3 and "training.steps is 3 there and 4 here" in page


def test_variants_of_the_benchmark_are_lines_whose_cells_count_as_seeds(tiny, tmp_path):
    text = (tmp_path / "tiny.toml").read_text()
    pairs = "variants = [{ classes = [[0, 1], [2, 3]] }, { classes = [[4, 5], [6, 7]] }]"
    (tmp_path / "tiny.toml").write_text(pairs + text)
    lines = list(load(tiny).lines())
    assert [line.slug for line in lines][:2] == ["fine-tuning-task-1", "fine-tuning-task-2"] and len(lines) == 6
    assert [line.document()["benchmark"]["classes"] for line in lines[:2]] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    reproduce(tiny, tmp_path, Console(file=io.StringIO()), only=["fine-tuning-task-1", "fine-tuning-task-2"])
    results = Results.read(place(tmp_path, load(tiny)))
    assert [cell.seed for cell in results.cells] == [0, 1, 100, 101]
    assert len({str(cell.accuracy) for cell in results.cells}) == 4
    assert "| fine-tuning |" in (tmp_path / "RESULTS.md").read_text()
    found = proof.measured(lines[0], results)
    assert found is not None and len(found.values) == len(found.seconds) == 4


def test_a_line_that_fails_is_named_at_the_end_and_the_others_are_run(tiny, tmp_path, capsys):
    path = Path(tiny)
    path.write_text(path.read_text().replace('"method.strength" = 2.0', '"method.strenght" = 2.0'))
    assert cli.main(["reproduce", tiny, "--out", str(tmp_path), "--jobs", "1"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of 3 lines failed: ewc-strong-class" in said and "unknown ewc setting 'strenght'" in said
    assert {cell.method for cell in Results.read(place(tmp_path, load(tiny))).cells} == {"fine-tuning"}
    assert cli.main(["reproduce", tiny, "--out", str(tmp_path), "--jobs", "1", "--only", "fine-tuning-task"]) == 0


def test_what_is_not_there_is_refused(tiny, tmp_path):
    with pytest.raises(RequestError, match=r"unknown table 'split-mnits'.*split-mnist"):
        load("split-mnits")
    with pytest.raises(RequestError, match=r"no line of .* is called LwF; there are fine-tuning-task"):
        reproduce(tiny, tmp_path, Console(file=io.StringIO()), only=["LwF"])
    bad = tmp_path / "bad.toml"
    bad.write_text("title = 'x'")
    with pytest.raises(RequestError, match="is no table"):
        load(str(bad))


def test_nothing_run_is_nothing_gathered(tiny, tmp_path):
    assert gather(load(tiny), tmp_path) is None


def test_the_wrong_fisher_squares_the_mean_of_a_batch_and_is_offered_to_nobody():
    asked = "from perdure import methods, cli; cli.main(['list', 'methods']); print('ewc-batched' in methods.METHODS)"
    said = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout
    assert said.endswith("False\n") and "batched" not in said
    learner = Learner(models.mlp(12, ()), wrong.BatchedEWC(normalise=False), scenario="class", batch_size=32)
    task = small_stream(tasks=1, rows=200)[0]
    learner.learn(task)
    model, found = learner.model, learner.method.importance["head.weights.0"]
    x, y = task.train.read(torch.arange(200)), task.train.positions(task.classes)
    whole = torch.autograd.grad(functional.cross_entropy(model(x), y), model.head.weights[0])[0].square()
    each = torch.stack([
        torch.autograd.grad(functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]), model.head.weights[0])[0]
        for i in range(200)
    ]).square().mean(0)  # fmt: skip
    # Two batches (128 and 72 rows): near the square of the whole mean, far from the mean of squares.
    assert whole.sum() < found.sum() < each.sum() / 3


def test_another_librarys_numbers_stand_under_ours(tmp_path):
    row = {"label": "EWC", "scenario": "class", "accuracy": 0.5, "learnt": 0.9, "seconds": 10.0}
    file = {"library": "Other 1.0", "rows": [{**row, "seed": 0}, {**row, "seed": 1, "accuracy": 0.6}]}
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "others.json").write_text(json.dumps(file))
    others = proof.Others.read(tmp_path / "t" / "others.json")
    assert others is not None and proof.Others.read(tmp_path / "none.json") is None
    page = "\n".join(others.table("class", "python other.py"))
    assert "| EWC | 55.0 ± 7.1 | 90.0 ± 0.0 | 2 | 10 |" in page and "`python other.py`" in page
    assert list(others.table("task", "")) == []


def test_no_worker_outlives_a_killed_parent(tiny, tmp_path):
    text = (tmp_path / "tiny.toml").read_text().replace("steps = 3", "steps = 100000")
    (tmp_path / "tiny.toml").write_text(text)
    words = [sys.executable, "-m", "perdure.cli", "reproduce", tiny, "--out", str(tmp_path), "--jobs", "1"]
    parent = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    state = place(tmp_path, load(tiny)) / "lines" / "fine-tuning-task" / "config.json"
    begun = time.monotonic()
    while not state.exists() and time.monotonic() - begun < 60:
        time.sleep(0.1)
    assert state.exists()
    parent.kill()
    parent.wait()
    begun, lock = time.monotonic(), state.parent / ".lock"
    while held(lock) and time.monotonic() - begun < 30:
        time.sleep(0.1)
    assert not held(lock)


def held(lock: Path) -> bool:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
