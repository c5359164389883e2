"""Tables of numbers and categories: what is missing, and what comes later, has a place from the first update on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from perdure.fields import memory
from perdure.models import build
from perdure.recipes.contents import table_content
from perdure.recipes.kinds import kinds_of, numbers_of
from perdure.recipes.recipe import Recipe, column, fitted
from perdure.recipes.tables import TableError
from perdure.recipes.values import category

if TYPE_CHECKING:
    import pyarrow as pa

CAPACITY = 256  # vectors of a column's categories: 0 is for what is missing, the last for what nobody knows
FARTHEST = 20.0  # standard deviations from the mean, where a number stops


Numbers = npt.NDArray[np.float64]


@dataclass
class Tabular(Recipe):
    """Numbers and categories. x is {"numbers": float32 [n, 2k], "categories": int64 [n, c]}, without what is none of.

    numbers     columns of numbers; default: those that hold numbers and are not named elsewhere
    categories  columns of categories; default: those that hold words or booleans and are not named elsewhere
    ignore      columns to leave out
    missing     column -> values that mean "missing", {"chol": [0]}

    A number is (value - mean) / standard deviation, or where it is missing the median's, and beside it, in the second
    half of the columns, stands 1 where it was missing, else 0: always, as what is never missing now may be later. Mean,
    deviation and median are the first update's training rows'; those of a column that had no value then are the first
    ones that come. A category is a number by order of coming, from 1 to 254; 0 is missing, 255 any that is not known.
    """

    name: ClassVar[str] = "tabular"
    training: ClassVar[dict[str, Any]] = {"epochs": 30, "batch_size": 32, "optimizer": {"name": "adam", "lr": 0.001}}
    learns_values: ClassVar[bool] = True

    numbers: list[str] | None = None
    categories: list[str] | None = None
    ignore: list[str] = field(default_factory=list)
    missing: dict[str, list[Any]] = field(default_factory=dict)
    scales: dict[str, list[float]] = memory(dict)  # column -> mean, deviation, median; [] while it had no value
    known: dict[str, list[str]] = memory(dict)  # column -> its categories, in order of coming

    def __post_init__(self) -> None:
        used = [self.label, *self.ignore, *(self.numbers or []), *(self.categories or [])]
        twice = sorted({name for name in used if used.count(name) > 1})
        if twice:
            raise ValueError(f"the column {twice[0]!r} is named twice among label, numbers, categories and ignore")

    def check_inputs(self, table: pa.Table) -> None:
        """Every column there, numbers finite, categories words, numbers or booleans."""
        numbers, categories = self._columns(table)
        for name in numbers:
            self._numbers(table, name)
        for name in categories:
            self._categories(table, name)
        for name in self.missing:
            if name not in [*numbers, *categories]:
                column(table, name)
                raise TableError(f"missing= has codes for the column {name!r}, which is no input")

    def contents(self, table: pa.Table) -> Iterator[bytes]:
        """The columns that are inputs, by name, each value as a number where it can be read as one."""
        numbers, categories = self._columns(table)
        # A column of numbers is compared by number, one of categories by name: nothing of it is fitted.
        values: dict[str, list[Any]] = {name: self._numbers(table, name) for name in numbers}
        values |= {name: self._categories(table, name) for name in categories}
        rows = zip(*values.values(), strict=True)
        return (table_content(dict(zip(values, row, strict=True))) for row in rows)

    def fit(self, table: pa.Table) -> None:
        """Means, deviations, medians and categories."""
        super().fit(table)
        numbers, categories = self._columns(table)
        self.scales, self.known = {name: [] for name in numbers}, {name: [] for name in categories}
        self.extend(table)

    def extend(self, table: pa.Table) -> None:
        """New categories, as far as there is room; numbers only of columns that had no value yet."""
        self._fitted()
        for name, scale in self.scales.items():
            there = [value for value in self._numbers(table, name) if value is not None]
            if there and not scale:
                self.scales[name] = _scale(np.array(there))
        for name, known in self.known.items():
            come = dict.fromkeys(value for value in self._categories(table, name) if value is not None)
            new = [value for value in come if value not in known]
            known.extend(new[: CAPACITY - 2 - len(known)])

    def inputs(self, table: pa.Table) -> dict[str, Tensor]:
        """The columns, as the class says."""
        self._fitted()
        found = {}
        if self.scales:
            pairs = [_standard(self._numbers(table, name), scale) for name, scale in self.scales.items()]
            both = [*(values for values, _ in pairs), *(gaps for _, gaps in pairs)]
            found["numbers"] = torch.from_numpy(np.stack(both, 1).astype(np.float32))
        if self.known:
            columns = [self._numbered(table, name, known) for name, known in self.known.items()]
            found["categories"] = torch.from_numpy(np.stack(columns, 1))
        return found

    def network(self) -> nn.Module:
        """The built-in network for tables."""
        self._fitted()
        sizes = {"numbers": 2 * len(self.scales), "categories": len(self.known), "capacity": CAPACITY}
        return build({"name": "tabular", "settings": sizes})

    def _fitted(self) -> None:
        fitted(self, bool(self.scales or self.known))

    def _columns(self, table: pa.Table) -> tuple[list[str], list[str]]:
        """Columns of numbers and of categories: the fitted ones, those that are named, or a guess by their types."""
        if self.scales or self.known:
            return list(self.scales), list(self.known)
        taken = {self.label, *self.ignore, *(self.numbers or []), *(self.categories or [])}
        for name in self.ignore:
            column(table, name)
        free = {name: kind for name, kind in kinds_of(table).items() if name not in taken}
        odd = [name for name, kind in free.items() if kind in ("image", "other")]
        if odd and (self.numbers is None or self.categories is None):
            kind = column(table, odd[0]).type
            raise TableError(f"column {odd[0]!r} holds {kind}, neither numbers nor categories; name it in ignore=")
        numbers = self.numbers or ([] if self.numbers is not None else [n for n, k in free.items() if k == "number"])
        words = [n for n, k in free.items() if k == "category"]
        categories = list(words if self.categories is None else self.categories)
        if not numbers and not categories:
            raise TableError(f"no column of {table.column_names} is left to learn from")
        return list(numbers), categories

    def _numbers(self, table: pa.Table, name: str) -> list[float | None]:
        codes = self._codes(name)
        return [None if codes and category(value) in codes else value for value in numbers_of(table, name)]

    def _categories(self, table: pa.Table, name: str) -> list[str | None]:
        codes, found = self._codes(name), []
        for row, value in enumerate(column(table, name).to_pylist()):
            if isinstance(value, dict | list | bytes):
                raise TableError(f"row {row} holds a {type(value).__name__} in column {name!r}, which is no category")
            read = category(value)
            found.append(None if read in codes else read)
        return found

    def _codes(self, name: str) -> set[str | None]:
        return {category(code) for code in self.missing.get(name, [])}

    def _numbered(self, table: pa.Table, name: str, known: list[str]) -> npt.NDArray[np.int64]:
        places: dict[str | None, int] = {value: number for number, value in enumerate(known, 1)}
        places[None] = 0
        return np.array([places.get(value, CAPACITY - 1) for value in self._categories(table, name)], dtype=np.int64)


def _scale(values: Numbers) -> list[float]:
    """Mean, standard deviation (1 where there is none) and median; of the largest numbers, too, finite."""
    unit = float(np.abs(values).max()) or 1.0
    small = values / unit
    spread = float(small.std()) * unit
    return [float(small.mean()) * unit, spread if spread > 1e-12 * unit else 1.0, float(np.median(small)) * unit]


def _standard(values: list[float | None], scale: list[float]) -> tuple[Numbers, Numbers]:
    """Standardised numbers and where they were missing; all 0 for a column that never had a value."""
    gaps = np.array([value is None for value in values], dtype=np.float64)
    if not scale:
        return np.zeros(len(values)), gaps
    mean, spread, median = scale
    filled = np.array([median if value is None else value for value in values])
    with np.errstate(over="ignore"):
        found = filled / spread - mean / spread
    return np.clip(np.nan_to_num(found, posinf=FARTHEST, neginf=-FARTHEST), -FARTHEST, FARTHEST), gaps
