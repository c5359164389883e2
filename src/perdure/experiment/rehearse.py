"""Streams made of the first task alone, on which methods can be tried before the second task is there."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from perdure.answers import convert
from perdure.data import Rows, Task, chunks
from perdure.experiment import pieces
from perdure.experiment.settings import RequestError
from perdure.models import evaluating
from perdure.streams import Stream, permuted

Along = Tensor  # a place for each row, by which the rows of a label are cut: [n]


def streams(first: Task, scenario: str, model: nn.Module, rows: int, count: int = pieces.LEAST) -> Iterator[Stream]:
    """Streams of `count` pieces of at most `rows` train rows, the likest to what is to come first.

    "class" and "task": new labels. Those of the first task, where each piece gets two; else labels that are made: each
    label's rows, in the order of their looks, are cut into parts, and each part is a label of its own.
    "domain": the same labels, other looks; then the same rows with their values in another order, which forgets more.
    Raises RequestError where none can be made.
    """
    part = sample(first, rows)
    if part.train.dense:
        raise RequestError("a trial needs one label a row, to cut the first task by; these rows have numbers")
    labels = [label for label in part.classes if label in part.train.classes]
    if len(labels) < 2:
        raise RequestError(f"a trial needs two labels in the first task, and it has {len(labels)}")
    if scenario != "domain" and len(labels) >= 2 * count:
        yield pieces.first_task(Stream([part], name="first task"), scenario, count)
    elif scenario != "domain":
        yield _made_labels(part, looks(part.train, model), count)
    else:
        yield _by_looks(part, looks(part.train, model), count)
        if isinstance(part.train.read(slice(0, 1)), Tensor):
            yield _shuffled(part, count)


def sample(task: Task, rows: int) -> Task:
    """The task with `rows` random rows of its train rows, and no test rows."""
    order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(0))[:rows]
    return Task(task.train.select(order.sort().values), name=task.name, classes=task.classes)


@torch.no_grad()
def looks(rows: Rows, model: nn.Module) -> Along:
    """Each row's place along the direction in which what the body makes of the rows varies most, [n].

    A body that was not trained mixes its inputs at random, which keeps what is near near. A model without features is
    asked nothing: then rows are put in the order of the mean of their values.
    """
    device = next(model.parameters()).device
    seen = []
    with evaluating(model):
        for index in chunks(torch.arange(len(rows)), 512):
            x = convert(rows.read(index), device)
            features = getattr(model, "features", None)
            if callable(features):
                seen.append(features(x).flatten(1).float().cpu())
            else:
                first = x if isinstance(x, Tensor) else next(iter(x.values()))
                seen.append(first.flatten(1).float().mean(1, keepdim=True).cpu())
    return pieces.along_first_component(torch.cat(seen))


def _cut(task: Task, along: Along, count: int) -> list[list[Tensor]]:
    """For each label, its rows in `count` parts in the order of their looks."""
    codes = task.train.positions(task.classes)
    found = []
    for code in sorted(set(codes.tolist())):
        own = (codes == code).nonzero()[:, 0]
        own = own[along[own].argsort(stable=True)]
        found.append([own[len(own) * i // count : len(own) * (i + 1) // count] for i in range(count)])
    return found


def _made_labels(task: Task, along: Along, count: int) -> Stream:
    tasks, labels = [], [label for label in task.classes if label in task.train.classes]
    for i in range(count):
        parts = [own[i] for own in _cut(task, along, count)]
        names = [f"{label}, part {i + 1}" for label, part in zip(labels, parts, strict=True) for _ in range(len(part))]
        index = torch.cat(parts)
        made = Rows(task.train.read(index), names)
        tasks.append(pieces.graded(made, made.classes, f"piece {i + 1}"))
    words = f"The first task's rows in {count} pieces by their looks, each piece's labels taken for new ones."
    return Stream(tasks, name="made labels", description=words)


def _by_looks(task: Task, along: Along, count: int) -> Stream:
    cut = _cut(task, along, count)
    parts = [torch.cat([own[i] for own in cut]).sort().values for i in range(count)]
    tasks = [pieces.graded(task.train.select(p), task.classes, f"piece {i + 1}") for i, p in enumerate(parts)]
    return Stream(tasks, name="looks", description=f"The first task's rows in {count} pieces by their looks.")


def _shuffled(task: Task, count: int) -> Stream:
    whole = pieces.graded(task.train, task.classes, "first task")
    whole.train = Rows(whole.train.read(slice(None)), whole.train.labels)
    made = permuted(_Named(whole), count)
    words = f"The first task's rows {count} times, with the values of a row in another order each time."
    return Stream(list(made), name="shuffled", description=words)


class _Named:
    """A task as what `streams.permuted` takes."""

    def __init__(self, task: Task) -> None:
        self.name, self.train, self.test = task.name, task.train, task.test
