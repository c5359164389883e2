"""Named real data: MNIST, which ships inside, CIFAR-10, MovieLens, any Parquet file, the hub by name, any arrays."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perdure.data import Label, Rows, class_names
from perdure.sources import image

MNIST_TRAIN, MNIST_ROWS = 60_000, 70_000
JPEG = b"\xff\xd8\xff"  # how a JPEG file begins

Files = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Dataset:
    """Train and test rows under a name; `perdure.streams` cuts it into tasks."""

    name: str
    train: Rows
    test: Rows | None = None
    description: str = ""

    def __repr__(self) -> str:
        tests = "no" if self.test is None else str(len(self.test))
        return f"Dataset({self.name!r}, {len(self.train)} train and {tests} test rows)"


def arrays(x: Any, y: Any, test_x: Any = None, test_y: Any = None, *, name: str = "data") -> Dataset:
    """Your own tensors or NumPy arrays."""
    if (test_x is None) != (test_y is None):
        raise ValueError("test_x and test_y go together; pass both or neither")
    return Dataset(name, Rows(x, y), None if test_x is None else Rows(test_x, test_y))


@cache
def mnist() -> Dataset:
    """MNIST: 60 000 + 10 000 handwritten digits, uint8 [1, 28, 28]; ships with the package."""
    with (files("perdure") / "assets" / "mnist.npz").open("rb") as file, np.load(file, allow_pickle=False) as packed:
        pixels = np.zeros(MNIST_ROWS * 28 * 28, dtype=np.uint8)
        pixels[np.unpackbits(packed["ink"]).view(bool)] = packed["values"]
        labels = packed["labels"]
    digits = pixels.reshape(MNIST_ROWS, 1, 28, 28)
    return Dataset(
        "MNIST",
        Rows(digits[:MNIST_TRAIN], labels[:MNIST_TRAIN]),
        Rows(digits[MNIST_TRAIN:], labels[MNIST_TRAIN:]),
        "MNIST: 60 000 train and 10 000 test images of handwritten digits, 28 x 28 grey "
        "(Yann LeCun, Corinna Cortes and Christopher Burges; CC BY-SA 3.0).",
    )


def cifar10(path: str | Path) -> Dataset:
    """CIFAR-10: 50 000 + 10 000 photographs, uint8 [3, 32, 32], from a folder with train and test Parquet files."""
    parts = []
    for part in ("train", "test"):
        found = sorted(Path(path).glob(f"{part}*.parquet"))
        if not found:
            raise ValueError(f"{path} holds no {part}*.parquet; pass the folder with CIFAR-10's train and test files")
        parts.append(found)
    data = parquet(*parts, name="CIFAR-10")
    kinds = "CIFAR-10: photographs of 10 kinds of things, 32 x 32 in colour (Alex Krizhevsky, 2009)."
    return replace(data, description=f"{kinds} {data.description}")


def movielens100k(path: str | Path) -> Dataset:
    """MovieLens 100k: 100 000 stars from 1 to 5, {"user", "item"} int64 -> float32 [n, 1]; column "time", Unix seconds.

    `path` is a folder with ratings.parquet: columns user_id, item_id, rating and timestamp.
    """
    file = Path(path) / "ratings.parquet"
    if not file.exists():
        raise ValueError(f"{path} holds no ratings.parquet; pass the folder with MovieLens 100k as Parquet")
    table = _optional("pyarrow.parquet").read_table(file)
    for name in ("user_id", "item_id", "rating", "timestamp"):
        if name not in table.column_names:
            raise ValueError(f"there is no column {name!r} in {file}; it has {table.column_names}")
    user, item, stars, seconds = (table[name].to_numpy() for name in ("user_id", "item_id", "rating", "timestamp"))
    x = {"user": user.astype(np.int64), "item": item.astype(np.int64)}
    return Dataset(
        "MovieLens 100k",
        Rows(x, stars.astype(np.float32)[:, None], columns={"time": seconds}, classes=["stars"]),
        None,
        "MovieLens 100k: 100 000 ratings of 1 682 films by 943 people, September 1997 to April 1998 "
        "(Harper and Konstan 2015).",
    )


def parquet(
    train: Files,
    test: Files | None = None,
    *,
    x: str | Sequence[str] | None = None,
    label: str = "label",
    name: str | None = None,
    columns: Sequence[str] = (),
) -> Dataset:
    """Parquet files of images or numbers (extra: data).

    x        the input: a column of images ({bytes, path}) -> uint8 [n, c, h, w], or columns of numbers -> float32
             [n, k]; default: the only image column, else every column that is not `label` nor in `columns`
    label    the column of labels
    columns  columns to keep by name, for `streams.by_column` and `streams.by_time`
    """
    read = _optional("pyarrow.parquet").read_table
    first = Path(train if isinstance(train, str | Path) else train[0])
    parts = [part for part in (train, test) if part is not None]
    tables = [(str(part), read(part if isinstance(part, str | Path) else list(part))) for part in parts]
    return _of_tables(name or first.stem, tables, x, label, columns)


def hub(
    name: str,
    *,
    subset: str | None = None,
    train: str = "train",
    test: str | None = "test",
    x: str | Sequence[str] | None = None,
    label: str = "label",
    columns: Sequence[str] = (),
) -> Dataset:
    """Images or numbers from the Hugging Face hub by name, `hub("uoft-cs/cifar10")`, or a folder like one (extra: hf).

    subset       the hub's configuration, where a data set has several
    train, test  the names of the splits; test=None: there is none
    x, label, columns  as for `parquet`
    """
    try:
        load = import_module("datasets").load_dataset
    except ImportError as error:
        raise ImportError("data by their name on the hub need datasets: pip install 'perdure[hf]'") from error
    splits = [split for split in (train, test) if split is not None]
    tables = [(f"{name}, {split}", load(name, subset, split=split).with_format("arrow")[:]) for split in splits]
    return _of_tables(name.rpartition("/")[2], tables, x, label, columns)


def _of_tables(
    name: str, tables: list[tuple[str, Any]], x: str | Sequence[str] | None, label: str, columns: Sequence[str]
) -> Dataset:
    """A dataset of one Arrow table, or two, each with what errors call it."""
    wanted = [x] if isinstance(x, str) else x
    parts = [_rows(table, source, wanted, label, columns) for source, table in tables]
    test = parts[1][0] if len(parts) > 1 else None
    words = f"{len(parts[0][0])} train and {'no' if test is None else len(test)} test rows."
    if any(lossy for _, lossy in parts):
        words += " The images are JPEG, which is lossy: results differ a little from the original's."
    return Dataset(name, parts[0][0], test, words)


def fewer(
    dataset: Dataset, *, train: int | None = None, test: int | None = None, classes: Sequence[Label] | None = None
) -> Dataset:
    """The first `train` and `test` rows of each label (None: all), of these labels (None: of all): to try things."""
    labels = dataset.train.classes if classes is None else class_names(classes)
    rows = _first(dataset.train, labels, train)
    tests = None if dataset.test is None else _first(dataset.test, labels, test)
    counts = f"{len(rows)} train and {'no' if tests is None else len(tests)} test rows"
    words = f"Of these {counts} are taken, the first of each of the labels {', '.join(map(str, labels))}."
    return replace(dataset, train=rows, test=tests, description=f"{dataset.description} {words}".strip())


def _first(rows: Rows, labels: Sequence[Label], most: int | None) -> Rows:
    """The first `most` rows of each label, in the order of the rows."""
    if most is not None and most < 1:
        raise ValueError(f"at least 1 row of each label is taken; got {most}")
    if rows.dense or not rows.classes:
        raise ValueError("only rows with one label each can be taken by their labels; y is a float or missing")
    own = rows.positions(rows.classes)
    for label in labels:
        if label not in rows.classes:
            raise ValueError(f"no row has the label {label!r}; the labels are {rows.classes}")
    chosen = [(own == rows.classes.index(label)).nonzero()[:most, 0] for label in labels]
    return rows.select(torch.cat(chosen).sort().values)


def _optional(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow and pillow: pip install 'perdure[data]'") from error


def _rows(table: Any, source: str, x: Sequence[str] | None, label: str, columns: Sequence[str]) -> tuple[Rows, bool]:
    """The rows of an Arrow table, and whether their images are lossy."""
    there = table.column_names
    for name in (label, *columns, *(x or ())):
        if name not in there:
            raise ValueError(f"there is no column {name!r} in {source}; it has {there}")
    kinds = {field.name: _kind(field.type) for field in table.schema}
    names = list(x) if x is not None else _guess(kinds, {label, *columns})
    lossy = False
    if [kinds[name] for name in names] == ["image"]:
        inputs, lossy = _images(table[names[0]])
    elif all(kinds[name] == "number" for name in names):
        inputs = torch.from_numpy(np.stack([table[name].to_numpy() for name in names], axis=1).astype(np.float32))
    else:
        odd = [name for name in names if kinds[name] != "number"]
        raise ValueError(f"x must be one column of images or columns of numbers; {odd} of {names} are not numbers")
    kept = {name: table[name].to_numpy() for name in columns}
    return Rows(inputs, table[label].to_numpy(), columns=kept), lossy


def _kind(column_type: Any) -> str:
    types = _optional("pyarrow").types
    if types.is_struct(column_type) and column_type.get_field_index("bytes") >= 0:
        return "image"
    is_number = types.is_integer(column_type) or types.is_floating(column_type) or types.is_boolean(column_type)
    return "number" if is_number else "other"


def _guess(kinds: dict[str, str], taken: set[str]) -> list[str]:
    free = {name: kind for name, kind in kinds.items() if name not in taken}
    pictures = [name for name, kind in free.items() if kind == "image"]
    if len(pictures) == 1:
        return pictures
    odd = [name for name, kind in free.items() if kind != "number"]
    if odd or not free:
        raise ValueError(f"cannot tell which columns are the input among {list(free)}; name them with x=...")
    return list(free)


def _images(column: Any) -> tuple[Tensor, bool]:
    """Encoded images as uint8 [n, c, h, w], and whether any of them is a JPEG."""
    pillow = _optional("PIL.Image")
    contents = [content for chunk in column.chunks for content in chunk.field("bytes").to_pylist()]
    pixels = torch.empty(0, dtype=torch.uint8)
    for row, content in enumerate(contents):
        if content is None:
            raise ValueError(f"row {row} has no image bytes; drop the row")
        picture = image(pillow.open(io.BytesIO(content)))
        if row == 0:
            pixels = torch.empty((len(contents), *picture.shape), dtype=torch.uint8)
        if picture.shape != pixels.shape[1:]:
            shapes = f"{list(picture.shape)}, the first one {list(pixels.shape[1:])}"
            raise ValueError(f"the image of row {row} has shape {shapes}; bring all images to one size and mode")
        pixels[row] = picture
    return pixels, any(content[:3] == JPEG for content in contents)
