"""What the Learner offers its method: rows with the columns of the scenario, groups of columns, the count of work."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from perdure import answers, optim, structure
from perdure.data import Batch, Columns, Rows, column_map
from perdure.host import HostBase
from perdure.labels import Labels
from perdure.training import Cost, Settings, Stopper

MET_ROWS = 65_536  # at a time


class Offers(HostBase):
    """A host whose rows are those of tasks, and whose labels have columns by scenario."""

    settings: Settings
    labels: Labels
    cost: Cost
    number: int
    stopper: Stopper
    augment: Callable[[Columns, torch.Generator], Columns] | None
    _labelled: dict[int, tuple[Rows, Tensor | None]]
    _nearby: dict[int, tuple[Rows, Rows]]

    @property
    def columns(self) -> int:
        """How many columns of scores the model has something to say in."""
        return self.labels.learnt

    @property
    def width(self) -> int:
        """How many columns the model's scores have, those opened ahead included."""
        return self.labels.columns

    @property
    def meanings(self) -> list[Any]:
        """What each column stands for."""
        return self.labels.meanings()

    def read(self, rows: Rows, index: Tensor) -> Batch:
        """Rows of the open task, on the device, their inputs still raw."""
        rows = self._near(rows)
        x = column_map(lambda column: column.to(self.device, non_blocking=True), rows.read(index))
        y = self._positions(rows)
        task = torch.full((len(index),), self.number, device=self.device)
        return Batch(x=x, y=None if y is None else y[index.to(y.device)].to(self.device), task=task)

    def ready(self, batch: Batch) -> Batch:
        """The batch with inputs converted, and with columns and allowed columns."""
        allowed = None if self.objective.dense else self.labels.allowed(batch.task)
        x = answers.convert(batch.x, self.device)
        return replace(batch, x=x, columns=self.labels.column(batch), allowed=allowed)

    def labelled(self, batch: Batch, column: Tensor) -> Batch:
        """The batch with the labels that columns of the scores stand for: the inverse of `ready`."""
        task, y = self.labels.place(batch.task, column)
        return replace(batch, task=task, y=y)

    def column_groups(self, columns: int) -> list[Tensor]:
        """The first `columns` columns as sets that answer together."""
        return self.labels.groups(columns)

    def balance_key(self, batch: Batch) -> Tensor:
        """The number of each row's label."""
        return self.labels.key(batch)

    def spend(self, forward: int, backward: int = 0, other: int = 0) -> None:
        """Notes rows that went forward and back through the model, and multiply-adds of other work."""
        self.cost.multiply_adds += forward * self.clock.row_cost + 2 * backward * self.clock.back_cost + other

    def measure_row(self, rows: Rows) -> None:
        """What one row costs in the open task."""
        row = answers.convert(rows.read(torch.zeros(1, dtype=torch.long)), self.device)
        self.clock.row_cost = structure.multiply_adds(self.model, row)
        self.clock.back_cost = structure.differentiated(self.model, row)

    def meet(self, rows: Rows) -> None:
        """Shows rows about to be learnt to a model that opens vectors for new ids, and to `augment.Unseen`."""
        before = {id(p) for p in self.model.parameters()}
        asked = (getattr(part, "meet", None) for part in (self.model, self.augment))
        shown = [meet for meet in asked if callable(meet)]
        for start in range(0, len(rows) if shown else 0, MET_ROWS):
            x = answers.convert(rows.read(slice(start, start + MET_ROWS)), self.device)
            for meet in shown:
                meet(x, self.generator("growth", "cpu"))
        optim.join(self.optimizer, self.model, before)

    def reopen(self, weights: dict[str, Tensor]) -> None:
        """Makes room in such a model for the ids that a state has."""
        reopen, before = getattr(self.model, "reopen", None), {id(p) for p in self.model.parameters()}
        if callable(reopen):
            reopen(weights)
            optim.join(self.optimizer, self.model, before)

    def judge_anew(self) -> None:
        """For the stopper: what was graded so far no longer counts."""
        self.stopper.forget()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """bf16 where so set."""
        if self.settings.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def mixed(self, rows: Rows, past: dict[str, Any], index: Tensor) -> Batch:
        """Rows of the open task and stored ones: `index` numbers the former first, then the latter."""
        new, old = index[index < len(rows)], index[index >= len(rows)] - len(rows)
        drawn = {name: column_map(lambda part: part[old.to(part.device)], column) for name, column in past.items()}
        stored = Batch.past(drawn, origin=1)
        return Batch.cat([self.read(rows, new), stored]) if len(new) else stored

    def _near(self, rows: Rows) -> Rows:
        """The rows on an accelerator, where they fit into half of what is free there; moved once a task."""
        if self.device.type != "cuda":
            return rows
        if id(rows) not in self._nearby:
            free, _ = torch.cuda.mem_get_info(self.device)
            self._nearby[id(rows)] = rows, rows.on(self.device, free // 2)
        return self._nearby[id(rows)][1]

    def _positions(self, rows: Rows) -> Tensor | None:
        """The rows' labels as positions, worked out once a task."""
        if id(rows) not in self._labelled:
            known = self.labels.tasks[self.clock.name]
            self._labelled[id(rows)] = (rows, rows.positions(known) if rows.classes else None)
        return self._labelled[id(rows)][1]
