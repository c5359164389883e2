"""What a row says, without its label and without what copying changes: by it a row is examined or learnt."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence


def text_content(text: str) -> bytes:
    """A text without what copying changes: case, spaces and the ways in which Unicode writes one character."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).encode()


def table_content(values: Mapping[str, object]) -> bytes:
    """A table's row: its columns by name; 1 and 1.0 are one number, and what is missing is nothing."""
    parts = []
    for name in sorted(values):
        value = values[name]
        if value is None or value != value:
            continue
        shown = repr(float(value)) if isinstance(value, int | float) else f"'{value}'"
        parts.append(f"{name}={shown}")
    return "\x1f".join(parts).encode()


def pixel_content(shape: Sequence[int], pixels: bytes) -> bytes:
    """An image, decoded: what it shows and not how it was compressed."""
    return b"%s:" % "x".join(map(str, shape)).encode() + pixels
