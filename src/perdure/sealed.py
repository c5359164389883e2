"""Small files that people may read and nobody may change unseen: JSON with its own hash, written atomically."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perdure.checkpoint import CheckpointError, replace_file

HASH = "sha256"


def write(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Writes `content` (JSON values) with a hash of all that it says; killed at any instant, the old file or this."""
    sealed = {**content, HASH: digest(content)}
    replace_file(path, f"{json.dumps(sealed, indent=1, ensure_ascii=False)}\n".encode())


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `write` wrote. Raises CheckpointError for a file that is missing, cut short or changed."""
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged ({error}); use an earlier copy") from error
    if not isinstance(content, dict) or content.pop(HASH, None) != digest(content):
        raise CheckpointError(f"{path} is damaged: its content does not match its hash; use an earlier copy")
    return content


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 over the content, in whatever order its keys were written."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file. Raises CheckpointError where there is none."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
