"""One process at a time in a folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BusyError(RuntimeError):
    """Another process works in the folder."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """No other process holds the folder meanwhile; a dead process holds nothing. On Windows no lock is taken."""
    with (folder / ".lock").open("w") as file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError(f"another process works in {folder}") from None
        yield
