"""State on disk: a tree of tensors and plain values as one safetensors file, hashed, written atomically; no pickle.

The tensors lie in the file under their path in the tree; the tree is JSON in the header, with `{"$tensor": path}`
where a tensor stands, so tied tensors are written once. The header also holds the SHA-256 of the whole file, taken
with the hash's own 64 characters set to 0: any byte that changes is noticed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

FORMAT = 1
_BLANK = "0" * 64


class CheckpointError(ValueError):
    """A file that cannot be taken for a Perdure state: missing, cut short, changed, foreign or of a newer format."""


def write(path: str | os.PathLike[str], tree: dict[str, Any], kind: str) -> str:
    """Writes `tree` (dicts, lists, tuples, tensors, JSON values); `kind` says what it is: "learner", "memory".

    Returns the file's hash. Killed at any instant, `path` is either the old file or the new one.
    """
    tensors: dict[str, Tensor] = {}
    content = _pack(tree, "", tensors, {})
    text = json.dumps({"format": FORMAT, "kind": kind, "tree": content})
    with _replacing(path) as temporary:  # through the disk: a state may be large, and is in memory once already
        try:
            safetensors.save_file(tensors, temporary, metadata={"perdure": text, "sha256": _BLANK})
        except SafetensorError as error:
            raise OSError(f"cannot write {path}: {error}") from error
        return _seal(temporary)


def read(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """The tree that `write` wrote, tensors on the CPU. Raises CheckpointError, never runs code from the file."""
    return read_with_hash(path, kind)[0]


def read_with_hash(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], str]:
    """The same, and the file's hash."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    metadata, tensors = _opened(path, data)
    if "perdure" not in metadata:
        raise CheckpointError(f"{path} is a safetensors file, but Perdure did not write it")
    digest = metadata.get("sha256", "")
    if len(digest) != 64 or _digest_of(data, digest) != digest:
        raise CheckpointError(f"{path} is damaged: its content does not match its hash; use an earlier copy")
    head = json.loads(metadata["perdure"])
    if head["format"] > FORMAT:
        raise CheckpointError(f"{path} has format {head['format']}, this version reads up to {FORMAT}: upgrade perdure")
    if head["kind"] != kind:
        raise CheckpointError(f"{path} holds a {head['kind']}, not a {kind}")
    tree: dict[str, Any] = _unpack(head["tree"], tensors)
    return tree, digest


def replace_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file whole: temporary file beside it, fsync, rename, fsync of the folder."""
    with _replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)


@contextlib.contextmanager
def _replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file to fill, which then takes the place of `path`, on disk for certain."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in the folder last, where the system can be asked to."""
    if os.name != "posix":  # Windows cannot open a folder; its rename is journalled
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _opened(path: str | os.PathLike[str], data: bytes) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata and the tensors of a safetensors file."""
    try:
        tensors = safetensors.load(data)
        size = int.from_bytes(data[:8], "little")
        metadata: dict[str, str] = json.loads(data[8 : 8 + size]).get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({len(data)} bytes): cut short or damaged"
        ) from error
    return metadata, tensors


def _seal(file: Path) -> str:
    """Puts the hash of a file into it, over the blank; gives it."""
    with open(file, "r+b") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
        handle.seek(0)
        size = int.from_bytes(handle.read(8), "little")
        handle.seek(8 + handle.read(size).index(_marked(_BLANK)) + len(_marked("")) - 1)
        handle.write(digest.encode())
    return digest


def _digest_of(data: bytes, digest: str) -> str:
    """The hash of a file's content as it was before `digest` was put over the blank."""
    before, found, _ = data[: 8 + int.from_bytes(data[:8], "little")].partition(_marked(digest))
    hashed = hashlib.sha256(before)
    if found:
        hashed.update(_marked(_BLANK))
    hashed.update(memoryview(data)[len(before) + len(found) :])
    return hashed.hexdigest()


def _marked(digest: str) -> bytes:
    """As it stands in the header."""
    return f'"sha256":"{digest}"'.encode()


def _pack(value: Any, path: str, tensors: dict[str, Tensor], seen: dict[tuple[Any, ...], str]) -> Any:
    if isinstance(value, Tensor):
        return {"$tensor": _keep(value, path, tensors, seen)}
    if isinstance(value, dict):
        inside = {key: f"{path}/{key}" if path else str(key) for key in value}
        values = [_pack(v, inside[key], tensors, seen) for key, v in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return dict(zip(value, values, strict=True))
        keys = [_pack(key, inside[key], tensors, seen) for key in value]
        return {"$items": [list(item) for item in zip(keys, values, strict=True)]}
    if isinstance(value, tuple):
        return {"$tuple": [_pack(v, f"{path}/{i}", tensors, seen) for i, v in enumerate(value)]}
    if isinstance(value, list):
        return [_pack(v, f"{path}/{i}", tensors, seen) for i, v in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    found = type(value).__name__
    raise TypeError(f"{path} is a {found}; a state holds tensors, numbers, strings, lists and dicts only")


def _keep(tensor: Tensor, path: str, tensors: dict[str, Tensor], seen: dict[tuple[Any, ...], str]) -> str:
    """Notes a tensor under its path, or finds the path of the same one."""
    tensor = tensor.detach()
    where = _place(tensor)
    if tensor.numel() and where in seen:
        return seen[where]
    while path in ("", "__metadata__") or path in tensors:  # keys "a/b" and "a" > "b" meet in one path
        path += "'"
    seen[where] = path
    own = tensor.cpu().contiguous()
    storage = (own.untyped_storage().data_ptr(),)
    if storage in seen:
        own = own.clone()  # safetensors refuses two tensors of one storage
    seen[storage] = path
    tensors[path] = own
    return path


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are one."""
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpack(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        return tensors[value["$tensor"]]
    if "$tuple" in value:
        return tuple(_unpack(v, tensors) for v in value["$tuple"])
    if "$items" in value:
        return {_unpack(key, tensors): _unpack(v, tensors) for key, v in value["$items"]}
    return {key: _unpack(v, tensors) for key, v in value.items()}


def fixed(tensor: Tensor) -> Tensor:
    """Marks a tensor to which nobody will ever write: copies of a state share it."""
    tensor.perdure_fixed = True  # type: ignore[attr-defined]
    return tensor


def clone(tree: Any, seen: dict[tuple[Any, ...], Tensor] | None = None) -> Any:
    """A copy of a state whose tensors share nothing with the original's; those that are tied there are tied here."""
    seen = {} if seen is None else seen
    if isinstance(tree, Tensor):
        if getattr(tree, "perdure_fixed", False):
            return tree
        return seen.setdefault(_place(tree), tree.detach().clone()) if tree.numel() else tree.detach().clone()
    if isinstance(tree, dict):
        return {key: clone(value, seen) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(clone(value, seen) for value in tree)
    return tree


def placed(tree: Any, device: torch.device) -> Any:
    """The tree with its tensors on the device."""
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {key: placed(value, device) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(placed(value, device) for value in tree)
    return tree


def tensor_bytes(tree: Any) -> int:
    """Bytes of all tensors in a state; tied ones count once."""
    sizes: dict[tuple[int, torch.Size], int] = {}
    stack = [tree]
    while stack:
        value = stack.pop()
        if isinstance(value, Tensor):
            sizes[(value.data_ptr(), value.shape)] = value.numel() * value.element_size()
        elif isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, (list, tuple)):
            stack.extend(value)
    return sum(sizes.values())
