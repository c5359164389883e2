"""A folder that is watched: each new file becomes one update, once, in the order of names.

What was done is in the store's `watched.jsonl`, a line a file with the hash of its bytes. It is written after the
update: killed between the two, the next watch gives the same rows again, and the store knows that it learnt them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from perdure import sealed
from perdure.checkpoint import CheckpointError
from perdure.recipes import tables
from perdure.recipes.tables import TableError
from perdure.spelling import one_of
from perdure.store import drift, lines
from perdure.store.arrival import RefusedError
from perdure.store.folder import StoreError, now

if TYPE_CHECKING:
    import pyarrow

    from perdure.store.store import Store

KINDS = (".parquet", ".csv", ".tsv", ".jsonl")
RECORD = "watched.jsonl"


@dataclass(frozen=True)
class Seen:
    """What became of files: `event` is an outcome's kind, or "broken" for one that cannot be read or learnt."""

    files: list[str]
    event: str
    version: int | None
    why: list[str]


@dataclass
class Watch:
    """Looks into a folder, and teaches a store what is new there.

    when   "always", or "drift": files wait until their rows, taken together, differ from what was learnt
    least  files wait until they have so many rows together

    Files that waited become one update. Names that begin with a dot, folders and other kinds of files are left alone.
    A file is read when its size and time are those of the look before. Raises StoreError where drift cannot be judged.
    """

    store: Store
    folder: Path
    when: Literal["always", "drift"] = "always"
    least: int = 0
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict, repr=False)
    known: dict[str, tuple[tuple[int, int], str]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        one_of("when", self.when, ("always", "drift"))
        if not self.folder.is_dir():
            raise StoreError(f"there is no folder {self.folder} to watch")

    def once(self, settle: float = 1.0) -> Iterator[Seen]:
        """Two looks, `settle` seconds apart, so that what is still being written is left for another time."""
        self._resting()
        time.sleep(settle)
        yield from self.look()

    def look(self) -> Iterator[Seen]:
        """Files that are new since the last look and at rest, each with what became of it."""
        done = {(line["file"], line["sha256"]) for line in lines.read(self._record)}
        waiting: list[tuple[str, str]] = []
        together: pyarrow.Table | None = None
        for path in self._resting():
            try:
                mark = (path.name, self._digest(path))
                if mark in done:
                    continue
                together = _joined(together, self._readable(path))
            except FileNotFoundError:
                continue
            except (TableError, CheckpointError) as error:
                yield self._note([mark], Seen([path.name], "broken", None, [str(error)]))
                continue
            waiting.append(mark)
            if self._ready(together):
                yield self._teach(waiting, together)
                waiting, together = [], None

    def _ready(self, table: pyarrow.Table) -> bool:
        if table.num_rows < self.least:
            return False
        return self.when == "always" or bool(drift.check(self.store, table).moved)

    def _teach(self, marks: list[tuple[str, str]], table: pyarrow.Table) -> Seen:
        """One update. A store that is busy, or a disk that is full, is no fault of the file: the error is raised."""
        names = [name for name, _ in marks]
        try:
            outcome = self.store.update(table)
        except (RefusedError, TableError) as error:
            return self._note(marks, Seen(names, "broken", None, [str(error)]))
        return self._note(marks, Seen(names, outcome.kind, outcome.version, outcome.why))

    def _note(self, marks: list[tuple[str, str]], seen: Seen) -> Seen:
        about: dict[str, Any] = {"event": seen.event, "version": seen.version, "why": seen.why, "at": now()}
        lines.append(self._record, [{"file": name, "sha256": digest, **about} for name, digest in marks])
        return seen

    @property
    def _record(self) -> Path:
        return self.store.folder.path / RECORD

    def _resting(self) -> list[Path]:
        """Files by name that are as they were at the look before."""
        there = [path for path in sorted(self.folder.iterdir()) if path.suffix.lower() in KINDS]
        before, self.sizes = self.sizes, {}
        for path in there:
            if path.is_file() and not path.name.startswith("."):
                about = path.stat()
                self.sizes[path.name] = (about.st_size, about.st_mtime_ns)
        return [path for path in there if path.name in self.sizes and before.get(path.name) == self.sizes[path.name]]

    def _digest(self, path: Path) -> str:
        """The hash of a file, taken anew when its size or time is another."""
        about, digest = self.known.get(path.name, ((-1, -1), ""))
        if about != self.sizes[path.name]:
            digest = sealed.file_digest(path)
            self.known[path.name] = (self.sizes[path.name], digest)
        return digest

    def _readable(self, path: Path) -> pyarrow.Table:
        table = tables.read(path)
        number = self.store.folder.production()
        if number is not None:  # so that one broken file does not spoil those that it waits with
            self.store.answerer(number).recipe.check(table, labelled=True)
        return table


def _joined(together: pyarrow.Table | None, table: pyarrow.Table) -> pyarrow.Table:
    if together is None:
        return table
    arrow = tables.optional("pyarrow")
    try:
        return arrow.concat_tables([together, table], promote_options="permissive")
    except arrow.ArrowException as error:
        raise TableError(f"its columns do not go with those of the files before it: {error}") from error
