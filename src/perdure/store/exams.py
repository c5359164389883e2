"""Exams: rows that are asked, never learnt. Which rows, their content decides, so that a row is never on both sides."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

SHARE = 0.1
MOST, LEAST = 20_000, 200  # rows of all exams together; rows that each keeps, however many exams there are
WIDTH = 8  # bytes of a mark


def new_key() -> str:
    """A key for a store: without it nobody can tell, or choose, which rows are examined."""
    return secrets.token_hex(32)


def mark(key: str, content: bytes) -> int:
    """A row's place, uniform in [0, 2^64): a keyed hash (HMAC-SHA-256) of its content, its label left out."""
    digest = hmac.new(bytes.fromhex(key), content, hashlib.sha256).digest()
    return int.from_bytes(digest[:WIDTH], "big")


@dataclass(frozen=True)
class Division:
    """Rows by side: the numbers of those to learn from and of those to examine with, each content once.

    `places` are the marks of all rows; `repeated` counts rows whose content came before.
    """

    learn: list[int]
    examine: list[int]
    places: list[int]
    repeated: int

    @property
    def marks(self) -> list[int]:
        """The marks of the rows to examine with."""
        return [self.places[row] for row in self.examine]


def divide(key: str, contents: Iterable[bytes], share: float = SHARE) -> Division:
    """Which rows are learnt from and which are examined: the same content is on the same side, in every update.

    Rows to learn may repeat; an exam holds each content once. Raises ValueError for a share that is none.
    """
    if not 0 <= share < 1:
        raise ValueError(f"the share of rows that are examined is {share}; it lies between 0 and below 1")
    bound, seen = int(share * 2 ** (8 * WIDTH)), set[int]()
    places = [mark(key, content) for content in contents]
    learn, examine, repeated = [], [], 0
    for row, place in enumerate(places):
        repeated += place in seen
        if place >= bound:
            learn.append(row)
        elif place not in seen:
            examine.append(row)
        seen.add(place)
    return Division(learn, examine, places, repeated)


def thinned(exams: Mapping[str, Sequence[int]], most: int = MOST, least: int = LEAST) -> dict[str, list[int]]:
    """Which rows of each exam stay, by the marks of its rows: `most` in all, shared evenly, and `least` each at least.

    Small exams stay whole and leave their share to others. Of an exam those with the smallest marks stay, so that what
    stays after two thinnings is what would have stayed after one.
    """
    cap = _cap([len(marks) for marks in exams.values()], most)
    found = {}
    for name, marks in exams.items():
        order = sorted(range(len(marks)), key=lambda row: marks[row])
        found[name] = sorted(order[: max(cap, least)])
    return found


def _cap(sizes: Sequence[int], most: int) -> int:
    """The largest number of rows an exam may have so that all together have `most` at most."""
    left, waiting = most, sorted(sizes)
    while waiting:
        even = left // len(waiting)
        if waiting[0] > even:
            return even
        left -= waiting.pop(0)
    return max(sizes, default=0)
