"""Streams to choose settings on: cut from the first task's train rows, or the first three tasks; never a test row."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from perdure.data import Label, Rows, Task, chunks
from perdure.experiment.settings import RequestError
from perdure.streams import Stream

LEAST = 3
HELD_OUT = 0.2


def first_task(stream: Stream, scenario: str, pieces: int = LEAST) -> Stream:
    """The first task's train rows in at least three pieces, each with a fifth of its rows held out to grade it on.

    By label where every piece gets two labels or more. Otherwise by looks: each label's rows in the order of their
    first principal component, cut in equal parts, so that the pieces share the first task's labels and differ in
    inputs; that serves scenarios "task" and "domain". Raises RequestError where neither is possible.
    """
    if pieces < LEAST:
        raise RequestError(f"{pieces} pieces are too few to see forgetting; take at least {LEAST}")
    first = stream[0]
    rows = first.train
    if rows.dense:
        raise RequestError("a pseudo-stream is cut by label, and these rows have no single label; tune on first-three")
    labels = [label for label in first.classes if label in rows.classes]
    codes = rows.positions(labels)
    if scenario != "domain" and len(labels) >= 2 * pieces:
        bounds = [len(labels) * i // pieces for i in range(pieces + 1)]
        parts = [((codes >= low) & (codes < high)).nonzero()[:, 0] for low, high in pairwise(bounds)]
        classes = [labels[low:high] for low, high in pairwise(bounds)]
    elif scenario == "class":
        raise RequestError(
            f"the first task has {len(labels)} labels, and {pieces} pieces of new classes need {2 * pieces}; "
            "tune on first-three instead"
        )
    else:
        parts = _by_looks(rows, codes, len(labels), pieces)
        classes = [list(first.classes)] * pieces
    cut = enumerate(zip(parts, classes, strict=True), start=1)
    tasks = [graded(rows.select(part), own, f"piece {number}") for number, (part, own) in cut]
    return Stream(tasks, name=f"{stream.name}, pieces", description=f"The first task's train rows in {pieces} pieces.")


def first_three(stream: Stream) -> Stream:
    """The train rows of the first three tasks, a fifth of each held out; these tasks must not count afterwards."""
    if len(stream) <= LEAST:
        raise RequestError(f"the stream has {len(stream)} tasks; with the first {LEAST} used for tuning none is left")
    tasks = [graded(task.train, task.classes, task.name) for task in stream[:LEAST]]
    return Stream(tasks, name=f"{stream.name}, first three", description="The train rows of the first three tasks.")


def graded(rows: Rows, classes: Sequence[Label], name: str) -> Task:
    """A task of these rows with a fifth held out; its labels are as given, whichever of them stand where."""
    if len(rows) < 2:
        raise RequestError(f"{name} would have {len(rows)} rows, and needs 2: one to learn, one to grade on")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(len(rows)))
    held_out = max(1, int(len(rows) * HELD_OUT))
    return Task(rows.select(order[held_out:].sort().values), rows.select(order[:held_out]), name=name, classes=classes)


def _by_looks(rows: Rows, codes: Tensor, labels: int, pieces: int) -> list[Tensor]:
    along = _first_component(rows)
    parts: list[list[Tensor]] = [[] for _ in range(pieces)]
    for code in range(labels):
        own = (codes == code).nonzero()[:, 0]
        own = own[along[own].argsort(stable=True)]
        for piece in range(pieces):
            parts[piece].append(own[len(own) * piece // pieces : len(own) * (piece + 1) // pieces])
    return [torch.cat(part).sort().values for part in parts]


def _first_component(rows: Rows) -> Tensor:
    """Each row's place along the direction in which inputs vary most, [n]."""
    read = [rows.read(index) for index in chunks(torch.arange(len(rows)), 1024)]
    if any(isinstance(part, dict) for part in read):
        raise RequestError("rows of named columns cannot be cut by looks; tune on first-three instead")
    return along_first_component(torch.cat([part.flatten(1).float() for part in read if isinstance(part, Tensor)]))


def along_first_component(x: Tensor, rounds: int = 20) -> Tensor:
    """Each row's place along the direction in which the rows of x [n, d] vary most, by power iteration; [n]."""
    x = x - x.mean(0)
    direction = torch.ones(x.shape[1])
    for _ in range(rounds):
        direction = x.T @ (x @ direction)
        direction = direction / direction.norm().clamp(min=1e-12)
    return x @ direction
