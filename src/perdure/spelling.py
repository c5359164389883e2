"""A hint for a word that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def hint(word: object, known: Iterable[object]) -> str:
    """`; did you mean 'x'?`, or the choices where nothing is near; to end an error message with."""
    words = [str(choice) for choice in known]
    close = difflib.get_close_matches(str(word), words, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; choose one of {', '.join(words) or 'nothing'}"


def one_of(name: str, value: object, known: Iterable[object]) -> None:
    """Raises ValueError, naming the choices, unless `value` is one of them."""
    choices = list(known)
    if value not in choices:
        raise ValueError(f"{name} is {value!r}{hint(value, choices)}")
