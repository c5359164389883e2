"""New data before it is learnt: does the version in production find in it the world that it knows? Pure functions."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

DROP, LEVEL = 0.15, 0.01
REPEATED = 0.5
MANY, FEWEST = 10, 4  # new labels, and rows of each on average, that make a column of labels look like another one


@dataclass(frozen=True)
class Agreement:
    """Of how many rows the version in production gives the label that the data has."""

    agreed: int
    rows: int

    @property
    def share(self) -> float:
        """0 to 1; 0 where nothing was asked."""
        return self.agreed / self.rows if self.rows else 0.0


def shifted(new: Agreement, known: Agreement) -> str | None:
    """A sentence, if labels or world seem to have changed: agreement fell by more than 15 points, and not by chance.

    One-sided exact test (Fisher 1935) at 0.01.
    """
    if not new.rows or not known.rows or known.share - new.share <= DROP:
        return None
    p = fisher(new, known)
    if p >= LEVEL:
        return None
    return (
        f"labels or world changed: the version in production gives {100 * new.share:.1f} % of the new rows the label "
        f"that they have, and {100 * known.share:.1f} % of the last exam's (p = {p:.2g}). "
        "Look at the data; if it is right, pass --accept-shift"
    )


def fisher(new: Agreement, known: Agreement) -> float:
    """How likely so few agreements among the new rows are, if both kinds of rows agree alike (hypergeometric)."""
    agreed, total = new.agreed + known.agreed, new.rows + known.rows
    least, most = max(0, agreed - known.rows), min(agreed, new.rows)
    k = np.arange(least, most + 1)

    def choose(n: int, r: np.ndarray) -> np.ndarray:
        logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
        return np.asarray(logs[n] - logs[r] - logs[n - r])

    logarithms = choose(new.rows, k) + choose(known.rows, agreed - k)
    whole = math.lgamma(total + 1) - math.lgamma(agreed + 1) - math.lgamma(total - agreed + 1)
    return float(min(1.0, np.exp(logarithms[k <= new.agreed] - whole).sum()))


def scattered(labels: Mapping[str, int], known: Collection[str]) -> str | None:
    """A sentence, if what should be labels looks like another column: many new ones, of few rows each."""
    new = [rows for label, rows in labels.items() if label not in known]
    if len(new) < MANY or sum(new) >= FEWEST * len(new):
        return None
    return (
        f"the column of labels holds {len(new)} labels that are not known yet, in {sum(new)} rows: is it the right "
        "column? If it is, pass --accept-shift"
    )


def warnings(labels: dict[str, int], repeated: int, rows: int) -> list[str]:
    """What is odd about new data, and learnt nevertheless: sentences for the card."""
    found = []
    if len(labels) == 1:
        found.append(f"all {rows} rows have one label, {next(iter(labels))!r}")
    if rows and repeated / rows > REPEATED:
        found.append(f"{repeated} of {rows} rows repeat an earlier one of the same file")
    return found
