"""A store of heart disease: four hospitals, one update each; no row of an earlier hospital may be kept by default.

    python examples/hospitals_in_production.py data/heart_disease runs/hospitals

A label is "disease" where the file's `num` is above 0. `chol` is 0 where it was not measured: in all of Switzerland,
and 49 times in va. Sensitivity and specificity after the last update stand with exact 95 % intervals (Clopper and
Pearson 1934); groups of fewer than 30 patients are counted and not judged.
"""

import sys
from pathlib import Path

import pyarrow.parquet
from hospitals import HOSPITALS, of, patients

from perdure.cli import main
from perdure.metrics import proportion_interval
from perdure.store.store import Store

LEAST = 30
WORDS = {"disease": "sensitivity", "none": "specificity"}


def run(*words: str) -> None:
    """A command of Perdure, shown and run."""
    print("$ perdure", *words, flush=True)
    main(words)


def share(right: list[bool], what: str) -> str:
    """A share with its interval, where there are enough patients to judge."""
    if len(right) < LEAST:
        return f"{what}: {len(right)} patients, not judged"
    low, high = proportion_interval(sum(right), len(right))
    return f"{what} {100 * sum(right) / len(right):.0f} % ({100 * low:.0f} to {100 * high:.0f}, {len(right)} patients)"


data, out = Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "runs/hospitals")
out.mkdir(parents=True, exist_ok=True)
files = [out / f"{hospital}.parquet" for hospital in HOSPITALS]
for hospital, file in zip(HOSPITALS, files, strict=True):
    pyarrow.parquet.write_table(of(patients(data), hospital), file)

store = ["--store", str(out / "store")]
recipe = ["--recipe", "tabular", "--label", "diagnosis", "--ignore", "hospital", "--missing", "chol=0"]
for name, settings in (
    ("hospitals", []),
    ("fine-tuned", ["--set", "method.name=finetune", "--set", "rules.tolerance=1"]),
):
    run("init", name, *store, *recipe, "--share", "0.3", "--data", str(files[0]), *settings)
    for file in files[1:]:
        run("update", name, *store, str(file), "--accept-shift")
    run("history", name, *store, "--report", str(out / f"{name}.html"))
    model = Store(name, out / "store")
    for hospital, exam in zip(HOSPITALS, model.exams(), strict=False):
        answers = model.predict(exam.table)
        rows = list(zip(answers["diagnosis"].to_pylist(), answers["prediction"].to_pylist(), strict=True))
        said = [share([a == b for a, b in rows if a == truth], what) for truth, what in WORDS.items()]
        print(f"{name}, {hospital}: {'; '.join(said)}")
run("rollback", "hospitals", "1", *store)
run("predict", "hospitals", *store, str(files[-1]), "-o", str(out / "answers.csv"), "--min-confidence", "0.7")
