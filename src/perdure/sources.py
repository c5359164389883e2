"""What people hand in (tensors, arrays, labels, Datasets of images), made into tensors, with refusals that teach."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, Subset

from perdure.batch import Columns

Label = int | str
Array = npt.NDArray[Any]


def inputs(x: object) -> Columns:
    """`x` as tensors that share its memory; a memory-mapped array stays on disk."""
    if not isinstance(x, Mapping):
        return _tensor(x, "x")
    if not x:
        raise ValueError("x is an empty dict; it needs at least one column")
    columns = {str(name): _tensor(column, f"x[{name!r}]") for name, column in x.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of x have different lengths: {lengths}")
    return columns


def _tensor(x: object, name: str) -> Tensor:
    if isinstance(x, Tensor):
        tensor = x.detach()
    elif isinstance(x, np.ndarray):
        if x.dtype.kind not in "biuf":
            raise TypeError(f"{name} holds {x.dtype} values; inputs must be numbers")
        with warnings.catch_warnings():
            # Rows never writes to its inputs, so a read-only array is safe to share.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tensor = torch.from_numpy(x)
    else:
        raise TypeError(f"{name} is a {type(x).__name__}; pass a tensor, a NumPy array or a dict of them")
    if tensor.ndim == 0:
        raise ValueError(f"{name} is a single number; inputs need one row per example")
    return tensor


def labels(y: object) -> tuple[Tensor, tuple[Label, ...], bool]:
    """Labels as (codes int64 [n], distinct names, False), or dense values as (float32 [n, k], range(k), True)."""
    values = array(y)
    kind = values.dtype.kind
    if kind == "b":
        raise TypeError("y holds booleans; pass integers 0 and 1 for classification, or floats [n, k] for multi-label")
    if kind == "f" and values.ndim in (1, 2) and values.size:
        return _dense(values)
    if kind not in "iuU" or values.ndim != 1:
        raise TypeError(
            f"y has shape {list(values.shape)} and type {values.dtype}; pass integers or strings of shape [n] for "
            "classification, or floats of shape [n, k] for multi-label and regression"
        )
    names, codes = np.unique(values, return_inverse=True)
    return torch.from_numpy(codes.reshape(-1).astype(np.int64)), tuple(names.tolist()), False


def _dense(values: Array) -> tuple[Tensor, tuple[Label, ...], bool]:
    if values.ndim == 1:
        missing = np.isnan(values)
        if missing.any():
            raise ValueError(f"y is NaN in {missing.sum()} rows (first: row {missing.argmax()}); drop them")
        if (values == np.floor(values)).all():
            raise TypeError(
                "y holds floats that are all whole numbers; pass integers for classification, "
                "or shape [n, 1] for regression"
            )
        values = values[:, None]
    return torch.from_numpy(values.astype(np.float32)), tuple(range(values.shape[1])), True


def array(values: object) -> Array:
    """Labels or a named column as an array; missing values, and kinds that NumPy would mix silently, are refused."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return np.asarray(values.float() if values.dtype == torch.bfloat16 else values)
    if isinstance(values, np.ndarray) and values.dtype.kind != "O":
        return values
    listed = np.asarray(values, dtype=object).tolist()
    _refuse_odd_values(listed)
    return np.asarray(listed)


def _refuse_odd_values(values: list[Any]) -> None:
    # NumPy would turn [True, 2] into [1, 2] and ["a", 1] into ["a", "1"] without a word.
    for row, value in enumerate(values):
        if value is None or (isinstance(value, float | np.floating) and value != value):
            raise ValueError(f"row {row} has no value ({value!r}); drop the row or give it one")
        if isinstance(value, bool | np.bool_):
            raise TypeError(f"row {row} is {bool(value)!r}; pass 0 and 1, or names such as 'no' and 'yes'")
    if len({isinstance(value, str) for value in values}) > 1:
        raise TypeError("some values are strings and some are not; make all of them strings or all of them integers")


def class_names(classes: Iterable[Label]) -> tuple[Label, ...]:
    """`classes` as plain integers or strings, checked: at least one, none twice, all of one kind."""
    names = tuple(name.item() if isinstance(name, np.generic | Tensor) else name for name in classes)
    kinds = {type(name) for name in names}
    if len(kinds) != 1 or not kinds <= {int, str}:
        raise TypeError(f"classes must be all integers or all strings, and at least one; got {names}")
    if len(set(names)) < len(names):
        raise ValueError(f"classes {names} hold a label twice")
    return names


def is_dataset(x: object) -> bool:
    """Whether x gives its rows one by one; refuses those that cannot give them in any order."""
    if isinstance(x, IterableDataset):
        raise TypeError(
            f"{type(x).__name__} is an IterableDataset, whose rows cannot be read in any order; "
            "pass a Dataset with __getitem__ and __len__, or read it into tensors first"
        )
    is_table = hasattr(x, "iloc")  # pandas: its __getitem__ gives columns
    if is_table or isinstance(x, Tensor | np.ndarray | Mapping | Sequence) or not hasattr(x, "__getitem__"):
        return False
    if not hasattr(x, "__len__"):
        raise TypeError(f"{type(x).__name__} has no __len__; how many rows it holds must be known")
    return True


def dataset_labels(dataset: Any) -> Any:
    """The labels of a Dataset of (x, y): from `.targets` or `.labels` where they are true, else from one pass."""
    count = len(dataset)
    known = _known_labels(dataset)
    # A Dataset may change its labels on the way out (target_transform): believe the items, not the attribute.
    probes = {0, count // 2, count - 1}
    if known is not None and all(_plain(known[row]) == _item_label(dataset, row) for row in probes):
        return known
    return [_item_label(dataset, row) for row in range(count)]


def _known_labels(dataset: Any) -> Array | None:
    if type(dataset) is Subset:
        inner = _known_labels(dataset.dataset)
        return None if inner is None else inner[np.asarray(dataset.indices)]
    for name in ("targets", "labels"):
        values = getattr(dataset, name, None)
        if isinstance(values, Tensor | np.ndarray | Sequence) and len(values) == len(dataset):
            return np.asarray(values, dtype=None if hasattr(values, "dtype") else object)
    return None


def _item_label(dataset: Any, row: int) -> Any:
    item = dataset[row]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise TypeError(f"item {row} of {type(dataset).__name__} is a {type(item).__name__}, not a pair (x, y)")
    return _plain(item[1])


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor | np.ndarray | np.generic) else value


def stack(items: Sequence[Any]) -> Columns:
    """Items of a Dataset, x or (x, y), as tensors with one row each."""
    rows = [_item(item[0] if isinstance(item, tuple | list) else item) for item in items]
    try:
        tables = [row for row in rows if isinstance(row, dict)]
        if tables:
            return {name: torch.stack([table[name] for table in tables]) for name in tables[0]}
        return torch.stack([row for row in rows if isinstance(row, Tensor)])
    except RuntimeError as error:
        raise ValueError(f"the items of the dataset differ in shape; resize or pad them there ({error})") from error


def _item(x: Any) -> Columns:
    if isinstance(x, Mapping):
        return {str(name): torch.as_tensor(value) for name, value in x.items()}
    if hasattr(x, "getbands"):  # a PIL image; pillow itself is optional
        return image(x)
    return torch.as_tensor(x)


def image(picture: Any) -> Tensor:
    """A PIL image as uint8 [c, h, w]."""
    if picture.mode not in ("L", "RGB", "RGBA"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    pixels = torch.from_numpy(np.array(picture))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
