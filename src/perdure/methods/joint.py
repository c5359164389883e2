"""Joint training: all rows so far, at every task; an upper bound and no continual learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from perdure.data import Task, chunks
from perdure.memory import EVERY, Memory, Reservoir
from perdure.method import Host, Method, Trainer, memory


@dataclass(eq=False)
class Joint(Method):
    """Keeps every row, and at each task goes on training on all of them, mixed, for the usual number of epochs.

    Upper bound, sees all: what a method would reach that forgot nothing. Cost and memory grow with the stream.
    """

    name: ClassVar[str] = "joint"
    title: ClassVar[str] = "Joint training"
    paper: ClassVar[str] = "Caruana 1997 (multi-task learning)"
    cost: ClassVar[str] = "every task costs all tasks so far; every row is kept"
    upper_bound: ClassVar[bool] = True
    keeps_rows: ClassVar[bool] = True

    store: Memory = memory(lambda: Reservoir(EVERY))

    def fit(self, learner: Trainer, task: Task) -> None:
        """Epochs over the stored rows and the new ones, mixed."""
        past = self.store.all() if len(self.store) else None
        for _ in learner.epochs():
            learner.epoch(task.train, past)

    def end(self, host: Host, task: Task) -> None:
        """Keeps the task's rows."""
        for index in chunks(torch.arange(len(task.train)), 1024):
            batch = host.read(task.train, index)
            if batch.y is not None:
                self.store.add({"x": batch.x, "y": batch.y, "task": batch.task})
