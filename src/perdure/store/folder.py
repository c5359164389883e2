"""The folder of a store: settings, versions, the pointer to production, the history, and what a crash left behind.

    store.json               what the store is: recipe, method, rules, the key of its exams (sealed)
    versions/0007/           never changed: learner.perdure, recipe.perdure, exam.perdure, answers.perdure, card.json
    production               the number of the version that answers, one line
    history.jsonl            what happened, a line an event, each with the hash of the line before
    work/                    an update that is under way: what was asked for, and its save points

A version is written under another name and renamed, the pointer is replaced, the history is appended to, in that order:
killed between any two, `recover` finishes what a card says was decided.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from perdure import lock, sealed
from perdure.checkpoint import CheckpointError, replace_file

FORMAT = 1
DECIDED = ("promoted", "refused")  # what becomes of a version when it is made
MOVED = ("promoted", "forced", "rolled back")  # what changes production


class StoreError(ValueError):
    """What was asked of a store cannot be done, and the sentence says why."""


@dataclass(frozen=True)
class Folder:
    """Where everything of a store lies, and the few ways in which it changes."""

    path: Path

    @property
    def settings(self) -> Path:
        """What the store is."""
        return self.path / "store.json"

    @property
    def work(self) -> Path:
        """An update that is under way."""
        return self.path / "work"

    def version(self, number: int) -> Path:
        """A version's folder."""
        return self.path / "versions" / f"{number:04d}"

    def versions(self) -> list[int]:
        """The numbers of all versions, promoted or not."""
        return sorted(int(found.name) for found in self.path.glob("versions/[0-9]*") if found.name.isdecimal())

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else changes the store meanwhile. Raises StoreError where somebody does."""
        try:
            with lock.held(self.path):
                yield
        except lock.BusyError:
            raise StoreError(f"the store {self.path} is being updated by another process; wait for it") from None

    # ---- production and history ----

    def production(self) -> int | None:
        """The number of the version that answers; None before there is one."""
        try:
            text = (self.path / "production").read_text(encoding="ascii")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"cannot read {self.path / 'production'}: {error}") from error
        number = text.strip()
        if not (number.isdecimal() and self.version(int(number)).is_dir()):
            raise CheckpointError(
                f"{self.path / 'production'} says {text[:20]!r}, which is no version; write one of "
                f"{self.versions()} there"
            )
        return int(number)

    def point(self, number: int) -> None:
        """Makes a version the one that answers."""
        replace_file(self.path / "production", f"{number:04d}\n".encode())

    def history(self) -> list[dict[str, Any]]:
        """Every event, oldest first. Raises CheckpointError where a line was changed; a torn last line is no event."""
        return self._history()[0]

    def note(self, event: str, version: int | None, why: list[str] | None = None) -> None:
        """Appends an event to the history."""
        content = {"at": now(), "event": event, "version": version, "why": why or []}
        digest = sealed.digest({**content, "before": self._history()[1]})
        line = json.dumps({**content, sealed.HASH: digest}, ensure_ascii=False)
        with (self.path / "history.jsonl").open("ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _history(self) -> tuple[list[dict[str, Any]], str]:
        """The events and the last one's hash."""
        events: list[dict[str, Any]] = []
        last, path = "", self.path / "history.jsonl"
        data = path.read_bytes() if path.exists() else b""
        for place, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines()):
            try:
                event = json.loads(line)
                found = event.pop(sealed.HASH)
            except (ValueError, KeyError, AttributeError, TypeError):
                event, found = {}, ""
            if found != sealed.digest({**event, "before": last}):
                raise CheckpointError(f"{path} is damaged in line {place + 1}")
            events.append(event)
            last = found
        return events, last

    def promoted(self) -> list[int]:
        """The versions that were in production at any time, by number."""
        return sorted({event["version"] for event in self.history() if event["event"] in ("promoted", "forced")})

    # ---- after a crash ----

    def recover(self) -> list[str]:
        """Puts right what a process left when it was killed; says what it found. The folder must be held."""
        found = []
        for half in [*self.path.glob("versions/.*.tmp"), *self.path.glob(".*.tmp"), *self.path.glob("work/.*.tmp")]:
            shutil.rmtree(half) if half.is_dir() else half.unlink()
            if half.parent.name == "versions":
                found.append("a version that was being written when its process ended is removed")
        if self._tear():
            found.append("the last line of the history was cut short, and is removed")
        known = {event["version"] for event in self.history() if event["event"] in DECIDED}
        for number in [number for number in self.versions() if number not in known]:
            decision = sealed.read(self.version(number) / "card.json")["decision"]
            self.decide(number, decision["promote"], decision["refusals"])
            found.append(
                f"version {number} was whole but not yet {'promoted' if decision['promote'] else 'noted'}; it is now"
            )
        moved = [event["version"] for event in self.history() if event["event"] in MOVED]
        if moved and moved[-1] != self.production():
            self.note("rolled back", self.production(), ["noted later: the process ended before it could"])
            found.append(
                f"version {self.production()} was put into production without a note; it is in the history now"
            )
        return found

    def decide(self, number: int, promote: bool, why: list[str]) -> None:
        """Promotes a version that is on disk, or notes that it is refused; and the update is over."""
        if promote:
            self.point(number)
        self.note("promoted" if promote else "refused", number, why)
        self.close()

    def close(self) -> None:
        """The update that is under way is over, or given up."""
        shutil.rmtree(self.work, ignore_errors=True)

    def _tear(self) -> bool:
        path = self.path / "history.jsonl"
        if not path.exists():
            return False
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            replace_file(path, whole)
        return len(whole) < len(data)


def now() -> str:
    """The time, to the second, with its zone."""
    return datetime.now(UTC).isoformat(timespec="seconds")
