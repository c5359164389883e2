"""A store of heart disease: four hospitals, one update each; a store that is fine-tuned only runs beside it.

    python examples/hospitals_in_production.py data/heart_disease [--no-rows-kept] [--out runs/hospitals]

A label is "disease" where the file's `num` is above 0. `chol` is 0 where it was not measured: in all of Switzerland,
and 49 times in va. Sensitivity and specificity after the last update stand with exact 95 % intervals (Clopper and
Pearson 1934). With --no-rows-kept no patient is stored: earlier hospitals are judged on rows drawn from statistics.
"""

import argparse
from pathlib import Path

import pyarrow.parquet
from hospitals import HOSPITALS, of, patients
from stores import run, teach

from perdure.metrics import proportion_interval
from perdure.store.store import Store

WORDS = {"disease": "sensitivity", "none": "specificity"}


def share(right: list[bool], what: str) -> str:
    """A share with its interval; groups of fewer than 30 patients are counted and not judged."""
    if len(right) < 30:
        return f"{what}: {len(right)} patients, not judged"
    low, high = proportion_interval(sum(right), len(right))
    return f"{what} {100 * sum(right) / len(right):.0f} % ({100 * low:.0f} to {100 * high:.0f}, {len(right)} patients)"


asked = argparse.ArgumentParser()
asked.add_argument("data", type=Path)
asked.add_argument("--no-rows-kept", action="store_true")
asked.add_argument("--out", type=Path, default="runs/hospitals")
asked = asked.parse_args()

out = asked.out
out.mkdir(parents=True, exist_ok=True)
files = [out / f"{hospital}.parquet" for hospital in HOSPITALS]
for hospital, file in zip(HOSPITALS, files, strict=True):
    pyarrow.parquet.write_table(of(patients(asked.data), hospital), file)
recipe = ["--recipe", "tabular", "--label", "diagnosis", "--ignore", "hospital", "--missing", "chol=0"]
teach("hospitals", files, out / "store", [*recipe, "--share", "0.3", *["--no-rows-kept"] * asked.no_rows_kept])
for name in ("hospitals", "fine-tuned"):
    model = Store(name, out / "store")
    for hospital, exam in zip(HOSPITALS, model.exams(), strict=False):
        answers = model.predict(exam.table)
        rows = list(zip(answers["diagnosis"].to_pylist(), answers["prediction"].to_pylist(), strict=True))
        said = [share([a == b for a, b in rows if a == truth], what) for truth, what in WORDS.items()]
        print(f"{name}, {hospital}: {'; '.join(said)}")
run("rollback", "hospitals", "--store", out / "store", "1")
run("predict", "hospitals", "--store", out / "store", files[-1], "-o", out / "answers.csv", "--min-confidence", "0.7")
