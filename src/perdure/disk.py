"""The rows of a memory in files: mapped, not read; what is overwritten is logged first, so that one can go back."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure.checkpoint import CheckpointError, replace_file

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
)}  # fmt: skip
KEPT = 2  # save points whose log is kept: the last one, and the one before while the last is being written


class DiskRows:
    """Columns of `rows` rows in a folder, one file each. `tensors` are those files, mapped: [rows, ...], on the CPU.

    A save point of a learner holds the folder's id and the number that `mark` gave. Before rows are overwritten for
    the first time after a mark, they are appended to that mark's log; `back_to` puts them back, newest log first. So
    the files may run ahead of the save point, and a process that is killed loses nothing. Power that fails may: only
    the save point is forced to the disk.
    """

    def __init__(self, folder: str | os.PathLike[str], rows: int) -> None:
        self.folder, self.rows = Path(folder), rows
        self.tensors: dict[str, Tensor] = {}
        self.id, self.number = "", 0
        self._logged = torch.zeros(0, dtype=torch.bool)  # slots that are in this mark's log, or were empty at the mark
        self._marked: int | None = None  # how many rows there were at the mark; None once any of them was overwritten

    @classmethod
    def create(cls, folder: str | os.PathLike[str], rows: int, columns: dict[str, Tensor]) -> DiskRows:
        """New files, for columns like these. Raises ValueError where the folder holds something."""
        found = cls(folder, rows)
        if found.folder.exists() and any(found.folder.iterdir()):
            raise ValueError(f"{folder} is not empty: name a new folder for the rows, or load the learner they are of")
        found.folder.mkdir(parents=True, exist_ok=True)
        found.id = secrets.token_hex(16)
        layout = [[name, str(t.dtype).removeprefix("torch."), list(t.shape[1:])] for name, t in columns.items()]
        replace_file(found.folder / "rows.json", json.dumps({"id": found.id, "rows": rows, "columns": layout}).encode())
        found._map(layout)
        found.mark(0)
        return found

    @classmethod
    def open(cls, folder: str | os.PathLike[str], state: dict[str, Any], filled: int) -> DiskRows:
        """The files as they were at the mark in `state`. Raises CheckpointError where they are not there, or others."""
        try:
            head = json.loads((Path(folder) / "rows.json").read_text(encoding="utf-8"))
            found, layout = (
                cls(folder, int(head["rows"])),
                [(name, kind, [*shape]) for name, kind, shape in head["columns"]],
            )
            found.id = head["id"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"the rows of this memory are not in {folder}: {error}") from error
        if found.id != state["id"]:
            raise CheckpointError(f"{folder} holds the rows of another memory")
        found._map(layout)
        found.back_to(int(state["number"]), filled)
        return found

    def remove(self) -> None:
        """Deletes the files, and the folder."""
        self.tensors = {}
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()

    @property
    def state(self) -> dict[str, Any]:
        """What a save point holds of it."""
        return {"id": self.id, "number": self.number}

    def mark(self, filled: int) -> int:
        """From here on one can go back to this instant, when `filled` rows were there; the number of the mark.

        Where nothing has changed since the last mark, it is that one.
        """
        if self._marked == filled:
            return self.number
        self.number, self._marked = self.number + 1, filled
        self._logged = torch.ones(self.rows, dtype=torch.bool)
        self._logged[:filled] = False
        self._log(self.number).write_bytes(b"")
        for old in self._logs():
            if old < self.number - KEPT:
                self._log(old).unlink()
        return self.number

    def before_writing(self, slots: Tensor) -> None:
        """Logs what stands in these slots, unless that was done since the mark."""
        slots = slots[~self._logged[slots]]
        if len(slots):
            parts = [slots.numpy().tobytes(), *(_bytes(self.tensors[name][slots]) for name in sorted(self.tensors))]
            data = b"".join(parts)
            with open(self._log(self.number), "ab") as file:
                file.write(len(slots).to_bytes(8, "little") + data)
            self._logged[slots], self._marked = True, None

    def back_to(self, number: int, filled: int) -> None:
        """Puts back what was overwritten since a mark, and marks anew. Raises CheckpointError where that is too old."""
        logs = sorted((log for log in self._logs() if log >= number), reverse=True)
        if not logs or logs[-1] != number:
            raise CheckpointError(f"the rows in {self.folder} have moved on since this save point")
        for log in logs:
            for slots, rows in self._records(log):  # a slot stands in a log once
                for name, values in rows.items():
                    self.tensors[name][slots] = values
        for log in logs:
            self._log(log).unlink()
        self.number, self._marked = number - 1, None
        self.mark(filled)

    def _map(self, layout: Sequence[Any]) -> None:
        for place, (name, kind, shape) in enumerate(layout):
            if kind not in DTYPES:
                raise CheckpointError(f"{self.folder}: column {name!r} holds {kind!r}, which is no type of numbers")
            dtype = DTYPES[kind]
            count = self.rows * max(1, torch.Size(shape).numel())
            path = self.folder / f"column-{place}"
            if not path.exists():
                with open(path, "wb") as file:
                    file.truncate(count * dtype.itemsize)
            elif path.stat().st_size != count * dtype.itemsize:
                raise CheckpointError(f"{path} was cut short or has grown: use an earlier copy of the folder")
            self.tensors[name] = torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(-1, *shape)

    def _records(self, log: int) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """(slots, rows) in the order in which they were written; one that was cut short was not acted upon."""
        data, at, found = self._log(log).read_bytes(), 0, []
        row = 8 + sum(_row_bytes(tensor) for tensor in self.tensors.values())
        while at + 8 <= len(data):
            count = int.from_bytes(data[at : at + 8], "little")
            if at + 8 + count * row > len(data):
                break
            at += 8
            slots = torch.frombuffer(bytearray(data[at : at + 8 * count]), dtype=torch.int64)
            if count and not 0 <= int(slots.min()) <= int(slots.max()) < self.rows:
                raise CheckpointError(f"{self._log(log)} is damaged: use an earlier copy of the folder")
            at += 8 * count
            rows = {}
            for name in sorted(self.tensors):
                size = count * _row_bytes(self.tensors[name])
                part = torch.frombuffer(bytearray(data[at : at + size]), dtype=self.tensors[name].dtype)
                rows[name] = part.view(count, *self.tensors[name].shape[1:])
                at += size
            found.append((slots, rows))
        return found

    def _log(self, number: int) -> Path:
        return self.folder / f"log-{number:08d}"

    def _logs(self) -> list[int]:
        return [int(path.name.removeprefix("log-")) for path in self.folder.glob("log-*")]


def _bytes(tensor: Tensor) -> bytes:
    data: bytes = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return data


def _row_bytes(tensor: Tensor) -> int:
    return tensor.shape[1:].numel() * tensor.element_size()
