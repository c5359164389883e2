"""A table's values as plain ones: a number is a number however its file wrote it."""

from __future__ import annotations

import math
import re
from decimal import Decimal

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
SHOWN = 40


def plain(value: object) -> object:
    """Decimals as floats, or as ints where they are whole; bytes as text where they are; all else as it is."""
    if isinstance(value, Decimal):
        if not value.is_finite():
            return float(value)
        return int(value) if value == int(value) else float(value)
    return value


def category(value: object) -> str | None:
    """A category's name: 1, 1.0 and "1" are one, so are True, "True" and "true"; None for what is missing.

    >>> [category(value) for value in (1, "1", 1.0, " x", True, "", float("nan"))]
    ['1', '1', '1', ' x', 'true', None, None]
    """
    value = plain(value)
    if value is None or value != value or value == "":
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and not NUMBER.fullmatch(value):
        return value.lower() if value.lower() in ("true", "false") else value
    if not isinstance(value, str | int | float):
        return str(value)
    try:
        return str(int(value)) if not isinstance(value, float) or value == int(value) else repr(value)
    except (ValueError, OverflowError):  # no whole number, or one of infinitely many digits
        number = float(value)
        return category(number) if math.isfinite(number) else str(value)


def number(value: object) -> float | None:
    """A number, out of words too; None for what is missing. Raises ValueError for what is none."""
    value = plain(value)
    if value is None or value != value or value == "":
        return None
    if isinstance(value, str) and not NUMBER.fullmatch(value.strip()):
        if value.strip().lower() == "nan":
            return None
        raise ValueError(value)
    if not isinstance(value, bool | int | float | str):
        raise ValueError(value)
    return float(value)


def named(value: object) -> str:
    """A value as an error message shows it: short."""
    shown = repr(value)
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
