"""A person's files as tables: Parquet, CSV, JSON lines, a folder of images; each refusal says what to do about it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.checkpoint import replace_file
from perdure.spelling import guess

if TYPE_CHECKING:
    import pyarrow as pa

IMAGES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
KINDS = ".parquet, .csv, .tsv, .jsonl, or a folder with one sub-folder of images per label"


class TableError(ValueError):
    """A table that cannot be read, or that a recipe cannot use."""


def optional(module: str) -> Any:
    """A module of the extra `data`; ImportError says how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError("tables need pyarrow and pillow: pip install 'perdure[data]'") from error


def pick(table: pa.Table, rows: Sequence[int]) -> pa.Table:
    """Some rows of a table, by number; also none."""
    arrow = optional("pyarrow")
    return table.take(arrow.array(rows, type=arrow.int64()))


def read(path: str | os.PathLike[str]) -> pa.Table:
    """The table in a file, by its ending, or the images in a folder (columns image {bytes, path} and label).

    In CSV a cell without a value is missing, in columns of words too. Raises TableError for a file that is not there,
    is empty, cut, of an unknown kind, or has two columns of one name.
    """
    place = Path(path)
    if not place.exists():
        beside = [other.name for other in place.parent.iterdir()] if place.parent.is_dir() else []
        raise TableError(f"there is no file {place}{'.' + guess(place.name, beside) if beside else ''}")
    if place.is_dir():
        return checked(_folder(place), str(place))
    reader = _READERS.get(place.suffix.lower())
    if reader is None:
        raise TableError(f"{place.name} is of no kind that can be read; pass {KINDS}")
    if place.stat().st_size == 0:
        raise TableError(f"{place} is empty: it has no bytes at all")
    arrow = optional("pyarrow")
    try:
        table = reader(place)
    except (arrow.ArrowException, OSError, UnicodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TableError(f"{place} cannot be read; it is damaged, cut, or no {place.suffix} file: {reason}") from error
    return checked(table, str(place))


def checked(table: pa.Table, name: str = "the table") -> pa.Table:
    """The table itself. Raises TableError where it has no rows, no columns, or two columns of one name."""
    names = table.column_names
    _once(names, name)
    if not table.num_rows or not names:
        raise TableError(f"{name} has no rows; it has the columns {names}")
    return table


def _once(names: list[str], where: str) -> None:
    twice = sorted({column for column in names if names.count(column) > 1})
    if twice:
        raise TableError(f"{where} has more than one column called {twice[0]!r}; rename one")


def write(table: pa.Table, path: str | os.PathLike[str]) -> None:
    """Writes .parquet or .csv, whole or not at all. Raises TableError for other endings, and what CSV cannot hold."""
    place, arrow = Path(path), optional("pyarrow")
    sink = arrow.BufferOutputStream()
    try:
        if place.suffix.lower() == ".parquet":
            optional("pyarrow.parquet").write_table(table, sink)
        elif place.suffix.lower() == ".csv":
            optional("pyarrow.csv").write_csv(table, sink)
        else:
            raise TableError(f"{place.name} is of no kind that can be written; call it .parquet or .csv")
    except arrow.ArrowException as error:
        raise TableError(f"this table cannot be written as {place.suffix}: {error}; use .parquet") from error
    replace_file(place, sink.getvalue().to_pybytes())


def _parquet(path: Path) -> pa.Table:
    with path.open("rb") as file:  # not by its name, from which pyarrow would guess columns ("year=2020/...")
        whole = optional("pyarrow.parquet").ParquetFile(file)
        _once(whole.schema_arrow.names, str(path))
        return whole.read()


def _separated(path: Path) -> pa.Table:
    csv = optional("pyarrow.csv")
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    table = csv.read_csv(
        path,
        # In one block, so that a column's type is guessed from all of its rows.
        csv.ReadOptions(block_size=path.stat().st_size + 1),
        csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        csv.ConvertOptions(true_values=["true", "True", "TRUE"], false_values=["false", "False", "FALSE"]),
    )
    return _without_empty_words(table)


def _without_empty_words(table: pa.Table) -> pa.Table:
    arrow, compute = optional("pyarrow"), optional("pyarrow.compute")
    for place, field in enumerate(table.schema):
        if arrow.types.is_string(field.type):
            words = table.column(place)
            there = compute.not_equal(words, "")
            table = table.set_column(place, field, compute.if_else(there, words, arrow.scalar(None, field.type)))
    return table


def _lines(path: Path) -> pa.Table:
    json = optional("pyarrow.json")
    return json.read_json(path, json.ReadOptions(block_size=path.stat().st_size + 1))


def _folder(folder: Path) -> pa.Table:
    """Images by label; without sub-folders, images without labels."""
    labels = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    found = {label: _images(label) for label in labels} if labels else {folder: _images(folder)}
    empty = [place for place, files in found.items() if not files]
    if empty:
        raise TableError(f"{empty[0]} holds no images ({', '.join(sorted(IMAGES))}); pass {KINDS}")
    arrow = optional("pyarrow")
    items = [
        {"bytes": file.read_bytes(), "path": file.relative_to(folder).as_posix()}
        for files in found.values()
        for file in files
    ]
    kind = arrow.struct([("bytes", arrow.large_binary()), ("path", arrow.string())])
    columns = {"image": arrow.array(items, kind)}
    if labels:
        columns["label"] = arrow.array([label.name for label, files in found.items() for _ in files])
    return arrow.table(columns)


def _images(folder: Path) -> list[Path]:
    there = (file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    return sorted(file for file in there if file.suffix.lower() in IMAGES)


_READERS = {".csv": _separated, ".jsonl": _lines, ".parquet": _parquet, ".tsv": _separated}
