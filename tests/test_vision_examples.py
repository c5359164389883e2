"""The examples of vision run in small form, on photographs made here in the schema of CIFAR-10's files."""

import io
import runpy
import sys
from pathlib import Path

import pytest
import torch

from perdure import datasets
from perdure.corruptions import Corruption
from perdure.experiment.benchmarks import BENCHMARKS
from perdure.experiment.results import Results
from perdure.experiment.study import course

EXAMPLES = Path(__file__).parents[1] / "examples"
SEEDS = {"vision": 1, "road": 2}
METHODS = {
    "vision": ["fine-tuning", "EWC", "LwF", "replay, 200 rows", "DER++, 200 rows", "joint"],
    "road": ["fine-tuning", "EWC", "MAS", "LwF", "replay, 500 rows", "DER++, 500 rows", "joint"],
}


def photographs(rows, seed):
    """A table of PNG images 32 x 32 in colour, ten labels in turn; a label has a colour of its own."""
    pa, image = pytest.importorskip("pyarrow"), pytest.importorskip("PIL.Image")
    draws, items = torch.Generator().manual_seed(seed), []
    for row in range(rows):
        label = row % 10
        colour = torch.tensor([25 * label, 250 - 25 * label, 90 * (label % 3)])
        pixels = (colour + torch.randint(0, 60, (32, 32, 3), generator=draws)).clamp(0, 255).to(torch.uint8)
        file = io.BytesIO()
        image.fromarray(pixels.numpy()).save(file, "PNG")
        items.append({"bytes": file.getvalue(), "path": None})
    return pa.table({"img": items, "label": [row % 10 for row in range(rows)]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    parquet, path = pytest.importorskip("pyarrow.parquet"), tmp_path_factory.mktemp("cifar10")
    parquet.write_table(photographs(300, 0), path / "train.parquet")
    parquet.write_table(photographs(60, 1), path / "test.parquet")
    return path


@pytest.mark.parametrize("name", METHODS)
def test_it_runs_in_small_form(name, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", [name, str(folder), "--small", "--seeds", str(SEEDS[name]), "--out", str(tmp_path)]
    )
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    results = Results.read(tmp_path)
    assert [(cell.method, cell.seed) for cell in results.cells] == [
        (m, s) for s in range(SEEDS[name]) for m in METHODS[name]
    ]
    assert all(cell.complete for cell in results.cells)
    assert [cell.upper_bound for cell in results.cells] == SEEDS[name] * ([False] * (len(METHODS[name]) - 1) + [True])
    for method in METHODS[name]:
        assert f"| {method} | {SEEDS[name]} |" in said
    assert (tmp_path / "report.html").exists() and "</svg>" in (tmp_path / "picture.svg").read_text()
    if name == "road":
        assert results.benchmark.tasks == ["clear", "fog", "night", "rain", "blur"]
        assert set(results.benchmark.train_rows) == {24} and set(results.benchmark.test_rows) == {24}
        assert course(results, "clear") in said and "first task" in (tmp_path / "clear.svg").read_text()
    else:
        assert results.benchmark.tasks == ["0, 1", "2, 3", "4, 5", "6, 7", "8, 9"]
        assert all(len(cell.looked["kinds told"]) == 5 for cell in results.cells)
        for cell in results.cells:  # of two answers instead of ten, more are right
            assert cell.looked["kinds told"][-1] >= 100 * cell.metrics.average_accuracy


def test_the_python_of_its_page_runs():
    page = (EXAMPLES.parent / "docs" / "vision.md").read_text()
    (block,) = [part.split("```")[0] for part in page.split("```python\n")[1:]]
    names = {}
    exec(compile(block, "vision.md", "exec"), names)
    assert [task.name for task in names["stream"]] == ["clear", "night", "rain"]


@pytest.mark.parametrize("name", METHODS)
def test_its_script_is_at_most_60_lines(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 60


@pytest.mark.parametrize("name", METHODS)
def test_missing_data_is_a_clear_sentence(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, str(tmp_path)])
    with pytest.raises(ValueError, match=r"holds no train\*.parquet; pass the folder"):
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def test_the_road_is_a_benchmark_by_name(folder):
    stream = BENCHMARKS["corrupted-cifar10"].build(path=folder, conditions=["night", "fog"], severity=5, apart=False)
    assert [(task.name, len(task.train), len(task.test)) for task in stream] == [("night", 300, 60), ("fog", 300, 60)]
    clear = datasets.cifar10(folder).test.read(slice(0, 60))
    assert torch.equal(stream[0].test.read(slice(0, 60)), Corruption("night", 5)(clear))
    assert {len(task.train) for task in BENCHMARKS["corrupted-cifar10"].build(path=folder)} == {60}
