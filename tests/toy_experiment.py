"""A stream of two tasks that learns in no time, under the name "toy" in the table of benchmarks."""

import numpy as np
import pytest

from perdure.datasets import arrays
from perdure.experiment.benchmarks import BENCHMARKS, Benchmark
from perdure.streams import Stream, split

TOML = """
name = "toy-run"
benchmark = { name = "toy", rows = 40 }
scenarios = ["class", "task"]
methods = [
  "finetune",
  { name = "ewc", strength = 10.0, label = "EWC strong" },
  { parts = ["replay", { name = "lwf" }] },
]
seeds = [0]
[training]
batch_size = 8
epochs = 2
optimizer = { name = "adam", lr = 0.02 }
"""


def toy(rows: int = 40, tasks: int = 2) -> Stream:
    """Four classes of Gaussian blobs."""
    random = np.random.default_rng(7)
    labels = np.arange(rows) % 4
    centres = random.normal(size=(4, 6)) * 3
    x = (centres[labels] + random.normal(size=(rows, 6))).astype(np.float32)
    return split(arrays(x, labels, x[: rows // 2], labels[: rows // 2], name="toy"), tasks)


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the toy into the table."""
    row = Benchmark(toy, ("task", "class"), {"name": "mlp", "hidden": [8]}, (6,), 4)
    monkeypatch.setitem(BENCHMARKS, "toy", row)
