"""New data on arrival: read in full, divided into rows to learn and rows to examine with, and looked at."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perdure.recipes.recipe import Recipe
from perdure.recipes.tables import pick
from perdure.store import suspicion
from perdure.store.exam import Exam
from perdure.store.exams import MOST, divide, thinned
from perdure.store.folder import StoreError

if TYPE_CHECKING:
    import pyarrow


class RefusedError(StoreError):
    """Data that is not learnt: production stays as it is."""


@dataclass(frozen=True)
class Arrival:
    """New rows, checked and divided: those to learn, those to examine with (`own`), and the exams that were brought."""

    learn: pyarrow.Table | None
    own: Exam | None
    brought: list[Exam]
    labels: dict[str, int]
    fingerprint: str
    repeated: int
    warnings: list[str]

    @property
    def exams(self) -> list[Exam]:
        """All that came with these rows."""
        return [*([] if self.own is None else [self.own]), *self.brought]


def arrive(
    table: pyarrow.Table,
    brought: Mapping[str, pyarrow.Table],
    recipe: Recipe,
    *,
    name: str,
    key: str,
    share: float,
    asked: Collection[int],
    known: Collection[int | str],
) -> Arrival:
    """Checks and divides new data; `asked` are the marks of earlier brought exams, `known` the labels learnt so far.

    What an exam holds is not learnt: rows that are in a brought one are left out. Raises RefusedError for data that
    cannot be learnt.
    """
    for part in (table, *brought.values()):
        try:
            recipe.check(part, labelled=True)
        except ValueError as error:
            raise RefusedError(str(error)) from error
    labels = recipe.labels(table)
    _one_kind([*known, *labels])
    found = divide(key, recipe.contents(table), share)
    new = Exam(name, pick(table, found.examine), found.marks)
    own, exams = new.select(thinned({name: new.marks}, MOST)[name]), whole(name, brought, recipe, key)
    held_out = {place for exam in exams for place in exam.marks}.union(asked)
    learn = [row for row in found.learn if found.places[row] not in held_out]
    if not learn:
        raise RefusedError(f"none of the {table.num_rows} rows is left to learn from: all are in exams")
    warnings = suspicion.warnings(Counter(map(str, labels)), found.repeated, len(labels))
    if len(learn) < len(found.learn):
        warnings.append(f"{len(found.learn) - len(learn)} rows are in an exam that was brought, and are not learnt")
    digest = hashlib.sha256()
    for place, label in zip(found.places, labels, strict=True):
        digest.update(f"{place:x} {label}\n".encode())
    counts = dict(sorted(Counter(map(str, labels)).items()))
    return Arrival(pick(table, learn), own, exams, counts, digest.hexdigest(), found.repeated, warnings)


def whole(name: str, brought: Mapping[str, pyarrow.Table], recipe: Recipe, key: str) -> list[Exam]:
    """Tables that were brought as exams, all rows of each, each content once."""
    found = []
    for title, table in brought.items():
        places = divide(key, recipe.contents(table), share=0.0).places
        first = sorted({place: row for row, place in reversed(list(enumerate(places)))}.values())
        found.append(Exam(f"{name} {title}", pick(table, first), [places[row] for row in first]))
    return found


def _one_kind(labels: Collection[int | str]) -> None:
    kinds = {"words" if isinstance(label, str) else "numbers" for label in labels}
    if len(kinds) > 1:
        raise RefusedError("some labels are words and some numbers, here or in what was learnt; make them one kind")
