"""What a request may say: rows as JSON, and how they become a table. Nothing of it is a path or code."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from perdure.recipes.tables import TableError, optional

if TYPE_CHECKING:
    import pyarrow

BASE64 = "base64"  # {"base64": "..."} is an image


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Asked(_Request):
    """Rows to answer: [{column: value}]; an image is {"base64": its bytes}."""

    rows: list[dict[str, Any]] = Field(min_length=1)
    min_confidence: float = Field(0.0, ge=0, le=1)


class Told(_Request):
    """Rows with their labels."""

    rows: list[dict[str, Any]] = Field(min_length=1)


class Taught(_Request):
    """An update: with these rows, or with the feedback that waits."""

    rows: list[dict[str, Any]] | None = Field(None, min_length=1)
    accept_shift: bool = False


def table_of(rows: Sequence[Mapping[str, Any]]) -> pyarrow.Table:
    """Rows as a table; a column that a row leaves out is missing there, one of numbers and words holds words.

    Raises TableError for what no column can hold.
    """
    arrow = optional("pyarrow")
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        raise TableError("the rows have no columns")
    found = {}
    for name in names:
        values = [_value(row.get(name), name, place) for place, row in enumerate(rows)]
        try:
            found[name] = _column(values)
        except (arrow.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise TableError(f"column {name!r} cannot be read: {error}") from error
    try:
        return arrow.table(found)
    except ValueError as error:  # a name that is no Unicode
        raise TableError(f"the names of the columns cannot be read: {error}") from error


def _value(value: Any, name: str, row: int) -> Any:
    if not isinstance(value, dict | list):
        return value
    if not (isinstance(value, dict) and list(value) == [BASE64] and isinstance(value[BASE64], str)):
        raise TableError(f"row {row}: column {name!r} is neither a number, a word, true, false, null nor an image")
    try:
        return base64.b64decode(value[BASE64], validate=True)
    except (binascii.Error, ValueError) as error:
        raise TableError(f"row {row}: column {name!r} is no base64 ({error})") from error


def _column(values: list[Any]) -> Any:
    arrow = optional("pyarrow")
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        values = [None if value is None else float(value) for value in values]
    elif len(kinds) > 1:
        if bytes in kinds:
            raise TypeError("it holds images and other values")
        values = [None if value is None else _word(value) for value in values]
    if kinds == {bytes}:
        return arrow.array(values, arrow.large_binary())
    return arrow.array(values)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
