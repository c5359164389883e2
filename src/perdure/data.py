"""Labelled rows in RAM, on disk or behind any torch Dataset, and the tasks made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from perdure import sources
from perdure.batch import Batch, Columns, chunks, column_bytes, column_length, column_list, column_map
from perdure.sources import Label, class_names

__all__ = [
    "Batch",
    "Columns",
    "Label",
    "Rows",
    "Task",
    "chunks",
    "class_names",
    "column_bytes",
    "column_length",
    "column_list",
    "column_map",
]

Shape = tuple[int, ...] | dict[str, tuple[int, ...]]

SCAN_BYTES = 32 << 20
FINGERPRINT_ROWS = 256


@dataclass(frozen=True)
class _Storage:
    """What all views of the same rows share; the labels lie on the device of the inputs."""

    source: Columns | Dataset[Any]
    y: Tensor | None
    names: tuple[Label, ...]
    dense: bool
    columns: dict[str, npt.NDArray[Any]]
    device: torch.device


class Rows:
    """Labelled rows: raw inputs, labels and named extra columns; in RAM, memory-mapped or behind any torch Dataset.

    x        tensor, NumPy array (a memmap stays on disk), dict of them with n rows each, or a Dataset of (x, y)
    y        n integers or strings (classification), or floats [n, k] or [n] (multi-label, regression); None: no labels
    columns  named values, one per row, numbers or strings, for streams that sort or group by them
    classes  names of the k columns of a float y (default 0 .. k-1)

    Inputs are never copied or converted, and views (`select`, `map`) share them.
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        *,
        columns: Mapping[str, Any] | None = None,
        classes: Iterable[Label] | None = None,
    ) -> None:
        behind_dataset = sources.is_dataset(x)
        source = x if behind_dataset else sources.inputs(x)
        count = len(source) if behind_dataset else column_length(source)
        if count == 0:
            raise ValueError("there are no rows: x is empty")
        if y is None and behind_dataset:
            y = sources.dataset_labels(source)
        values, names, dense = (None, (), False) if y is None else sources.labels(y)
        if classes is not None:
            names = _column_names(classes, names, dense)
        arrays = {name: sources.array(column) for name, column in (columns or {}).items()}
        for name, column in [("y", values), *arrays.items()]:
            if column is not None and len(column) != count:
                raise ValueError(f"x has {count} rows and {name} has {len(column)}; they must have the same number")
        device = torch.device("cpu") if behind_dataset else column_list(source)[0].device
        labels = None if values is None else values.to(device)
        self._storage = _Storage(source, labels, names, dense, arrays, device)
        self._index: Tensor | None = None
        self._maps: tuple[Callable[[Columns], Columns], ...] = ()
        self._checked = False

    @staticmethod
    def of(data: Any) -> Rows:
        """Rows from rows, (x, y), x alone, or a torch Dataset of (x, y)."""
        if isinstance(data, Rows):
            return data
        if isinstance(data, TensorDataset) and len(data.tensors) == 2:
            return Rows(*data.tensors)
        if isinstance(data, tuple) and len(data) == 2:
            return Rows(*data)
        if isinstance(data, Tensor | np.ndarray | Mapping) or sources.is_dataset(data):
            return Rows(data)
        raise TypeError(
            f"cannot read rows from a {type(data).__name__}; pass Rows, (x, y), x alone, or a torch Dataset of (x, y)"
        )

    def __len__(self) -> int:
        if self._index is not None:
            return len(self._index)
        source = self._storage.source
        return column_length(source) if isinstance(source, Tensor | dict) else len(source)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f"Rows({len(self)} rows of shape {self.shape}, classes={self.classes})"

    @property
    def dense(self) -> bool:
        """Whether y is float [n, k] (multi-label, regression) and not one label per row."""
        return self._storage.dense

    @cached_property
    def classes(self) -> tuple[Label, ...]:
        """The distinct labels of these rows, sorted; for a float y the names of its columns; () without labels."""
        storage = self._storage
        if storage.y is None or storage.dense or self._index is None:
            return storage.names
        return tuple(storage.names[code] for code in np.unique(storage.y[self._index].cpu()))

    @property
    def labels(self) -> list[Any]:
        """The user's own label of each row (for a float y: its list of values)."""
        y, names = self._y(), self._storage.names
        return y.tolist() if self.dense else [names[code] for code in y.tolist()]

    def positions(self, classes: Iterable[Label]) -> Tensor:
        """Each row's position within `classes`, int64 [n]; for a float y, y itself, float32 [n, k]."""
        table = self._table(tuple(classes))
        return self._y() if table is None else table[self._y()]

    def read(self, index: Tensor | slice) -> Columns:
        """The raw inputs at `index`, one index operation per column; of a slice, where it can be, a view."""
        source, device = self._storage.source, self._storage.device
        if isinstance(index, slice):
            if self._index is None and isinstance(source, Tensor | dict) and not self._maps:
                return column_map(lambda column: column[index], source)
            index = torch.arange(len(self))[index]
        index = index.to(device)
        if self._index is not None:
            index = self._index.index_select(0, index)
        if isinstance(source, Tensor | dict):
            x = column_map(lambda column: column.index_select(0, index), source)
        else:
            x = sources.stack([source[row] for row in index.tolist() or [0]])  # of no rows, too, the shape is asked for
            x = column_map(lambda column: column[: len(index)], x)
        for fn in self._maps:
            x = fn(x)
        return x

    def select(self, index: Any) -> Rows:
        """A view of the rows at `index` (whole numbers or a mask); nothing is copied."""
        chosen = index if isinstance(index, Tensor) else torch.tensor(np.asarray(index))
        chosen = chosen.to(self._storage.device)
        if chosen.dtype == torch.bool:
            if len(chosen) != len(self):
                raise IndexError(f"the mask has {len(chosen)} entries for {len(self)} rows")
            chosen = chosen.nonzero()[:, 0]
        if chosen.is_floating_point() and len(chosen):
            raise TypeError(f"rows are selected by whole numbers or a mask of booleans, not by {chosen.dtype}")
        chosen = chosen.long()
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(self):
            raise IndexError(f"rows go from 0 to {len(self) - 1}; asked for {int(chosen.min())} to {int(chosen.max())}")
        return self._view(chosen if self._index is None else self._index[chosen], self._maps, self._checked)

    def on(self, device: torch.device, most: int) -> Rows:
        """The same rows with inputs and labels on a device, if they are tensors of at most `most` bytes; else these."""
        storage = self._storage
        if not isinstance(storage.source, Tensor | dict) or storage.device == device or self.bytes > most:
            return self
        index = slice(None) if self._index is None else self._index
        source = column_map(lambda column: column[index].to(device), storage.source)
        y = None if storage.y is None else storage.y[index].to(device)
        rows = self._view(None, self._maps, self._checked)
        rows._storage = replace(storage, source=source, y=y, device=device, columns={})
        return rows

    def map(self, fn: Callable[[Columns], Columns]) -> Rows:
        """A view whose inputs go through `fn` each time they are read; `fn` must always give the same."""
        return self._view(self._index, (*self._maps, fn), checked=False)

    def column(self, name: str) -> npt.NDArray[Any]:
        """The named extra column, one value per row."""
        columns = self._storage.columns
        if name not in columns:
            raise ValueError(f"these rows have no column {name!r}; they have {sorted(columns) or 'none'}")
        return columns[name] if self._index is None else columns[name][self._index.cpu().numpy()]

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the extra columns."""
        return tuple(self._storage.columns)

    @property
    def shape(self) -> Shape:
        """Shape of one row's x: a tuple, or one per column of a dict."""
        first = self._first
        if isinstance(first, dict):
            return {name: tuple(column.shape[1:]) for name, column in first.items()}
        return tuple(first.shape[1:])

    @property
    def bytes(self) -> int:
        """Bytes that the inputs of all rows take, as `read` gives them."""
        return column_bytes(self._first) * len(self)

    def check(self, unlabelled: bool = False) -> None:
        """Refuse rows with NaN or infinity in x or in a float y; scanned once, in pieces, and remembered by views.

        With `unlabelled`, NaN in y stands for a label that is not known.
        """
        if self._checked:
            return
        floats = any(column.is_floating_point() for column in column_list(self._first))
        healthy = torch.ones(len(self), dtype=torch.bool)
        if self.dense:
            y = self._y()
            healthy &= _finite_rows(y.where(~y.isnan(), 0.0) if unlabelled else y).cpu()
        if floats:
            step = max(1, SCAN_BYTES // max(1, column_bytes(self._first)))
            for start in range(0, len(self), step):
                part = slice(start, min(start + step, len(self)))
                for column in column_list(self.read(part)):
                    # A sum is finite only where all are, and much faster; that of large numbers may not be: ask again.
                    if column.is_floating_point() and not bool(torch.isfinite(column.sum())):
                        healthy[part] &= _finite_rows(column).cpu()
        bad = (~healthy).nonzero()[:, 0].tolist()
        if bad:
            raise ValueError(
                f"{len(bad)} of {len(self)} rows hold NaN or infinity (first: row {bad[0]}); clean or drop them"
            )
        self._checked = True

    def fingerprint(self) -> str:
        """SHA-256 over the number of rows, the classes and a fixed, evenly spread sample of 256 rows."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        size = min(FINGERPRINT_ROWS, len(self))
        sample = self.select(torch.arange(size) * len(self) // size)
        digest = hashlib.sha256(json.dumps([len(self), self.classes]).encode())
        x = sample.read(torch.arange(size))
        named = x if isinstance(x, dict) else {"": x}
        for name, column in sorted(named.items()):
            digest.update(f"{name} {column.dtype} {tuple(column.shape)}".encode())
            digest.update(column.cpu().contiguous().view(torch.uint8).numpy().tobytes())
        if self._storage.y is not None:
            digest.update(json.dumps(sample.labels).encode())
        return digest.hexdigest()

    @cached_property
    def _first(self) -> Columns:
        """The first row as read, for its shapes and types."""
        if not len(self):
            raise ValueError("there are no rows in this selection")
        return self.read(torch.zeros(1, dtype=torch.long))

    def _y(self) -> Tensor:
        y = self._storage.y
        if y is None:
            raise ValueError("these rows have no labels; pass (x, y)")
        return y if self._index is None else y.index_select(0, self._index)

    def _table(self, classes: tuple[Label, ...]) -> Tensor | None:
        """Where each stored label stands in `classes` (-1: nowhere that these rows go); None for a float y."""
        storage = self._storage
        if storage.dense:
            if len(storage.names) != len(classes):
                raise ValueError(f"y has {len(storage.names)} columns, but there are {len(classes)} classes {classes}")
            return None
        places = {label: place for place, label in enumerate(classes)}
        unknown = [label for label in self.classes if label not in places]
        if unknown:
            raise ValueError(
                f"the rows bring label {unknown[0]!r}, but the classes are {classes}; add it to classes=..."
            )
        return torch.tensor([places.get(name, -1) for name in storage.names], device=storage.device)

    def _view(self, index: Tensor | None, maps: tuple[Callable[[Columns], Columns], ...], checked: bool) -> Rows:
        rows = object.__new__(Rows)
        rows._storage, rows._index, rows._maps, rows._checked = self._storage, index, maps, checked
        return rows


def _finite_rows(column: Tensor) -> Tensor:
    return torch.isfinite(column).reshape(len(column), -1).all(1)


def _holds_bytes(rows: Rows) -> bool:
    return any(column.dtype == torch.uint8 for column in column_list(rows._first))


def _column_names(classes: Iterable[Label], names: tuple[Label, ...], dense: bool) -> tuple[Label, ...]:
    given = class_names(classes)
    if not dense:
        raise ValueError(
            "Rows(classes=...) names the columns of a float y; to say which labels may come use Task(classes=...)"
        )
    if len(given) != len(names):
        raise ValueError(f"y has {len(names)} columns, but {len(given)} names: {given}")
    return given


class Task:
    """One stage of a stream: rows to learn, rows to be examined on, and the labels that they may carry.

    train, test, validation   anything that `Rows.of` takes
    name      default: "task-" and the first 8 digits of the fingerprint
    classes   default: the labels of train, sorted; may be wider than the labels seen, and gives their order; without
              labels in train (rows to consolidate on) it must be given
    """

    def __init__(
        self,
        train: Any,
        test: Any = None,
        *,
        validation: Any = None,
        name: str | None = None,
        classes: Iterable[Label] | None = None,
    ) -> None:
        self.train = Rows.of(train)
        self.test = None if test is None else Rows.of(test)
        self.validation = None if validation is None else Rows.of(validation)
        if not len(self.train):
            raise ValueError("the train rows of a task are empty")
        if classes is None and not self.train.classes:
            raise ValueError("the train rows of a task need labels; pass (x, y)")
        self.classes = self.train.classes if classes is None else class_names(classes)
        for part, rows in (("train", self.train), ("test", self.test), ("validation", self.validation)):
            if rows is not None:
                self._refuse(part, rows)
        self.name = f"task-{self.fingerprint[:8]}" if name is None else name

    def __repr__(self) -> str:
        tests = "no" if self.test is None else str(len(self.test))
        return f"Task({self.name!r}, {len(self.train)} train and {tests} test rows, classes={self.classes})"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what is learnt: the train rows and the classes."""
        return hashlib.sha256(json.dumps([self.train.fingerprint(), self.classes]).encode()).hexdigest()

    def _refuse(self, part: str, rows: Rows) -> None:
        if not len(rows):
            raise ValueError(f"the {part} rows of a task are empty; leave {part}=None if there are none")
        if not rows.classes:
            if part == "train":  # to consolidate on; to learn needs labels
                return
            raise ValueError(f"the {part} rows of a task need labels; pass (x, y)")
        if rows.dense != self.train.dense:
            raise ValueError(f"the {part} rows and the train rows must both have a float y, or neither")
        if rows.shape != self.train.shape:
            raise ValueError(
                f"{part} rows have shape {rows.shape}, train rows have {self.train.shape}; they must agree"
            )
        if _holds_bytes(rows) != _holds_bytes(self.train):
            raise ValueError(f"either the {part} rows or the train rows are uint8 and the others are not; use one type")
        try:
            rows.positions(self.classes)
        except ValueError as error:
            raise ValueError(f"{part}: {error}") from error
