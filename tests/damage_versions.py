"""Damages a version of a store in every way, seeded: `python tests/damage_versions.py COUNT FOLDER`."""

import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from store_examples import begin, clouds

from perdure.checkpoint import CheckpointError
from perdure.store.store import Store
from perdure.store.version import Version

KINDS = ("flip", "cut", "swap", "gone", "field", "grown")


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every field of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inside = [found for key, item in items for found in places(item, (*path, key))]
    return inside or [path]


def other(value: Any) -> Any:
    """Another value of about the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}x" if isinstance(value, str) else "x"


def changed(kind: str, whole: bytes, foreign: bytes, draws: random.Random, name: str) -> bytes | None:
    """The file damaged; None where it is gone."""
    if kind == "field" and name.endswith(".json"):
        content = json.loads(whole)
        *way, last = draws.choice(places(content))
        here = content
        for key in way:
            here = here[key]
        here[last] = other(here[last])
        return json.dumps(content, indent=1).encode()
    if kind == "gone":
        return None
    if kind == "swap":
        return foreign
    if kind == "cut":
        return whole[: draws.randrange(len(whole))]
    if kind == "grown":
        return whole + draws.randbytes(draws.randrange(1, 50))
    damaged = bytearray(whole)
    damaged[draws.randrange(len(whole))] ^= 1 << draws.randrange(8)
    return bytes(damaged)


def damage(store: Store, count: int, seed: int = 0) -> Counter[str]:
    """How many of each kind of damage were refused; each is tried on a version's files in turn."""
    draws, refused = random.Random(seed), Counter[str]()
    *_, before, number = store.folder.versions()
    files = sorted(store.folder.version(number).iterdir())
    for turn in range(count):
        file, kind = files[turn % len(files)], draws.choice(KINDS)
        whole = file.read_bytes()
        found = changed(kind, whole, (store.folder.version(before) / file.name).read_bytes(), draws, file.name)
        if found == whole:
            continue
        if found is None:
            file.unlink()
        else:
            file.write_bytes(found)
        try:
            Version.open(store.folder, number).check()
        except CheckpointError:
            refused[kind] += 1
        else:
            raise AssertionError(f"{kind} of {file.name}, turn {turn}, went unseen")
        finally:
            file.write_bytes(whole)
    Version.open(store.folder, number).check()
    return refused


if __name__ == "__main__":
    store, _ = begin(Path(sys.argv[2]), clouds(["a", "b"]))
    store.update(clouds(["c"], seed=1))
    found = damage(store, int(sys.argv[1]))
    sys.stdout.write(f"{sum(found.values())} damages refused: {dict(found)}\n")
