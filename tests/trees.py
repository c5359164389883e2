"""States compared bit by bit, but for the seconds in them."""

from typing import Any

import torch
from torch import Tensor

from perdure import Learner, checkpoint, journal, state

MEASURED = ("train_seconds", "consolidate_seconds", "evaluate_seconds")


def without_seconds(tree: dict[str, Any]) -> dict[str, Any]:
    """A learner's state without what depends on the machine's speed."""
    return {**tree, "cost": {name: value for name, value in tree["cost"].items() if name not in MEASURED}}


def snapshot(learner: Learner) -> dict[str, Any]:
    """A copy of everything that the learner would save."""
    return without_seconds(checkpoint.clone(state.collect(learner)))


def stored(path: Any) -> dict[str, Any]:
    """What a learner's file holds."""
    return without_seconds(journal.read(path, "learner"))


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two trees differ: in structure, type, or any bit of a tensor."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return [] if a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b)) else [path]
    if type(a) is not type(b):
        return [path]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{path}: {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [found for key in a for found in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{path}: lengths {len(a)}, {len(b)}"]
        return [found for i, pair in enumerate(zip(a, b, strict=True)) for found in differences(*pair, f"{path}/{i}")]
    return [] if repr(a) == repr(b) else [f"{path}: {a!r}, {b!r}"]


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
