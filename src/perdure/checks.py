"""What a learner refuses, with a sentence, before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from perdure import answers, structure
from perdure.data import Columns, Rows, Task
from perdure.method import Method
from perdure.objective import NUMERIC, Rating
from perdure.several import Several
from perdure.training import Settings

if TYPE_CHECKING:
    from perdure.learner import Learner


def parts(model: nn.Module, method: Method, settings: Settings) -> None:
    """A model, a method and settings of which no learner can be made."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if distributed and torch.distributed.get_world_size() > 1:
        raise RuntimeError("Perdure learns in one process for now, and this process group has more: run one process")
    if not callable(getattr(model, "grow", None)):
        raise ValueError(
            f"{type(model).__name__} cannot grow: wrap it, models.adapt(model, head='name of its last layer')"
        )
    if settings.scenario not in method.scenarios:
        known = f"scenario {', '.join(method.scenarios)}, not" if method.scenarios else "no scenario, so not in"
        raise ValueError(f"{method.name} works in {known} {settings.scenario!r}")
    if settings.goal.name not in method.objectives:
        said = settings.objective if isinstance(settings.objective, str) else settings.goal.name
        raise ValueError(f"{method.name} works with {', '.join(method.objectives)}, not {said!r}")
    if settings.heads not in method.heads:
        raise ValueError(f'{method.name} works with heads="{method.heads[0]}", not "{settings.heads}"')
    if method.owned:
        raise ValueError(f"this {method.name} belongs to another learner already: make a new one")


def task(learner: Learner, task: Task) -> None:
    """Everything that can be wrong with a task, before anything changes."""
    if not isinstance(task, Task):
        raise TypeError(f"learn takes a Task, not a {type(task).__name__}: Task((x, y), test=(x, y))")
    clock = learner.clock
    if clock.begun and (task.name, task.fingerprint) != (clock.name, clock.fingerprint):
        raise RuntimeError(
            f"task {clock.name!r} stands at epoch {clock.epoch}, batch {clock.batch}; learn it to the end before "
            f"{task.name!r}, or call learner.abandon()"
        )
    _labels(learner, task)
    rows(learner, task)


def rows(learner: Learner, task: Task) -> None:
    """Rows that hold NaN, that differ from those before, or that the model cannot take."""
    for part in (task.train, task.test, task.validation):
        if part is not None:
            part.check(unlabelled=isinstance(learner.objective, Several))
            if isinstance(learner.objective, Several) and part.dense:
                learner.objective.refuse(part.positions(task.classes), task.name)
    found = inputs(task.train)
    if learner.inputs is not None and found != learner.inputs:
        raise ValueError(f"task {task.name!r} has inputs {found}, earlier tasks had {learner.inputs}; they must agree")
    try:
        structure.multiply_adds(learner.model, one_row(learner, task.train))
    except Exception as error:
        raise ValueError(f"the model cannot take the rows of task {task.name!r}, {found}: {error}") from error


def _labels(learner: Learner, task: Task) -> None:
    objective, columns = learner.objective, learner.labels.columns
    if not task.train.classes:
        raise ValueError(f"the train rows of task {task.name!r} have no labels; learn needs them")
    if task.train.dense != objective.dense:
        wanted = "float labels [n, k]" if objective.dense else "whole numbers or strings as labels"
        raise ValueError(f"objective {objective.name!r} needs {wanted}, and task {task.name!r} has others")
    outputs, known = len(task.classes), learner.labels.tasks.get(task.name)
    if objective.dense and known is not None and known != list(task.classes):
        raise ValueError(f"task {task.name!r} comes back with outputs {list(task.classes)}, but it had {known}")
    if isinstance(objective, Rating):
        _bounds(objective, task)
    if objective.name in NUMERIC and learner.labels.scenario == "domain" and columns not in (0, outputs):
        raise ValueError(f"task {task.name!r} has {outputs} outputs, and the learner has {columns}")


def _bounds(objective: Rating, task: Task) -> None:
    """Ratings beyond the bounds could never be answered."""
    for rows in (task.train, task.test, task.validation):
        if rows is not None:
            values = rows.positions(task.classes)
            low, high = float(values.min()), float(values.max())
            if low < objective.low or high > objective.high:
                raise ValueError(
                    f"task {task.name!r} holds ratings from {low:g} to {high:g}, and the objective goes from "
                    f'{objective.low:g} to {objective.high:g}: say objective="rating:{low:g}:{high:g}", or as wide as '
                    "yours can be"
                )


def inputs(rows: Rows) -> dict[str, list[Any]]:
    """Type and shape of one row's inputs; of named columns type and dimensions only, as they may be padded."""
    first = rows.read(torch.zeros(1, dtype=torch.long))
    if isinstance(first, dict):
        return {name: [str(column.dtype), column.ndim] for name, column in sorted(first.items())}
    return {"x": [str(first.dtype), *first.shape[1:]]}


def one_row(learner: Learner, rows: Rows) -> Columns:
    """The first row, ready for the model."""
    return answers.convert(rows.read(torch.zeros(1, dtype=torch.long)), learner.device)
