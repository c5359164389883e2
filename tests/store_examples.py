"""Small tables to begin stores with: clouds of points, each label around its own place."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from perdure import recipes
from perdure.store.store import Store
from perdure.store.update import Outcome

KEY = "5a" * 32
LABEL = "kind"


def clouds(labels: list[str], rows: int = 400, seed: int = 0, noise: float = 0.6) -> pa.Table:
    """`rows` rows of each label, in random order, about the corner of a cube that its letter names."""
    draws = np.random.default_rng(seed)
    names = np.repeat(labels, rows)
    centres = {label: np.array([ord(label[0]) >> bit & 1 for bit in range(4)]) * 4.0 for label in labels}
    x = np.stack([centres[name] for name in names]) + draws.normal(size=(len(names), 4)) * noise
    order = draws.permutation(len(names))
    columns = {f"x{i}": x[order, i] for i in range(4)}
    return pa.table({**columns, LABEL: names[order]})


def begin(root: Path, table: pa.Table, **settings: Any) -> tuple[Store, Outcome]:
    """A store of clouds."""
    settings = {"key": KEY, "training": {"epochs": 5, "batch_size": 64}, **settings}
    return Store.init("clouds", table, recipe=recipes.build({"name": "tabular", "label": LABEL}), root=root, **settings)
