"""A batch: some labelled rows on one device, and the columns that rows are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Columns = Tensor | dict[str, Tensor]


def chunks(index: Tensor, size: int) -> list[Tensor]:
    """The entries of `index` in order, `size` at a time."""
    return [index[start : start + size] for start in range(0, len(index), size)]


def column_map(fn: Callable[[Tensor], Tensor], x: Columns) -> Columns:
    """Apply `fn` to the tensor, or to every named tensor."""
    return {name: fn(column) for name, column in x.items()} if isinstance(x, dict) else fn(x)


def column_list(x: Columns) -> list[Tensor]:
    """The tensors of `x`, in the order of their names."""
    return [x[name] for name in sorted(x)] if isinstance(x, dict) else [x]


def column_length(x: Columns) -> int:
    """Number of rows."""
    return len(column_list(x)[0])


def column_bytes(x: Columns) -> int:
    """Bytes that the values take, all columns counted."""
    return sum(column.numel() * column.element_size() for column in column_list(x))


def _blank(dtype: torch.dtype) -> float:
    """What an unknown value looks like: NaN where the type has one, else 0."""
    return float("nan") if dtype.is_floating_point else 0


def _join(parts: Sequence[Tensor], name: str, fill: float) -> Tensor:
    """Stack tensors by rows; narrower ones are padded with `fill` at the end of dim 1."""
    dtypes = sorted({str(part.dtype) for part in parts})
    if len(dtypes) > 1:
        raise ValueError(f"cannot join batches: {name} is {' in one and '.join(dtypes)} in another; convert it first")
    width = max((part.shape[1] for part in parts if part.ndim > 1), default=0)
    wide = []
    for part in parts:
        if part.ndim > 1 and part.shape[1] < width:
            gap = part.new_full((len(part), width - part.shape[1], *part.shape[2:]), fill)
            part = torch.cat([part, gap], dim=1)
        wide.append(part)
    return torch.cat(wide)


def _join_inputs(parts: Sequence[Columns]) -> Columns:
    names = {tuple(sorted(part)) if isinstance(part, dict) else None for part in parts}
    if len(names) > 1:
        raise ValueError(f"cannot join batches whose inputs differ in their columns: {sorted(map(str, names))}")
    tables = [part for part in parts if isinstance(part, dict)]
    if tables:
        return {name: _join([table[name] for table in tables], f"x[{name!r}]", 0) for name in tables[0]}
    tensors = [part for part in parts if isinstance(part, Tensor)]
    shapes = sorted({tuple(tensor.shape[1:]) for tensor in tensors})
    if len(shapes) > 1:
        raise ValueError(f"cannot join batches whose rows have different shapes: {shapes}")
    return _join(tensors, "x", 0)


@dataclass
class Batch:
    """Some labelled rows on one device.

    x       tensor or dict of tensors, n rows
    y       int64 [n], the label's position within its task's classes; or float32 [n, k], column j belongs to classes[j]
    task    int64 [n], number of the row's task in `learner.tasks`
    weight  float32 [n]; None means all ones
    target  float32 [n, columns], soft labels over the learner's columns; a row of NaN means: use y
    origin  int64 [n]; None means all 0, the stream; k is the k-th part that added rows
    parts   the largest origin, known without asking the device
    extra   further named columns

    Worked out by the host once all rows are there, and dropped when batches are joined:
    columns the columns of the scores that y stands for, int64 [n] or [n, k] (-1: none)
    allowed bool [n, columns], what a row may answer with; None means every column
    """

    x: Columns
    y: Tensor | None
    task: Tensor
    weight: Tensor | None = None
    target: Tensor | None = None
    origin: Tensor | None = None
    parts: int = 0
    extra: dict[str, Tensor] = field(default_factory=dict)
    columns: Tensor | None = None
    allowed: Tensor | None = None

    def __len__(self) -> int:
        return len(self.task)

    @property
    def fresh(self) -> Tensor:
        """Mask of the rows that come from the stream, bool [n]."""
        if self.origin is None:
            return torch.ones(len(self), dtype=torch.bool, device=self.task.device)
        return self.origin == 0

    def to(self, device: torch.device | str) -> Batch:
        """The same rows on another device."""
        return self._each(lambda column: column.to(device))

    def select(self, index: Tensor) -> Batch:
        """The rows at `index` (whole numbers or a mask)."""
        return self._each(lambda column: column[index])

    def _each(self, fn: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            x=column_map(fn, self.x),
            y=None if self.y is None else fn(self.y),
            task=fn(self.task),
            weight=None if self.weight is None else fn(self.weight),
            target=None if self.target is None else fn(self.target),
            origin=None if self.origin is None else fn(self.origin),
            parts=self.parts,
            extra={name: fn(column) for name, column in self.extra.items()},
            columns=None if self.columns is None else fn(self.columns),
            allowed=None if self.allowed is None else fn(self.allowed),
        )

    @staticmethod
    def past(columns: Mapping[str, Any], origin: int) -> Batch:
        """Rows out of a memory: columns x, y and task, and the part that added them."""
        task = columns["task"]
        return Batch(x=columns["x"], y=columns["y"], task=task, origin=torch.full_like(task, origin), parts=origin)

    @staticmethod
    def cat(batches: Sequence[Batch]) -> Batch:
        """One batch of all rows, in order.

        What a batch lacks is filled in: weight 1, target NaN, origin 0, extra columns NaN (0 for whole numbers).
        Targets and extra columns that are narrower are padded with the same; dict inputs and float y with 0.
        """
        if len(batches) == 1:
            return batches[0]
        labels = [batch.y for batch in batches if batch.y is not None]
        if labels and len(labels) < len(batches):
            raise ValueError("cannot join batches with labels and batches without; give every batch a y")
        names = sorted({name for batch in batches for name in batch.extra})
        return Batch(
            x=_join_inputs([batch.x for batch in batches]),
            y=_join(labels, "y", 0) if labels else None,
            task=torch.cat([batch.task for batch in batches]),
            weight=_fill(batches, [batch.weight for batch in batches], "weight", 1.0),
            target=_fill(batches, [batch.target for batch in batches], "target"),
            origin=_fill(batches, [batch.origin for batch in batches], "origin", 0),
            parts=max(batch.parts for batch in batches),
            extra={name: _fill_known(batches, [batch.extra.get(name) for batch in batches], name) for name in names},
        )


def _fill(
    batches: Sequence[Batch], parts: Sequence[Tensor | None], name: str, value: float | None = None
) -> Tensor | None:
    if all(part is None for part in parts):
        return None
    return _fill_known(batches, parts, name, value)


def _fill_known(
    batches: Sequence[Batch], parts: Sequence[Tensor | None], name: str, value: float | None = None
) -> Tensor:
    """Join one column of several batches of which at least one has it; `value` stands where it is missing."""
    known = next(part for part in parts if part is not None)
    blank = _blank(known.dtype)
    missing = blank if value is None else value
    full = [
        known.new_full((len(batch), *known.shape[1:]), missing) if part is None else part
        for batch, part in zip(batches, parts, strict=True)
    ]
    return _join(full, name, blank)
