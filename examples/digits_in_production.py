"""A store of digits: five updates, each brings two new digits; then history, roll back and answers.

    python examples/digits_in_production.py runs/digits

The digits ship inside the package. A store that is fine-tuned only runs beside it, to see what it forgets.
"""

import io
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import torch
from PIL import Image

from perdure import datasets
from perdure.cli import main
from perdure.data import Rows


def png(pixels: torch.Tensor) -> bytes:
    """One grey image, [28, 28], as a file would hold it."""
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    return file.getvalue()


def write(rows: Rows, digits: list[int], path: Path) -> None:
    """The rows of some digits as Parquet, in the schema of the hub's page of MNIST."""
    labels = rows.labels
    index = [row for row, label in enumerate(labels) if label in digits]
    images = [{"bytes": png(image[0]), "path": None} for image in rows.read(torch.tensor(index))]
    path.parent.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(pa.table({"image": images, "label": [labels[row] for row in index]}), path)


def run(*words: str) -> None:
    """A command of Perdure, shown and run."""
    print("$ perdure", *words, flush=True)
    main(words)


out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/digits")
mnist = datasets.mnist()
for number in range(5):
    write(mnist.train, [2 * number, 2 * number + 1], out / f"{number + 1}.parquet")
write(mnist.test, list(range(10)), out / "new.parquet")

store = ["--store", str(out / "store")]
fine_tuned = ["--set", "method.name=finetune", "--set", "rules.tolerance=1"]
for name, settings in (("digits", ["--set", "rules.tolerance=0.05"]), ("fine-tuned", fine_tuned)):
    run("init", name, *store, "--recipe", "image", "--data", str(out / "1.parquet"), *settings)
    for number in range(2, 6):
        run("update", name, *store, str(out / f"{number}.parquet"), "--accept-shift")
    run("history", name, *store, "--report", str(out / f"{name}.html"))
run("diff", "digits", *store, "1", "5")
run("rollback", "digits", *store)
run("rollback", "digits", "5", *store)
run(
    "predict", "digits", *store, str(out / "new.parquet"), "-o", str(out / "answers.parquet"), "--min-confidence", "0.6"
)
answers = pa.parquet.read_table(out / "answers.parquet")
right = sum(a == b for a, b in zip(answers["prediction"].to_pylist(), answers["label"].to_pylist(), strict=True))
print(f"{100 * right / answers.num_rows:.1f} % of {answers.num_rows} new digits answered rightly")
