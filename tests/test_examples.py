"""Every example runs, in small form, and is short."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.experiment.results import Results
from perdure.store.store import Store

ROOT = Path(__file__).parents[1]
LINES = 60

# The script, its data, its other words; and how many learners it compares.
STUDIES = [
    ("language.py", "imdb", ["--small", "--seeds", "1"], 9),
    ("medicine.py", "heart_disease", ["--small", "--seeds", "2"], 6),
]


# The script, its data, its other words; and how many versions it makes.
STORES = [
    ("digits_in_production.py", None, ["--small"], 5),
    ("reviews_in_production.py", "imdb", ["--small"], 10),
    ("hospitals_in_production.py", "heart_disease", [], 4),
    ("hospitals_in_production.py", "heart_disease", ["--no-rows-kept"], 4),
]


def run(script, *words):
    """What an example says; its own folder is where Python looks first, as for its users."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / script), *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def there(request):
    """The folder of a data set, asked of the folder of all real data only where one is needed; skips without."""
    return lambda data: request.getfixturevalue("data_folder") / data


def judges_every_patient_and_no_group_that_is_too_small(out):
    lines = [line.strip("| ").split(" | ") for line in (out / "patients.md").read_text().splitlines()]
    found = {tuple(line[:3]): line[3:] for line in lines[2:]}
    assert len(found) == 6 * 4 * 4
    for (_, _, hospital), cells in found.items():
        small = hospital == "switzerland"
        assert (cells[1] == "8 patients, not judged") == (cells[2] == "8 patients, not judged") == small
        assert "not judged" not in "".join([cells[0], *cells[3:]])


@pytest.mark.parametrize(("script", "data", "words", "learners"), STUDIES, ids=[study[0] for study in STUDIES])
def test_a_study_runs_in_small_form(script, data, words, learners, tmp_path, there):
    said = run(script, there(data), *words, "--out", tmp_path)
    results = Results.read(tmp_path)
    assert len({cell.method for cell in results.cells}) == learners
    assert all(cell.complete and cell.metrics.average_accuracy > 0 for cell in results.cells)
    assert sum(cell.upper_bound for cell in results.cells) == int(words[words.index("--seeds") + 1])
    assert "| method | seeds | average accuracy |" in said
    assert "<svg" in (tmp_path / "picture.svg").read_text()
    if script == "medicine.py":
        judges_every_patient_and_no_group_that_is_too_small(tmp_path)


@pytest.mark.parametrize(("script", "data", "words", "versions"), STORES)
def test_a_store_of_real_data_goes_through_all_its_updates(script, data, words, versions, tmp_path, there):
    said = run(script, *([] if data is None else [there(data)]), *words, "--out", tmp_path)
    name = script.removesuffix("_in_production.py")
    events = Store(name, tmp_path / "store").history()
    made = [event for event in events if event["event"] in ("promoted", "refused")]
    assert [event["version"] for event in made] == list(range(1, versions + 1))
    assert made[0]["event"] == "promoted" and ("rolled back", 1) in [
        (event["event"], event["version"]) for event in events
    ]
    assert ("-drawn" in said) == ("--no-rows-kept" in words)
    (answers,) = tmp_path.glob("answers.*")
    assert answers.stat().st_size > 1000
    assert "exam" in (tmp_path / f"{name}.html").read_text() and (tmp_path / "fine-tuned.html").exists()


def test_no_text_of_the_reviews_is_learnt_and_asked(monkeypatch, there):
    data = there("imdb")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from topics import reviews

    seen = set()
    parts = [reviews(data / f"{name}.parquet", seen) for name in ("train", "test")]
    assert [len(part) for part in parts] == [25000 - 96, 25000 - 123 - 199]
    texts = [" ".join(text.split()).casefold() for part in parts for text in part["text"].to_pylist()]
    assert len(set(texts)) == len(texts) == len(seen)


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(script):
    assert len(script.read_text().splitlines()) <= LINES
