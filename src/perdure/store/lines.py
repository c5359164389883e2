"""JSON lines that are appended and never changed: a line is on disk before `append` returns."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from perdure.checkpoint import CheckpointError, replace_file, sync_folder


def append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Adds a line a row, and waits for the disk. What a crash left of an earlier line is removed first."""
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    if not fresh:
        _mend(path)
    with path.open("ab") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    if fresh:
        sync_folder(path.parent)


def read(path: Path) -> list[dict[str, Any]]:
    """All whole lines; one that a crash cut short was never promised. Raises CheckpointError for a damaged one."""
    data = path.read_bytes() if path.exists() else b""
    try:
        found = [json.loads(line) for line in data[: data.rfind(b"\n") + 1].split(b"\n") if line]
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not all(isinstance(line, dict) for line in found):
        raise CheckpointError(f"{path} is damaged: a line of it is no object")
    return found


def _mend(path: Path) -> None:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if not size:
            return
        file.seek(size - 1)
        whole = file.read() == b"\n"
    if not whole:
        data = path.read_bytes()
        replace_file(path, data[: data.rfind(b"\n") + 1])
