"""Which column of the scores stands for which label: the learner's list of classes, by scenario."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from perdure.data import Batch, Label

SCENARIOS = ("task", "domain", "class")


class Labels:
    """Tasks and labels in the order in which they were learnt, and their columns.

    Rows carry (task number, position of the label within the task's classes). The column of that pair is
    class: the label's number in `classes`; domain: the position itself; task: a column of its own, or, with
    `heads="shared"`, the label's number. A task whose name is known comes back: it keeps its columns, new labels are
    appended.
    """

    def __init__(self, scenario: str, heads: str = "separate", dense: bool = False) -> None:
        self.scenario, self.heads, self.dense = scenario, heads, dense
        self.classes: list[Label] = []
        self.tasks: dict[str, list[Label]] = {}
        self.columns = self.learnt = 0  # in all, and up to the last one that something was learnt for
        self.opened: list[tuple[str, list[Label], bool]] = []
        self._column_of: list[list[int]] = []
        self._table = self._mask = self._number = self._position = torch.empty(0)
        self._partial = False

    def open(self, name: str, classes: Sequence[Label], ahead: bool = False) -> int:
        """Makes a task and its labels known, to learn now or, for protocols that open all outputs, `ahead`."""
        self.opened.append((name, list(classes), ahead))
        self.classes += [label for label in classes if label not in self.classes]
        if name not in self.tasks:
            self.tasks[name] = []
            self._column_of.append([])
        known, columns = self.tasks[name], self._column_of[self.number(name)]
        for label in classes:
            if label not in known:
                columns.append(self._new_column(label, len(known)))
                known.append(label)
                self.columns = max(self.columns, columns[-1] + 1)
        if not ahead:
            self.learnt = max(self.learnt, *(column + 1 for column in columns))
        self._tabulate()
        return self.number(name)

    @property
    def begun(self) -> list[str]:
        """The tasks that were opened to be learnt, not ahead alone."""
        to_learn = {name for name, _, ahead in self.opened if not ahead}
        return [name for name in self.tasks if name in to_learn]

    def number(self, name: str) -> int:
        """The number of a known task."""
        return list(self.tasks).index(name)

    def positions(self, name: str, classes: Sequence[Label]) -> list[Label]:
        """The order in which a task's labels are numbered: those known first, then the new ones."""
        known = self.tasks.get(name, [])
        return [*known, *(label for label in classes if label not in known)]

    def home(self, name: str, classes: Sequence[Label]) -> list[int] | None:
        """The columns of a task's labels, known task or not; None where a label has none yet."""
        if self.scenario == "domain":
            order = self.positions(name, classes)
            return [order.index(label) for label in classes] if 0 < len(order) <= self.columns else None
        if self._separate:
            known = self.tasks.get(name, [])
            places = dict(zip(known, self._column_of[self.number(name)], strict=True)) if known else {}
        else:
            places = {label: place for place, label in enumerate(self.classes)}
        return [places[label] for label in classes] if classes and set(classes) <= set(places) else None

    def revealed(self, name: str) -> int | None:
        """The task's number, where the scenario reveals it."""
        return self.number(name) if self.scenario == "task" and name in self.tasks else None

    def column(self, batch: Batch) -> Tensor | None:
        """The columns of the rows' labels: [n], or [n, k] for dense labels (-1 where a row's task has fewer)."""
        if self.dense:
            return self._table[batch.task]
        return None if batch.y is None else self._table[batch.task, batch.y]

    def place(self, task: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """(task, position) of the labels that columns stand for, [n] each: in scenario "task" within the tasks given,
        else within the first task that has such a column.
        """
        if self.scenario != "task":
            task = (self._position >= 0).int().argmax(0)[column]
        return task, self._position[task, column]

    def key(self, batch: Batch) -> Tensor:
        """The number of the rows' labels in `classes`, [n]; with a head a task, their columns: a label a task."""
        if batch.y is None:
            raise ValueError("these rows have no labels, and a class-balanced memory needs them")
        return (self._table if self._separate else self._number)[batch.task, batch.y]

    def allowed(self, task: Tensor) -> Tensor | None:
        """Which columns rows of these tasks may answer with, bool [n, columns]; None for all."""
        return self._mask[task] if self._partial else None

    def answers(self, name: str | None) -> tuple[list[int], list[Label]]:
        """Columns that can be answered and the user's labels for them: of one task, or of all that is known.

        In scenario "domain" without a task a column means one label only if all tasks have the same ones; otherwise
        it is a number.
        """
        if name is not None:
            return list(self._column_of[self.number(name)]), list(self.tasks[name])
        if self.scenario != "domain":
            return list(range(self.columns)), list(self.classes)
        same = {tuple(classes) for classes in self.tasks.values()}
        return list(range(self.columns)), list(same.pop()) if len(same) == 1 else list(range(self.columns))

    def meanings(self) -> list[Any]:
        """What each column stands for, in words that another learner would use: its label; with a head a task
        [task, label]; in scenario "domain" {task: label}.
        """
        if self.scenario == "class" or (self.scenario == "task" and self.heads == "shared"):
            return list(self.classes)
        found: list[dict[str, Label]] = [{} for _ in range(self.columns)]
        for (name, classes), home in zip(self.tasks.items(), self._column_of, strict=True):
            for label, column in zip(classes, home, strict=True):
                found[column][name] = label
        return [list(*one.items()) for one in found] if self._separate else found

    def groups(self, columns: int) -> list[Tensor]:
        """The first `columns` columns as sets that answer together."""
        if not self._separate:
            return [torch.arange(columns, device=self._table.device)]
        known = ([c for c in home if c < columns] for home in self._column_of)
        return [torch.tensor(home, device=self._table.device) for home in known if home]

    def to(self, device: torch.device) -> None:
        """Moves the tables."""
        for name in ("_table", "_mask", "_number", "_position"):
            setattr(self, name, getattr(self, name).to(device))

    def state(self) -> list[Any]:
        """What was opened, in order; `open` replays it."""
        return [[name, list(classes), ahead] for name, classes, ahead in self.opened]

    @property
    def _separate(self) -> bool:
        return self.scenario == "task" and self.heads == "separate"

    def _new_column(self, label: Label, position: int) -> int:
        if self.scenario == "domain":
            return position
        return self.columns if self._separate else self.classes.index(label)

    def _tabulate(self) -> None:
        """The tables that turn a batch into columns by one index operation."""
        device, width = self._table.device, max(len(home) for home in self._column_of)
        self._partial = self.scenario == "task"
        table = torch.full((len(self.tasks), width), -1)
        number = torch.full((len(self.tasks), width), -1)
        position = torch.full((len(self.tasks), self.columns), -1)
        mask = torch.zeros(len(self.tasks), self.columns, dtype=torch.bool)
        for i, (home, classes) in enumerate(zip(self._column_of, self.tasks.values(), strict=True)):
            table[i, : len(home)] = torch.tensor(home)
            number[i, : len(home)] = torch.tensor([self.classes.index(label) for label in classes])
            position[i, home] = torch.arange(len(home))
            mask[i, home] = True
        self._table, self._mask, self._number, self._position = table, mask, number, position
        self.to(device)
