"""Columns as they are, for a network of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from perdure.fields import memory
from perdure.recipes.contents import pixel_content, table_content
from perdure.recipes.kinds import kinds_of, numbers_of
from perdure.recipes.pictures import decoded, is_image
from perdure.recipes.recipe import Recipe, column, fitted
from perdure.recipes.tables import TableError

if TYPE_CHECKING:
    import pyarrow as pa

BIGGEST = float(torch.finfo(torch.float32).max)


@dataclass
class Plain(Recipe):
    """Columns of numbers, float32 [n, columns]; or one column of images of one size, uint8 [n, c, h, w]. Nothing else.

    x  the columns in their order, or the column of images; default: the only column of images, else all columns of
       numbers but the label's

    A number that is missing is refused: what to do about it is the network's affair, or the `tabular` recipe's.
    """

    name: ClassVar[str] = "plain"
    training: ClassVar[dict[str, Any]] = {"epochs": 1, "batch_size": 128}

    x: list[str] | str | None = None
    columns: list[str] = memory(list)
    shape: list[int] = memory(list)

    def __post_init__(self) -> None:
        if self.label in ([self.x] if isinstance(self.x, str) else self.x or []):
            raise ValueError(f"the column {self.label!r} is the label and among the inputs too")

    def check_inputs(self, table: pa.Table) -> None:
        """Finite numbers, or images of one size."""
        self._same_shape(self._read(table, self._names(table)))

    def contents(self, table: pa.Table) -> Iterator[bytes]:
        """The numbers by column, or the pixels."""
        names = self._names(table)
        if self._pictured(table, names):
            return (pixel_content(pixels.shape, pixels.tobytes()) for pixels in decoded(table, names[0]))
        columns = [numbers_of(table, name) for name in names]
        rows = zip(*columns, strict=True)
        return (table_content(dict(zip(names, row, strict=True))) for row in rows)

    def fit(self, table: pa.Table) -> None:
        """Which columns."""
        super().fit(table)
        names = self._names(table)
        self.shape = list(self._read(table, names).shape[1:])
        self.columns = names

    def inputs(self, table: pa.Table) -> Tensor:
        """float32 [n, columns], or uint8 [n, c, h, w]."""
        fitted(self, bool(self.columns))
        return self._same_shape(self._read(table, self.columns))

    def network(self) -> nn.Module:
        """None is built in: raises ValueError."""
        raise ValueError("the recipe 'plain' has no network: pass your own, --build mymodule:build")

    def _same_shape(self, found: Tensor) -> Tensor:
        if self.shape and list(found.shape[1:]) != self.shape:
            raise TableError(f"these inputs have the shape {list(found.shape[1:])} a row, the first had {self.shape}")
        return found

    def _names(self, table: pa.Table) -> list[str]:
        if self.columns:
            return self.columns
        if self.x is not None:
            return [self.x] if isinstance(self.x, str) else list(self.x)
        kinds = {name: kind for name, kind in kinds_of(table).items() if name != self.label}
        pictures = [name for name, kind in kinds.items() if kind == "image"]
        found = pictures if len(pictures) == 1 else [name for name, kind in kinds.items() if kind == "number"]
        if not found:
            raise TableError(f"no column of {list(kinds)} holds numbers or images; name the inputs with x=")
        return found

    def _pictured(self, table: pa.Table, names: list[str]) -> bool:
        return len(names) == 1 and is_image(column(table, names[0]).type)

    def _read(self, table: pa.Table, names: list[str]) -> Tensor:
        if self._pictured(table, names):
            return _pictures(table, names[0])
        values = np.array([numbers_of(table, name) for name in names], dtype=np.float64).T
        bad = np.isnan(values) | (np.abs(values) > BIGGEST)
        if bad.any():
            row, place = np.argwhere(bad)[0]
            what = "is missing" if np.isnan(values[row, place]) else f"is {values[row, place]}, too large"
            raise TableError(f"row {row}: column {names[place]!r} {what}; `plain` takes finite numbers only")
        return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))


def _pictures(table: pa.Table, name: str) -> Tensor:
    found = list(decoded(table, name))
    channels = max(len(pixels) for pixels in found)
    for row, pixels in enumerate(found):
        if pixels.shape[1:] != found[0].shape[1:]:
            sizes = f"{list(pixels.shape[1:])}, the first one {list(found[0].shape[1:])}"
            raise TableError(f"the image of row {row} has size {sizes}; bring all images to one size, or use `image`")
    return torch.from_numpy(np.stack([np.repeat(p, channels // len(p), axis=0) for p in found]))
