"""Help with a word that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: object, known: Iterable[object]) -> str:
    """The known word that was perhaps meant; "" where none is near."""
    return next(iter(difflib.get_close_matches(str(word), [str(choice) for choice in known], 1, 0.5)), "")


def guess(word: object, known: Iterable[object]) -> str:
    """A sentence of its own: ` Did you mean 'x'?`, or nothing."""
    near = nearest(word, known)
    return f" Did you mean {near!r}?" if near else ""


def hint(word: object, known: Iterable[object]) -> str:
    """To end an error message with: `; did you mean 'x'?`, or the choices where nothing is near."""
    choices = [str(choice) for choice in known]
    near = nearest(word, choices)
    return f"; did you mean {near!r}?" if near else f"; choose one of {', '.join(choices) or 'nothing'}"


def one_of(name: str, value: object, known: Iterable[object]) -> None:
    """Raises ValueError, naming the choices, unless `value` is one of them."""
    choices = list(known)
    if value not in choices:
        raise ValueError(f"{name} is {value!r}{hint(value, choices)}")
