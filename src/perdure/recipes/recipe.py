"""A recipe: how the rows of a person's table become rows to learn from, and what network suits them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from perdure.data import Rows
from perdure.fields import load_state_of, memory, state_of
from perdure.recipes.tables import TableError, checked
from perdure.recipes.values import NUMBER, named, plain
from perdure.spelling import guess

if TYPE_CHECKING:
    import pyarrow as pa

LONGEST = 200  # characters of a label; what is longer was meant to be a text
LARGEST = 2**63
BOOLEANS = ("false", "true")


@dataclass
class Recipe:
    """The protocol. Settings are dataclass fields; what is learnt from the first update's training rows is `memory`.

    label   the column of labels
    kind    what the first labels were: "int", "float", "bool" or "str"; later ones are read as that

    `check` comes first, then `contents` (they depend on settings and columns alone, so that a row has one content for
    ever), `fit` once, `extend` at each later update, and `rows`. What cannot be used raises TableError, a ValueError
    that names the row (counted from 0).
    """

    name: ClassVar[str] = ""
    training: ClassVar[dict[str, Any]] = {}
    learns_values: ClassVar[bool] = False  # `fit` learns from values (scales), not names and shapes alone

    label: str = "label"
    kind: str = memory(str)

    # ---- a recipe's own ----

    @property
    def frozen(self) -> bool:
        """Whether rows are features of a body that is never trained."""
        return False

    def inputs(self, table: pa.Table) -> Any:
        """The raw inputs of the rows, as `Rows` takes them. After `fit`."""
        raise NotImplementedError

    def contents(self, table: pa.Table) -> Iterator[bytes]:
        """What each row says, its label left out: see `recipes.contents`."""
        raise NotImplementedError

    def network(self) -> nn.Module:
        """A built-in network for the inputs that were fitted."""
        raise NotImplementedError

    def check_inputs(self, table: pa.Table) -> None:
        """Raises TableError for inputs that cannot be used, in any row."""
        raise NotImplementedError

    def extend(self, table: pa.Table) -> None:
        """Takes in what later training rows bring; by default nothing."""

    def pins(self) -> dict[str, str]:
        """What it reads that is no part of a version, with its SHA-256; by default nothing."""
        return {}

    # ---- the same for all ----

    def check(self, table: pa.Table, labelled: bool = True) -> None:
        """Raises TableError for a table that cannot be used as a whole; nothing is learnt from it."""
        checked(table)
        if labelled:
            self.labels(table)
        self.check_inputs(table)

    def fit(self, table: pa.Table) -> None:
        """Learns from the first update's training rows what inputs and labels are."""
        self.kind = _kind(column(table, self.label).to_pylist())

    def rows(self, table: pa.Table, labelled: bool = True) -> Rows:
        """Inputs and, where `labelled`, labels, ready for a Task."""
        checked(table)
        x = self.inputs(table)
        return Rows(x, self.labels(table)) if labelled else Rows(x)

    def labels(self, table: pa.Table) -> list[int] | list[str]:
        """Whole numbers as ints (1.0 too); else strings: words as they are, other floats by repr, "true" and "false".

        All are of one kind, that of the first update's: CSV does not say whether 1 is a number or a word, and whether
        True is a boolean. Raises
        TableError for a label that is missing, infinite, of another kind, or longer than 200 characters.
        """
        values = [plain(value) for value in column(table, self.label).to_pylist()]
        kind = self.kind or _kind(values)
        # one kind gives one type
        return [_label(value, kind, self.label, row) for row, value in enumerate(values)]  # type: ignore[return-value]

    def settings(self) -> dict[str, Any]:
        """From which `recipes.build` makes an equal recipe with nothing fitted."""
        return {"name": self.name, **{f.name: getattr(self, f.name) for f in self.fields()}}

    @classmethod
    def fields(cls) -> list[dataclasses.Field[Any]]:
        """The settings, without the memory."""
        return [f for f in dataclasses.fields(cls) if f.init]

    def state(self) -> dict[str, Any]:
        """What was fitted, as plain values."""
        return deepcopy(state_of(self))

    def load_state(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        load_state_of(self, deepcopy(state))


def column(table: pa.Table, name: str) -> pa.ChunkedArray:
    """A column by name. Raises TableError with the nearest spelling."""
    if name not in table.column_names:
        raise TableError(
            f"there is no column {name!r}; the table has {table.column_names}.{guess(name, table.column_names)}"
        )
    return table.column(name)


def fitted(recipe: Recipe, done: bool) -> None:
    """Raises RuntimeError for a recipe that has not seen its first rows."""
    if not done:
        raise RuntimeError(f"the recipe {recipe.name!r} knows nothing yet: call fit(table) with training rows first")


def _kind(values: Sequence[object]) -> str:
    there = [plain(value) for value in values if value is not None]
    if all(isinstance(value, bool) or (isinstance(value, str) and value.lower() in BOOLEANS) for value in there):
        return "bool"
    if any(isinstance(value, str) for value in there):
        return "str"
    whole = all(isinstance(v, int) or (isinstance(v, float) and (not math.isfinite(v) or v == int(v))) for v in there)
    return "int" if whole else "float"


def _label(value: object, kind: str, name: str, row: int) -> int | str:
    if value is None or value != value:
        raise TableError(f"row {row} has no label in column {name!r}; give it one or drop the row")
    if not isinstance(value, bool | int | float | str):
        raise TableError(f"row {row} has the label {named(value)}; labels are whole numbers or words")
    if isinstance(value, float) and not math.isfinite(value):
        raise TableError(f"row {row} has the label {value}; labels are whole numbers or words")
    found = _as_kind(value, kind)
    if found is None:
        words = {"int": "whole numbers", "float": "numbers", "bool": "true or false", "str": "words"}[kind]
        raise TableError(
            f"row {row} has the label {named(value)}, and labels here are {words}; is it the right column?"
        )
    if isinstance(found, int) and not -LARGEST <= found < LARGEST:
        raise TableError(f"row {row} has the label {found}, which is beyond 64 bits; use words as labels")
    if isinstance(found, str) and (len(found) > LONGEST or "\0" in found):
        raise TableError(
            f"row {row} has the label {named(found)}; labels have at most {LONGEST} characters, none of them NUL. Is "
            f"{name!r} the column of labels?"
        )
    return found


def _as_kind(value: bool | int | float | str, kind: str) -> int | str | None:
    """A label read as one of its kind, None where it is none."""
    if kind == "str":
        if isinstance(value, bool):
            return str(value).lower()
        return str(int(value)) if isinstance(value, float) and value == int(value) else str(value)
    if kind == "bool":
        words = {"0": "false", "1": "true", "0.0": "false", "1.0": "true", "false": "false", "true": "true"}
        return words.get(str(value).lower())
    if isinstance(value, bool):
        return None
    number = _number(value)
    if number is None:
        return None
    if kind == "float":
        return repr(float(number))
    return int(number) if number == int(number) else None


def _number(value: int | float | str) -> int | float | None:
    if not isinstance(value, str):
        return value
    if not NUMBER.fullmatch(value):
        return None
    try:
        return int(value)
    except ValueError:
        number = float(value)
        return number if math.isfinite(number) else None
