"""A store of film reviews whose language shifts: ten updates by topic and strength of opinion; none brings a new label.

    python examples/reviews_in_production.py data/imdb runs/reviews

A review's topic is the first of TOPICS that a word of it belongs to (see topics.py); what belongs to none is "other".
First come strong opinions (1, 2, 9 or 10 stars), topic by topic, then mild ones. A store that is fine-tuned only runs
beside it.
"""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
from topics import STRONG, topic

from perdure.cli import main

TOPICS = ("horror", "war", "children", "comedy")


def run(*words: str) -> None:
    """A command of Perdure, shown and run."""
    print("$ perdure", *words, flush=True)
    main(words)


data, out = Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "runs/reviews")
out.mkdir(parents=True, exist_ok=True)
reviews = pa.parquet.read_table(data / "train.parquet")
parts: dict[tuple[bool, str], list[int]] = {}
for row, (text, stars) in enumerate(zip(reviews["text"].to_pylist(), reviews["rating"].to_pylist(), strict=True)):
    parts.setdefault((stars not in STRONG, topic(text, TOPICS)), []).append(row)
order = [(mild, name) for mild in (False, True) for name in [*TOPICS, "other"]]
files = [
    out / f"{number:02d}-{'mild' if mild else 'strong'}-{name}.parquet" for number, (mild, name) in enumerate(order, 1)
]
for part, file in zip(order, files, strict=True):
    pa.parquet.write_table(reviews.take(parts[part]), file)

store = ["--store", str(out / "store")]
fine_tuned = ["--set", "method.name=finetune", "--set", "rules.tolerance=1"]
for name, settings in (("reviews", []), ("fine-tuned", fine_tuned)):
    run("init", name, *store, "--recipe", "text", "--label", "label", "--data", str(files[0]), *settings)
    for file in files[1:]:
        run("update", name, *store, str(file), "--accept-shift")
    run("history", name, *store, "--report", str(out / f"{name}.html"))
run("rollback", "reviews", "1", *store)
run("predict", "reviews", *store, str(data / "test.parquet"), "-o", str(out / "answers.parquet"))
