"""What `perdure advise` is asked about: an experiment's first task, or a table of one's own."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from perdure import models, recipes
from perdure.data import Task
from perdure.experiment import pieces
from perdure.experiment.config import Plan
from perdure.experiment.settings import RequestError
from perdure.recipes.kinds import kinds_of
from perdure.recipes.tables import TableError
from perdure.streams import Stream

UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Asked:
    """The first task, what makes its network, and the Learner's settings."""

    name: str
    first: Task
    model: Callable[[], nn.Module]
    training: dict[str, Any]
    known: Stream | None = None


def of_plan(plan: Plan, on: str = "first-task") -> Asked:
    """An experiment's; on="first-three" gives the train rows of its first three tasks to try on."""
    training = plan.experiment.training.model_dump(exclude={"protocol", "augment", "heads"}, exclude_none=True)
    known = pieces.first_three(plan.stream) if on == "first-three" else None
    return Asked(plan.experiment.name, plan.stream[0], lambda: models.build(plan.recipe), training, known)


def of_tables(paths: Sequence[Path], label: str, recipe: str | None = None, text: str | None = None) -> Asked:
    """The first table is the first task, by a recipe: unless named, that of texts, where `text` names a column, else
    that of images, where a column holds some, else that of numbers and categories.

    With more tables, which came after it, there is a stream to try on. Raises RequestError for a table that cannot be
    used.
    """
    try:
        tables = {path.stem: recipes.read(path) for path in paths}
        table = next(iter(tables.values()))
        images = [name for name, kind in kinds_of(table).items() if kind == "image"]
        settings: dict[str, Any] = {"name": recipe or ("text" if text else "image" if images else "tabular")}
        settings["label"] = label
        if text:
            settings["text"] = text
        if images and settings["name"] == "image":
            settings["image"] = images[0]
        made = recipes.build(settings)
        made.fit(table)
        tasks = []
        for name, later in tables.items():
            made.check(later)
            made.extend(later)
            tasks.append(Task(made.rows(later), name=name))
    except (TableError, ValueError) as error:
        raise RequestError(str(error)) from error
    graded = [pieces.graded(task.train, task.classes, task.name) for task in tasks]
    known = Stream(graded, name="tables", description=f"The rows of {', '.join(tables)}.") if len(graded) > 1 else None
    return Asked(tasks[0].name, tasks[0], made.network, dict(made.training), known)


def growing(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """A user's own network, given a head that grows where it has none."""

    def make() -> nn.Module:
        made = build()
        return made if hasattr(made, "grow") else models.adapt(made)

    return make


def size(text: str) -> int:
    """Bytes in "20MB", "512 kB" or "1000000". Raises RequestError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(B|kB|MB|GB)?\s*", text)
    if found is None:
        raise RequestError(f"--memory {text}: write it as 20MB, 512kB or 1000000 (bytes)")
    return int(float(found[1]) * UNITS[found[2] or "B"])
