"""A seed of its own for each use of chance."""

from __future__ import annotations

import hashlib


def seeded(seed: int, *words: object) -> int:
    """A seed of its own for each use, so that no use shifts another."""
    digest = hashlib.sha256("/".join(str(word) for word in (seed, *words)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
