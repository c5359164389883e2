"""One torch thread (two are slower on a busy machine, and bits depend on it), and small streams for every test."""

import os
from pathlib import Path

import pytest
import torch

from perdure import Rows, Task

torch.set_num_threads(1)

# These tests need Keras on torch, and the real TensorFlow beside it: make test-keras.
collect_ignore = [] if os.environ.get("KERAS_BACKEND") == "torch" else ["keras"]


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data; skips where there is none."""
    folder = Path(os.environ.get("PERDURE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real data here: set PERDURE_DATA")
    return folder


def blobs(classes: tuple[int, ...], rows: int, seed: int, features: int = 12, spread: float = 1.0) -> Rows:
    """Rows around one fixed centre a class: the same centres for every seed."""
    centres = torch.randn(64, features, generator=torch.Generator().manual_seed(99)) * 2
    draws = torch.Generator().manual_seed(seed)
    y = torch.tensor(classes)[torch.arange(rows) % len(classes)]
    return Rows(centres[y] + spread * torch.randn(rows, features, generator=draws), y)


def small_stream(tasks: int = 3, classes: int = 2, rows: int = 120, seed: int = 0) -> list[Task]:
    """Tasks of new classes each."""
    groups = [tuple(range(i * classes, (i + 1) * classes)) for i in range(tasks)]
    return [
        Task(blobs(group, rows, seed + i), blobs(group, rows, seed + 50 + i), name=f"task {i}")
        for i, group in enumerate(groups)
    ]
