"""What a learner answers: scores in eval mode, a grade for a task, labels and probabilities for the user."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from perdure import inference
from perdure.data import Batch, Columns, Label, Rows, Task, column_map
from perdure.models import evaluating
from perdure.objective import NUMERIC
from perdure.several import Several
from perdure.spelling import guess

if TYPE_CHECKING:
    from perdure.learner import Learner

CHUNK = 1024


def convert(x: Columns, device: torch.device) -> Columns:
    """Raw inputs as a model takes them: uint8 (images) to [0, 1], floats to float32, whole numbers as they are."""

    def one(column: Tensor) -> Tensor:
        column = column.to(device, non_blocking=True)
        if column.dtype == torch.uint8:
            return column.to(torch.float32).div_(255)
        return column.to(torch.float32) if column.dtype in (torch.float64, torch.float16, torch.bool) else column

    return column_map(one, x)


def grade(learner: Learner, rows: Rows, task: Task, infer: str | None = None) -> float | None:
    """The objective's grade on `rows` of a task; None where the task brings a label that the learner does not know."""
    strangeness = None if infer is None else inference.strangeness(learner, infer)
    if strangeness is None:
        tally = tallied(learner, rows, task)
        return None if tally is None else learner.objective.grade(tally, len(rows))
    if learner.labels.home(task.name, task.classes) is None:
        return None
    said = inferred(learner, rows, strangeness).argmax(1)
    return float((said == rows.positions(learner.classes).cpu()).double().mean())


def grades(learner: Learner, rows: Rows, task: Task) -> dict[str, float | None]:
    """Each part's grade on `rows` of a task, of several objectives; None where it is not known or not labelled."""
    if not isinstance(learner.objective, Several):
        raise ValueError(f"the objective is {learner.objective.name!r}, which has no parts: it is for Several")
    tally = tallied(learner, rows, task)
    return {p.name: None for p in learner.objective.parts} if tally is None else learner.objective.grades(tally)


def tallied(learner: Learner, rows: Rows, task: Task) -> Tensor | None:
    """The objective's tally of `rows` of a task; None where the task brings a label that the learner does not know."""
    home = learner.labels.home(task.name, task.classes)
    if home is None:
        return None
    number = learner.labels.revealed(task.name)
    columns = torch.tensor(home, device=learner.device)
    y = rows.positions(task.classes).to(learner.device)
    tally, start = torch.zeros((), dtype=torch.float64, device=learner.device), 0
    with torch.inference_mode():
        for x, scores in _scored(learner, rows, number):
            part = y[start : start + len(scores)]
            batch = Batch(x=x, y=part, task=torch.zeros(len(part), dtype=torch.long, device=learner.device))
            batch.columns = columns.expand(len(part), -1) if learner.objective.dense else columns[part]
            batch.allowed = _allowed(learner, home, len(part))
            tally = tally + learner.objective.tally(scores, batch)
            start += len(part)
    return tally


def proba(learner: Learner, x: Any, task: Task | str | None) -> tuple[Tensor, list[Label]]:
    """Probabilities (values, for regression) [n, answers] on the CPU, and the labels of the columns."""
    rows = Rows.of(x)
    name = task.name if isinstance(task, Task) else task
    infer = isinstance(task, str) and task in inference.HOW and task not in learner.labels.tasks
    strangeness = inference.strangeness(learner, str(task)) if infer else None
    if not (learner.labels.begun if infer else learner.labels.columns):
        raise ValueError("the learner has learnt nothing yet")
    if strangeness is not None:
        return inferred(learner, rows, strangeness), learner.classes
    if name is None and learner.labels.scenario == "task":
        known = ", ".join(repr(known) for known in learner.labels.tasks)
        raise ValueError(f'scenario "task" reveals the task: pass task=, one of {known}')
    if name is not None and name not in learner.labels.tasks:
        near = guess(name, inference.HOW)
        raise ValueError(f"task {name!r} is not known; learnt so far: {', '.join(learner.labels.tasks)}.{near}")
    home, labels = learner.labels.answers(name)
    parts = []
    with torch.inference_mode():
        number = None if name is None else learner.labels.revealed(name)
        for _, scores in _scored(learner, rows, number):
            parts.append(learner.objective.answer(scores, _allowed(learner, home, len(scores)))[:, home].cpu())
    return torch.cat(parts), labels


