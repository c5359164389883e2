"""Save points on disk while training goes on: whole files, and between them only the rows that have changed."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure import checkpoint

LARGE = 1 << 20  # bytes from which on a tensor's rows are compared with those of the last whole file
DELTA = "delta of a {kind}"

Place = tuple[Any, ...]  # the keys that lead to a tensor in a tree


class Journal:
    """Writes a learner's save points to `path`, in a thread of its own.

    A whole save point goes to `path`. Any other goes to `path` with ".delta" added: all that is small, and of large
    tensors (a memory) the rows that differ from the last whole file, which the delta names by its hash. `read` puts
    both together. Each file is replaced atomically: killed at any instant, what is read is one save point or the next.
    """

    def __init__(self, path: str | os.PathLike[str], kind: str) -> None:
        self.path, self.kind = Path(path), kind
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._large: dict[Place, Tensor] = {}  # of the last whole file
        self._digest, self._first = "", True

    @property
    def busy(self) -> bool:
        """Whether a save point is still being written."""
        return self._thread is not None and self._thread.is_alive()

    def write(self, tree: dict[str, Any], whole: bool) -> None:
        """Begins to write a save point, once the last one is on disk. The tensors of `tree` must stay as they are."""
        self.wait()
        task = self._changed if self._digest and self.path.exists() and not whole else self._whole
        self._thread = threading.Thread(target=self._run, args=(task, tree), name="perdure journal")
        self._thread.start()

    def wait(self) -> None:
        """Until it is on disk. Raises what went wrong there."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Until nothing is being written; what goes wrong meanwhile is left alone, as something else already has."""
        if self._thread is not None:
            self._thread.join()

    def _run(self, task: Any, tree: dict[str, Any]) -> None:
        try:
            task(tree)
        except BaseException as failure:  # told to whoever waits
            self._failure = failure

    def _whole(self, tree: dict[str, Any]) -> None:
        self._digest = checkpoint.write(self.path, tree, self.kind)
        self._large = {place: tensor for place, tensor in _tensors(tree) if _bytes(tensor) >= LARGE and tensor.dim()}
        self._first = True
        _delta(self.path).unlink(missing_ok=True)

    def _changed(self, tree: dict[str, Any]) -> None:
        now = dict(_tensors(tree))
        found = {place: _difference(base, now.get(place)) for place, base in self._large.items()}
        rows = {place: difference for place, difference in found.items() if difference is not None}
        if self._first:  # what changes as a whole (weights) is not compared again
            self._large = {place: self._large[place] for place in rows}
        elif len(rows) < len(found):
            self._whole(tree)
            return
        self._first = False
        content = {
            "base": self._digest,
            "tree": _without(tree, (), set(rows)),
            "rows": [[list(place), index, values] for place, (index, values) in rows.items()],
        }
        checkpoint.write(_delta(self.path), content, DELTA.format(kind=self.kind))


def read(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """The newest save point that a Journal wrote; a file alone, too. Raises CheckpointError as `checkpoint.read`."""
    tree, digest = checkpoint.read_with_hash(path, kind)
    delta = _delta(Path(path))
    if not delta.exists():
        return tree
    found = checkpoint.read(delta, DELTA.format(kind=kind))
    if found["base"] != digest:  # of an earlier whole file: the process ended before it could be removed
        return tree
    newer: dict[str, Any] = found["tree"]
    for place, index, values in found["rows"]:
        _put(newer, place, _patched(_get(tree, place), index, values))
    return newer


def _delta(path: Path) -> Path:
    return path.with_name(path.name + ".delta")


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _tensors(tree: Any, place: Place = ()) -> list[tuple[Place, Tensor]]:
    """Every tensor with its place, in dicts alone: what grows with rows is never in a list."""
    if isinstance(tree, Tensor):
        return [(place, tree)]
    if not isinstance(tree, dict):
        return []
    return [found for key, value in tree.items() for found in _tensors(value, (*place, key))]


def _difference(base: Tensor, tensor: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Which rows of a tensor are not those of `base`, and what they are; None where that would not be less."""
    if tensor is None or base.dtype != tensor.dtype or base.shape[1:] != tensor.shape[1:] or len(base) > len(tensor):
        return None
    same = torch.zeros(len(tensor), dtype=torch.bool, device=tensor.device)
    both = _as_bytes(base) == _as_bytes(tensor[: len(base)])
    same[: len(base)] = both.all(1)
    index = (~same).nonzero()[:, 0]
    return None if 2 * len(index) > len(tensor) else (index, tensor[index])


def _as_bytes(tensor: Tensor) -> Tensor:
    """Bits, as NaN differs from NaN, [n, bytes]."""
    return tensor.contiguous().view(len(tensor), -1).view(torch.uint8)


def _patched(base: Tensor, index: Tensor, values: Tensor) -> Tensor:
    rows = max(len(base), int(index.max()) + 1 if len(index) else 0)
    whole = base.new_empty((rows, *base.shape[1:]))
    whole[: len(base)] = base
    whole[index] = values
    return whole


def _without(tree: Any, place: Place, left_out: set[Place]) -> Any:
    """The tree with None for some tensors."""
    if place in left_out:
        return None
    if not isinstance(tree, dict):
        return tree
    return {key: _without(value, (*place, key), left_out) for key, value in tree.items()}


def _get(tree: Any, place: list[Any]) -> Any:
    for key in place:
        tree = tree[key]
    return tree


def _put(tree: Any, place: list[Any], value: Any) -> None:
    _get(tree, place[:-1])[place[-1]] = value
