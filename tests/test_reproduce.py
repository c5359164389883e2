"""Tables of published results: what is compared with what, and that a table is run, gone on with and written."""

import fcntl
import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

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
    plain = {"title": "T", "protocol": "P", "hours": 1.0, "experiment": {}, "sources": {"s": "S"}, "rows": (row,)}
    return Table.model_validate({**plain, **changes}, strict=False)


def ours(*values: float) -> proof.Measured:
    return proof.Measured(values, values, {}, values, 1, len(values))


@pytest.mark.parametrize(
    ("values", "published", "said"),
    [
        ((59.0, 61.0), (60.0, 2.0), "within"),
        ((61.0, 62.0), (60.0, 2.0), "within"),  # 1.5 off, the paper's deviation is 2
        ((62.9, 63.1), (60.0, 2.0), "better, +3.0"),
        ((56.9, 57.1), (60.0, 2.0), "below, -3.0"),
        ((50.0, 60.0), (60.0, 2.0), "within"),  # 5 off, ours is 7
        ((60.0, 60.2), (60.0,), "within"),
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
    assert proof.verdict(line, ours(*values)) == said


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
