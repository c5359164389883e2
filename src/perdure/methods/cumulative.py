"""Cumulative replay: every row is kept, and every pass is a draw from all of them, at the cost of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from perdure.data import Rows, Task, chunks, column_map
from perdure.memory import EVERY, Memory, Reservoir
from perdure.method import Host, Method, Trainer, memory
from perdure.seeds import seeded


@dataclass(eq=False)
class Cumulative(Method):
    """Uniform replay from all rows so far under the compute of fine-tuning (Prabhu et al. 2023).

    A pass over a task of n rows goes over n different rows out of all so far, its own and those stored, each equally
    likely, drawn anew for every pass: as many steps as fine-tuning takes, on as many rows each.

    No upper bound (`joint` is one, which takes more steps as rows add up), but the line to beat at equal compute: the
    paper found no method of budgeted continual learning above it. Memory: every row. Use it where rows may be kept and
    training time is what is short.
    """

    name: ClassVar[str] = "cumulative"
    title: ClassVar[str] = "Cumulative replay"
    paper: ClassVar[str] = "Prabhu et al. 2023, arXiv:2303.11165"
    cost: ClassVar[str] = "a step; every row is kept"
    keeps_rows: ClassVar[bool] = True

    store: Memory = memory(lambda: Reservoir(EVERY))

    def fit(self, learner: Trainer, task: Task) -> None:
        """Passes of the task's length over rows of all tasks."""
        for epoch in learner.epochs():
            learner.epoch(*self._drawn(learner, task.train, epoch))

    def end(self, host: Host, task: Task) -> None:
        """Keeps the task's rows."""
        for index in chunks(torch.arange(len(task.train)), 1024):
            batch = host.read(task.train, index)
            if batch.y is not None:
                self.store.add({"x": batch.x, "y": batch.y, "task": batch.task})

    def _drawn(self, host: Host, rows: Rows, epoch: int) -> tuple[Rows, dict[str, Any] | None]:
        """Rows of the open task and stored ones; as for their order, the seed and the clock alone decide."""
        if len(self.store) == 0:
            return rows, None
        draws = torch.Generator().manual_seed(seeded(host.seed, "cumulative", host.clock.task, epoch))
        index = torch.randperm(len(rows) + len(self.store), generator=draws)[: len(rows)]
        new, old = index[index < len(rows)], index[index >= len(rows)] - len(rows)
        stored = self.store.all()
        return rows.select(new), {name: column_map(lambda part: part[old], stored[name]) for name in stored}
