"""Rows as a data set of the Trainer gives them (dicts of numbers, lists and arrays) as columns of tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perdure.data import Batch, Columns
from perdure.memory import Column

LABELS = ("labels", "label", "label_ids")
LENGTH = ".length"

Features = list[dict[str, Any]]


class Codec:
    """Turns features into columns that a memory can keep, and gives equal features back.

    A number is a column [n]. A list, or an array or tensor, is a column [n, longest, ...] filled up with zeros beside a
    column NAME.length [n], so that what comes back has the length that it had, and the collator pads it anew. Kinds and
    types are those of the first row seen; the label is y, int64 [n], or float32 [n, k] for dense objectives.

    Raises ValueError for a row without a label, and TypeError for values that are no numbers.
    """

    def __init__(self, dense: bool) -> None:
        self.dense = dense
        self.kinds: dict[str, str] = {}  # name: "number", "list", "array" or "tensor"
        self.label = ""

    def encode(self, features: Sequence[Any]) -> tuple[dict[str, Tensor], Tensor]:
        """Columns and labels of rows that came from a data set."""
        rows = [_named(row) for row in features]
        if not self.kinds:
            self.label = self._label_of(rows[0])
            self.kinds = {name: _kind(name, value) for name, value in rows[0].items()}
        for row in rows:
            if row.keys() != self.kinds.keys():
                raise ValueError(f"a row has columns {sorted(row)}, and rows before it had {sorted(self.kinds)}")
        columns: dict[str, Tensor] = {}
        for name, kind in self.kinds.items():
            if name == self.label:
                continue
            values = [_tensor(name, row[name]) for row in rows]
            columns[name] = torch.stack(values) if kind == "number" else _padded(values)
            if kind != "number":
                columns[name + LENGTH] = torch.tensor([len(value) for value in values])
        return columns, self._labels([row[self.label] for row in rows])

    def decode(self, x: Columns | Column, y: Tensor) -> Features:
        """The rows again, as the collator takes them."""
        assert isinstance(x, dict)
        table = {name: column.cpu() for name, column in x.items()}
        labels = self._answers(y.cpu())
        names = [name for name in self.kinds if name != self.label]
        return [
            {name: self._value(name, table, row) for name in names} | {self.label: label}
            for row, label in enumerate(labels)
        ]

    def state(self) -> list[Any]:
        """Kinds and the label's name."""
        return [dict(self.kinds), self.label]

    def load_state(self, state: list[Any]) -> None:
        """Puts back what `state` gave."""
        self.kinds, self.label = dict(state[0]), state[1]

    def _label_of(self, row: Mapping[str, Any]) -> str:
        found = [name for name in LABELS if name in row]
        if not found:
            raise ValueError(f"a row needs a label, called {' or '.join(LABELS)}, and has {sorted(row)}")
        return found[0]

    def _labels(self, values: list[Any]) -> Tensor:
        labels = torch.stack([torch.as_tensor(value) for value in values])
        if self.dense:
            return labels.float().reshape(len(labels), -1)
        if labels.ndim != 1 or labels.is_floating_point():
            raise ValueError(
                f"labels have shape {list(labels.shape)} and type {labels.dtype}; methods need one whole number a row: "
                'a label a token is not for them, and floats need objective="regression" or "multi-label"'
            )
        return labels.long()

    def _answers(self, y: Tensor) -> list[Any]:
        kind = self.kinds[self.label]
        if kind == "number":
            return [value if isinstance(value, int | float) else value[0] for value in y.tolist()]
        return [_as(kind, row) for row in y]

    def _value(self, name: str, table: dict[str, Tensor], row: int) -> Any:
        value = table[name][row]
        if self.kinds[name] == "number":
            return value.item()
        return _as(self.kinds[name], value[: int(table[name + LENGTH][row])])


def whole(x: Columns, y: Tensor, task: int) -> Batch:
    """A batch of encoded rows."""
    return Batch(x=x, y=y, task=torch.full((len(y),), task))


def _named(row: Any) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise TypeError(f"a row of the train data set is a {type(row).__name__}; methods need a dict of named values")
    return {str(name): value for name, value in row.items() if value is not None}


def _kind(name: str, value: Any) -> str:
    if isinstance(value, Tensor):
        return "tensor" if value.ndim else "number"
    if isinstance(value, np.ndarray):
        return "array" if value.ndim else "number"
    return "list" if isinstance(value, list | tuple) else "number"


def _tensor(name: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"column {name!r} holds a {type(value).__name__} that is no number and no regular list of numbers, which a "
            f"memory cannot keep: turn it into numbers before training ({error})"
        ) from error


def _padded(values: list[Tensor]) -> Tensor:
    longest = max(len(value) for value in values)
    full = values[0].new_zeros((len(values), longest, *values[0].shape[1:]))
    for row, value in enumerate(values):
        full[row, : len(value)] = value
    return full


def _as(kind: str, value: Tensor) -> Any:
    if kind == "tensor":
        return value
    return value.numpy() if kind == "array" else value.tolist()
