"""A store of digits: five updates, each brings two new digits; then history, roll back and answers.

    python examples/digits_in_production.py [--small] [--out runs/digits]

The digits ship inside the package. A store that is fine-tuned only runs beside it, to see what it forgets.
"""

import argparse
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import torch
from PIL import Image
from stores import run, teach

from perdure import datasets
from perdure.data import Rows


def png(pixels: torch.Tensor) -> bytes:
    """One grey image, [28, 28], as a file would hold it."""
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    return file.getvalue()


def write(rows: Rows, digits: list[int], most: int | None, path: Path) -> None:
    """The first rows of some digits as Parquet, in the schema of the hub's page of MNIST."""
    labels = rows.labels
    index = [row for row, label in enumerate(labels) if label in digits][:most]
    images = [{"bytes": png(image[0]), "path": None} for image in rows.read(torch.tensor(index))]
    path.parent.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(pa.table({"image": images, "label": [labels[row] for row in index]}), path)


asked = argparse.ArgumentParser()
asked.add_argument("--small", action="store_true", help="300 rows of each update: seconds, to see that it runs")
asked.add_argument("--out", type=Path, default="runs/digits")
asked = asked.parse_args()

mnist, out, most = datasets.mnist(), asked.out, 300 if asked.small else None
for number in range(5):
    write(mnist.train, [2 * number, 2 * number + 1], most, out / f"{number + 1}.parquet")
write(mnist.test, list(range(10)), most, out / "new.parquet")
files = [out / f"{number}.parquet" for number in range(1, 6)]
teach("digits", files, out / "store", ["--recipe", "image"], ["--set", "rules.tolerance=0.05"])

digits = ["digits", "--store", out / "store"]
run("diff", *digits, "1", "2")
run("rollback", *digits, "1")
run("rollback", *digits)
run("predict", *digits, out / "new.parquet", "-o", out / "answers.parquet", "--min-confidence", "0.6")
answers = pa.parquet.read_table(out / "answers.parquet")
right = sum(a == b for a, b in zip(answers["prediction"].to_pylist(), answers["label"].to_pylist(), strict=True))
print(f"{100 * right / answers.num_rows:.1f} % of {answers.num_rows} new digits answered rightly")