def inferred(learner: Learner, rows: Rows, strangeness: inference.Strangeness) -> Tensor:
    """Probabilities [n, classes] on the CPU: those of the task that each row seems to be of, 0 for other labels."""
    classes, least = learner.classes, torch.full((len(rows),), float("inf"))
    found = torch.zeros(len(rows), len(classes))
    for name in learner.labels.begun:
        number, (home, labels) = learner.labels.number(name), learner.labels.answers(name)
        places, start = torch.tensor([classes.index(label) for label in labels]), 0
        with torch.inference_mode():
            for x, scores in _scored(learner, rows, number):
                p = learner.objective.answer(scores, _allowed(learner, home, len(scores)))[:, home]
                strange = strangeness(x, p, number).cpu()
                nearer = (strange < least[start : start + len(p)]).nonzero()[:, 0]
                least[start + nearer] = strange[nearer]
                found[start + nearer] = torch.zeros(len(nearer), len(classes)).index_copy_(1, places, p.cpu()[nearer])
                start += len(p)
    return found


def labelled(learner: Learner, answers: Tensor, labels: list[Label]) -> Any:
    """Probabilities as the user's own labels: a tensor of ints, a list of strings, lists of labels, or values; of
    several objectives a dict of these.
    """
    if isinstance(learner.objective, Several):
        return learner.objective.said(answers)
    if learner.objective.name in NUMERIC:
        return answers
    if learner.objective.dense:
        return [[label for label, p in zip(labels, row, strict=True) if p > 0.5] for row in answers.tolist()]
    best = answers.argmax(1)
    if all(isinstance(label, int) for label in labels):
        return torch.tensor(labels)[best]
    return [labels[i] for i in best.tolist()]


def _scored(learner: Learner, rows: Rows, number: int | None) -> Iterator[tuple[Columns, Tensor]]:
    rows.check(unlabelled=isinstance(learner.objective, Several))
    _refuse_other_bytes(learner, rows)
    with evaluating(learner.model):
        for start in range(0, len(rows), CHUNK):
            x = convert(rows.read(slice(start, start + CHUNK)), learner.device)
            try:
                with learner.autocast():
                    scores = learner.method.predict(learner, x, number)
            except Exception as error:
                if _like_learnt(learner, rows):
                    raise
                raise ValueError(
                    f"the model cannot take rows of shape {rows.shape}; it learnt on {learner.inputs} ({error})"
                ) from error
            yield x, scores.float()


def _refuse_other_bytes(learner: Learner, rows: Rows) -> None:
    """uint8 is divided by 255, so it may not stand for numbers that were learnt as floats."""
    first = rows.read(torch.zeros(1, dtype=torch.long))
    found = first if isinstance(first, dict) else {"x": first}
    for name, column in found.items():
        learnt = (learner.inputs or {}).get(name, [""])[0]
        if column.dtype == torch.uint8 and "float" in learnt:
            raise ValueError(
                f"{name} is uint8, which is taken for an image and divided by 255, but the learner learnt {learnt}: "
                "convert it as for learning"
            )


def _like_learnt(learner: Learner, rows: Rows) -> bool:
    """Whether rows have the shape of those learnt on; of named columns the dimensions, as they may be padded."""
    known, shape = learner.inputs or {}, rows.shape
    if isinstance(shape, dict):
        return {name: len(sizes) + 1 for name, sizes in shape.items()} == {name: k[1] for name, k in known.items()}
    return known.get("x", [None])[1:] == list(shape)


def _allowed(learner: Learner, home: list[int], rows: int) -> Tensor | None:
    """In scenario "task" a row answers with its task's columns only."""
    if learner.labels.scenario != "task":
        return None
    mask = torch.zeros(learner.labels.columns, dtype=torch.bool, device=learner.device)
    mask[home] = True
    return mask.expand(rows, -1)
