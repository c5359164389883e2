"""What the columns of a table hold, and numbers out of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perdure.recipes.pictures import is_image
from perdure.recipes.recipe import column
from perdure.recipes.tables import TableError, optional
from perdure.recipes.values import named, number

if TYPE_CHECKING:
    import pyarrow as pa

INFINITE = (float("inf"), float("-inf"))


def kinds_of(table: pa.Table) -> dict[str, str]:
    """Each column's kind by its type: "number", "category", "image" or "other"; one without a value is a number."""
    return {field.name: _kind(field.type) for field in table.schema}


def _kind(kind: Any) -> str:
    types = optional("pyarrow").types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_boolean(kind) or types.is_string(kind) or types.is_large_string(kind):
        return "category"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_null(kind):
        return "number"
    return "image" if is_image(kind) else "other"


def numbers_of(table: pa.Table, name: str) -> list[float | None]:
    """A column's numbers, None where there is none. Raises TableError for what is no number, and for infinity."""
    values, kind = column(table, name).to_pylist(), column(table, name).type
    types = optional("pyarrow").types
    if (types.is_integer(kind) or types.is_floating(kind)) and not any(value in INFINITE for value in values):
        return [None if value is None or value != value else float(value) for value in values]  # the usual case, fast
    found = []
    for row, value in enumerate(values):
        try:
            read = number(value)
        except (ValueError, OverflowError) as error:
            raise TableError(
                f"row {row} holds {named(value)} in column {name!r}, which is a column of numbers"
            ) from error
        if read in INFINITE:
            raise TableError(f"row {row} holds {named(value)} in column {name!r}; clean it or leave it empty")
        found.append(read)
    return found
