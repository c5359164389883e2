"""Rows with labels that arrive later: on disk before they are acknowledged, each given to one update.

    feedback/collected.jsonl   rows that wait
    feedback/0001.jsonl        rows that were given to an update, or came with one
    feedback/done.jsonl        what became of these, a line each

Whether a row is learnt or examined, the update decides by the row's content, as for every row.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.checkpoint import sync_folder
from perdure.service.requests import table_of
from perdure.store import lines
from perdure.store.folder import Folder, now

if TYPE_CHECKING:
    import pyarrow

COLLECTED, DONE = "collected.jsonl", "done.jsonl"


class Feedback:
    """The feedback of one store. One process at a time collects."""

    def __init__(self, folder: Folder, keep_rows: bool = True) -> None:
        self.path, self.keep_rows = folder.path / "feedback", keep_rows
        self._alone = threading.Lock()
        self._forget()
        self.waiting = len(lines.read(self.path / COLLECTED))

    def collect(self, rows: Sequence[Mapping[str, Any]]) -> int:
        """Keeps rows; they are on disk when this returns. Gives how many wait."""
        with self._alone:
            lines.append(self.path / COLLECTED, rows)
            self.waiting += len(rows)
            return self.waiting

    def batch(self, rows: Sequence[Mapping[str, Any]] | None = None) -> str | None:
        """The name of the rows for the next update; None where there are none.

        An update that did not come to an end is taken up first, unless `rows` are given.
        """
        with self._alone:
            if rows is not None:
                name = self._next()
                lines.append(self.path / name, rows)
                return name
            unfinished = sorted(set(self._batches()) - {line["batch"] for line in self.outcomes()})
            if unfinished:
                return unfinished[0]
            if not self.waiting:
                return None
            name = self._next()
            os.replace(self.path / COLLECTED, self.path / name)
            sync_folder(self.path)
            self.waiting = 0
            return name

    def table(self, name: str) -> pyarrow.Table:
        """The rows of a batch. Raises TableError for rows that are no table."""
        return table_of(lines.read(self.path / name))

    def note(self, name: str, event: str, version: int | None, why: list[str]) -> None:
        """What became of a batch; where no rows may be kept, they are removed."""
        lines.append(self.path / DONE, [{"batch": name, "event": event, "version": version, "why": why, "at": now()}])
        self._forget()

    def outcomes(self) -> list[dict[str, Any]]:
        """What became of all batches so far, oldest first."""
        return lines.read(self.path / DONE)

    def _forget(self) -> None:
        if not self.keep_rows:
            for line in self.outcomes():
                (self.path / Path(line["batch"]).name).unlink(missing_ok=True)

    def _batches(self) -> list[str]:
        return [found.name for found in self.path.glob("[0-9]*.jsonl")]

    def _next(self) -> str:
        names = [*self._batches(), *(line["batch"] for line in self.outcomes())]
        return f"{max((int(Path(name).stem) for name in names), default=0) + 1:04d}.jsonl"
