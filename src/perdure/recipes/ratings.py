"""A table of ratings, user, item and stars, into rows; no recipe of a store, which speaks of labels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from perdure.data import Rows
from perdure.models import build
from perdure.recipes.recipe import column
from perdure.recipes.tables import TableError, checked, optional
from perdure.recipes.values import category, number

if TYPE_CHECKING:
    import pyarrow as pa

HALF = 1 << 62  # ids that are whole numbers lie below, hashed ones above


@dataclass(frozen=True)
class Ratings:
    """Columns of users, items and ratings: {"user", "item"} int64 -> float32 [n, 1].

    user, item  columns of names or numbers; 7, 7.0 and "7" are one
    rating      the column of numbers
    time        a column of times or of Unix seconds, for `streams.by_month`; kept as column "time"

    Nothing is fitted: a whole number is its own id, a name is hashed to 62 bits, so that later ids have theirs already.
    `objective` is for bounds: stars from 0.5 to 5 need `Learner(objective="rating:0.5:5")`.
    """

    user: str = "user"
    item: str = "item"
    rating: str = "rating"
    time: str | None = None

    def rows(self, table: pa.Table, rated: bool = True) -> Rows:
        """Inputs and, where `rated`, ratings. Raises TableError for what is missing or no number, and says the row."""
        checked(table)
        x = {"user": _ids(table, self.user), "item": _ids(table, self.item)}
        kept = {} if self.time is None else {"time": _seconds(table, self.time)}
        if not rated:
            return Rows(x, columns=kept)
        return Rows(x, _stars(table, self.rating), columns=kept, classes=[self.rating])

    def network(self, width: int = 16) -> nn.Module:
        """The built-in network for such rows, drawn anew."""
        return build({"name": "ratings", "settings": {"width": width}})


def identity(value: object) -> int | None:
    """The id of a user or item, the same in every process; None for what is missing.

    >>> [identity(value) for value in (7, "7", 7.0, None, -3)]
    [7, 7, 7, None, -3]
    """
    name = category(value)
    if name is None:
        return None
    digits = name.removeprefix("-")
    if digits.isascii() and digits.isdigit() and len(digits) < 19 and -HALF < int(name) < HALF:
        return int(name)
    return HALF | (int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 2)


def _ids(table: pa.Table, name: str) -> Tensor:
    known = dict[Any, int]()
    found = np.empty(table.num_rows, dtype=np.int64)
    for row, value in enumerate(column(table, name).to_pylist()):
        key = (type(value), value)
        if key not in known:
            one = identity(value)
            if one is None:
                raise TableError(f"row {row} has nothing in column {name!r}; drop the row")
            known[key] = one
        found[row] = known[key]
    return torch.from_numpy(found)


def _stars(table: pa.Table, name: str) -> Tensor:
    found = []
    for row, value in enumerate(column(table, name).to_pylist()):
        try:
            one = number(value)
        except ValueError:
            raise TableError(f"column {name!r} holds {value!r} in row {row}, which is no number") from None
        if one is None or not np.isfinite(one):
            raise TableError(f"row {row} has no rating in column {name!r}; drop the row")
        found.append(one)
    return torch.tensor(found, dtype=torch.float32)[:, None]


def _seconds(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    arrow, times = optional("pyarrow"), column(table, name)
    if times.null_count:
        raise TableError(f"column {name!r} holds no time in {times.null_count} rows; drop them")
    try:
        if arrow.types.is_temporal(times.type):
            times = times.cast(arrow.timestamp("s"), safe=False)
        found: npt.NDArray[np.int64] = times.cast(arrow.int64(), safe=False).to_numpy()
    except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError) as error:
        raise TableError(f"column {name!r} is {times.type}, no time and no Unix seconds: {error}") from error
    return found
