"""Comparing runs: means, intervals and verdicts that can be checked by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from perdure.experiment.compare import compare
from perdure.experiment.results import Results, schema
from perdure.experiment.settings import RequestError

DOCS = Path(__file__).parents[1] / "docs"


def write(folder: Path, scores: dict[str, dict[int, float]], **changes: Any) -> Path:
    """A run folder whose methods reached these average accuracies by seed."""
    document = json.loads((DOCS / "results.example.json").read_text()) | changes
    cell, taken = document["cells"][0], document["measured"]["cells"][0]
    keys = [(method, seed) for method, found in scores.items() for seed in found]
    document["cells"] = [
        cell
        | {"method": method, "seed": seed, "upper_bound": method == "joint"}
        | {"metrics": cell["metrics"] | {"average_accuracy": scores[method][seed]}}
        for method, seed in keys
    ]
    document["measured"]["cells"] = [
        taken | {"method": method, "seed": seed, "train_seconds": 4.0 + seed} for method, seed in keys
    ]
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(document))
    return folder


def rows(table: str) -> dict[str, dict[str, str]]:
    """The lines of a Markdown table by run and method."""
    head, _, *lines = [[part.strip() for part in line.strip("|").split("|")] for line in table.strip().split("\n")]
    found = [dict(zip(head, line, strict=True)) for line in lines]
    return {f"{line['run']}/{line['method']}": line for line in found}


def test_means_and_intervals_are_those_of_the_seeds(tmp_path: Path):
    run = write(tmp_path / "a", {"replay": {0: 0.90, 1: 0.92, 2: 0.94}})
    line = rows(compare([run]))["a/replay"]
    # t(0.975, 2) = 4.3027, s = 0.02, n = 3: half = 4.3027 * 0.02 / sqrt(3) = 0.0497
    assert line["average accuracy"] == "92.0 ± 5.0"
    assert line["forgetting"] == "5.8 ± 0.0"
    assert line["backward transfer"] == "-5.8 ± 0.0"
    assert line["train s"] == "5.0 ± 2.5"
    assert line["memory MB"] == "1.60"
    assert line["seeds"] == "3"


def test_a_small_difference_that_is_the_same_in_every_seed_is_no_noise(tmp_path: Path):
    scores = {"best": {0: 0.90, 1: 0.80, 2: 0.70}, "worse": {0: 0.89, 1: 0.79, 2: 0.69}}
    line = rows(compare([write(tmp_path / "a", scores)]))["a/worse"]
    assert line["to the best"] == "-1.0 ± 0.0 (paired, 3 seeds)"


def test_pairs_are_matched_by_seed_not_by_order(tmp_path: Path):
    scores = {"best": {1: 0.80, 0: 0.90, 2: 0.70}, "worse": {2: 0.69, 0: 0.89, 1: 0.79}}
    line = rows(compare([write(tmp_path / "a", scores)]))["a/worse"]
    assert line["to the best"] == "-1.0 ± 0.0 (paired, 3 seeds)"


def test_a_difference_smaller_than_its_interval_is_within_noise(tmp_path: Path):
    scores = {"best": {0: 0.90, 1: 0.80, 2: 0.70}, "worse": {0: 0.85, 1: 0.83, 2: 0.69}}
    line = rows(compare([write(tmp_path / "a", scores)]))["a/worse"]
    # differences -5, +3, -1: mean -1, s = 4, half = 4.3027 * 4 / sqrt(3) = 9.94
    assert line["to the best"] == "-1.0 ± 9.9 (within noise, paired, 3 seeds)"


def test_runs_without_common_seeds_are_compared_by_welch(tmp_path: Path):
    first = write(tmp_path / "a", {"replay": {0: 0.90, 1: 0.92}})
    second = write(tmp_path / "b", {"replay": {5: 0.50, 6: 0.52}})
    line = rows(compare([first, second]))["b/replay"]
    # v = 2 * 0.0001 = 0.0002 in total, 2 degrees of freedom: half = 4.3027 * sqrt(0.0002) = 0.0608
    assert line["to the best"] == "-40.0 ± 6.1 (Welch)"


def test_one_seed_decides_nothing(tmp_path: Path):
    line = rows(compare([write(tmp_path / "a", {"best": {0: 0.9}, "worse": {0: 0.8}})]))["a/worse"]
    assert line["to the best"] == "-10.0; noise unknown, one seed"


def test_an_upper_bound_is_never_the_best(tmp_path: Path):
    found = rows(compare([write(tmp_path / "a", {"joint": {0: 0.99, 1: 0.99}, "replay": {0: 0.9, 1: 0.9}})]))
    assert found["a/joint"]["to the best"] == "upper bound, sees all"
    assert found["a/replay"]["to the best"] == "best"


def test_another_benchmark_is_another_group_with_a_best_of_its_own(tmp_path: Path):
    first = write(tmp_path / "a", {"replay": {0: 0.9}})
    benchmark = json.loads((DOCS / "results.example.json").read_text())["benchmark"] | {"name": "permuted-mnist"}
    second = write(tmp_path / "b", {"replay": {0: 0.5}}, benchmark=benchmark)
    found = rows(compare([first, second]))
    assert [line["to the best"] for line in found.values()] == ["best", "best"]
    assert [line["benchmark"] for line in found.values()] == ["split-mnist tasks=5", "permuted-mnist tasks=5"]


def test_unfinished_cells_do_not_count(tmp_path: Path):
    run = write(tmp_path / "a", {"replay": {0: 0.9, 1: 0.1}})
    document = json.loads((run / "results.json").read_text())
    document["cells"][1] |= {"complete": False, "metrics": None}
    (run / "results.json").write_text(json.dumps(document))
    line = rows(compare([run]))["a/replay"]
    assert (line["average accuracy"], line["seeds"], line["train s"]) == ("90.0", "1", "4.0")


def test_the_example_is_read_and_written_without_a_change(tmp_path: Path):
    Results.read(DOCS / "results.example.json").write(tmp_path / "copy.json")
    before, after = (json.loads(path.read_text()) for path in (DOCS / "results.example.json", tmp_path / "copy.json"))
    assert before == after


def test_the_schema_in_the_documentation_is_that_of_the_models():
    assert (DOCS / "results.schema.json").read_text() == schema(), "write it anew: perdure schema results"


def test_a_newer_schema_is_refused_with_a_sentence(tmp_path: Path):
    run = write(tmp_path / "a", {"replay": {0: 0.9}}, schema=2)
    with pytest.raises(RequestError, match="has schema 2, and this perdure reads up to 1; upgrade perdure"):
        Results.read(run)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}', '{"schema": 1, "nonsense": 1}'])
def test_what_is_no_results_file_is_refused_with_a_sentence(tmp_path: Path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(RequestError, match="is not"):
        Results.read(tmp_path)


def test_a_number_that_is_not_finite_is_neither_read_nor_written(tmp_path: Path):
    run = write(tmp_path / "a", {"replay": {0: float("nan")}})
    assert "NaN" in (run / "results.json").read_text()
    with pytest.raises(RequestError, match="average_accuracy"):
        Results.read(run)


# ---- at an equal budget ----


def with_budget(folder: Path, scores: dict[str, dict[int, float]], spent: dict[str, int], **budget: float) -> Path:
    """A run whose methods used up so many multiply-adds in two tasks."""
    run = write(folder, scores)
    document = json.loads((run / "results.json").read_text())
    document["config"]["training"] = {"budget": budget}
    document["benchmark"] |= {"tasks": ["a", "b"], "train_rows": [1, 1], "test_rows": [1, 1]}
    for cell in document["cells"]:
        cell["multiply_adds"] = spent[cell["method"]]
    (run / "results.json").write_text(json.dumps(document))
    return run


def test_what_took_more_than_its_budget_is_not_ranked(tmp_path: Path):
    scores = {"dear": {0: 0.95, 1: 0.96}, "fair": {0: 0.90, 1: 0.92}, "cheap": {0: 0.80, 1: 0.82}}
    spent = {"dear": 2200, "fair": 2090, "cheap": 1000}
    table = compare([with_budget(tmp_path / "a", scores, spent, multiply_adds=1000)], equal_budget=True)
    found = rows(table)
    assert [line.split("/")[1] for line in found] == ["fair", "cheap", "dear"]
    assert found["a/fair"]["to the best"] == "best"
    assert [line["of the budget"] for line in found.values()] == ["104 %", "50 %", "110 %"]
    assert "of the budget" not in compare([tmp_path / "a"])


def test_seconds_of_training_and_consolidation_count(tmp_path: Path):
    run = with_budget(tmp_path / "a", {"replay": {0: 0.9, 2: 0.9}}, {"replay": 0}, seconds=5)
    document = json.loads((run / "results.json").read_text())
    for part in document["measured"]["cells"]:
        part["consolidate_seconds"] = 1.0  # training takes 4 and 6
    (run / "results.json").write_text(json.dumps(document))
    assert rows(compare([run], equal_budget=True))["a/replay"]["of the budget"] == "60 %"


def test_runs_without_a_budget_or_with_another_are_refused(tmp_path: Path):
    scores, spent = {"replay": {0: 0.9, 1: 0.9}}, {"replay": 10}
    one, other = (with_budget(tmp_path / str(n), scores, spent, multiply_adds=n) for n in (1, 2))
    with pytest.raises(RequestError, match="budgets differ"):
        compare([one, other], equal_budget=True)
    with pytest.raises(RequestError, match="without a budget"):
        compare([one, write(tmp_path / "free", scores)], equal_budget=True)
