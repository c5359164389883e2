"""A store of film reviews whose language shifts: ten updates by topic and strength of opinion; none brings a new label.

    python examples/reviews_in_production.py data/imdb [--small] [--out runs/reviews]

A review's topic is the first of TOPICS that a word of it belongs to (see topics.py); what belongs to none is "other".
First come strong opinions (1, 2, 9 or 10 stars), topic by topic, then mild ones. A store that is fine-tuned only runs
beside it.
"""

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
from stores import run, teach
from topics import STRONG, topic

TOPICS = ("horror", "war", "children", "comedy")

asked = argparse.ArgumentParser()
asked.add_argument("data", type=Path)
asked.add_argument("--small", action="store_true", help="300 reviews of each update: seconds, to see that it runs")
asked.add_argument("--out", type=Path, default="runs/reviews")
asked = asked.parse_args()

asked.out.mkdir(parents=True, exist_ok=True)
reviews = pa.parquet.read_table(asked.data / "train.parquet")
parts: dict[tuple[bool, str], list[int]] = {}
for row, (text, stars) in enumerate(zip(reviews["text"].to_pylist(), reviews["rating"].to_pylist(), strict=True)):
    parts.setdefault((stars not in STRONG, topic(text, TOPICS)), []).append(row)
files = []
for mild in (False, True):
    for name in [*TOPICS, "other"]:
        files.append(asked.out / f"{len(files) + 1:02d}-{'mild' if mild else 'strong'}-{name}.parquet")
        rows = parts[mild, name]
        pa.parquet.write_table(reviews.take(rows[:: max(1, len(rows) // 300)] if asked.small else rows), files[-1])

small = ["--set", "recipe.buckets=1024"] if asked.small else []
teach("reviews", files, asked.out / "store", ["--recipe", "text", "--label", "label", *small])
store = ["reviews", "--store", asked.out / "store"]
run("rollback", *store, "1")
asked_of = files[0] if asked.small else asked.data / "test.parquet"
run("predict", *store, asked_of, "-o", asked.out / "answers.parquet")
