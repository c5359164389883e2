"""Joint training: all rows so far, from fresh weights, at every task; an upper bound and no continual learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from perdure.data import Task
from perdure.memory import Memory, Reservoir
from perdure.method import Host, Method, Trainer, memory


@dataclass(eq=False)
class Joint(Method):
    """Keeps every row, and at each task trains fresh weights on all of them, mixed, for the usual number of epochs.

    Upper bound, sees all: what a method would reach that forgot nothing. Cost and memory grow with the stream.
    """

    name: ClassVar[str] = "joint"
    title: ClassVar[str] = "Joint training"
    paper: ClassVar[str] = "Caruana 1997 (multi-task learning)"
    cost: ClassVar[str] = "every task costs all tasks so far; every row is kept"
    upper_bound: ClassVar[bool] = True

    start: dict[str, Tensor] = memory(dict)
    store: Memory = memory(lambda: Reservoir(1 << 62))

    def begin(self, host: Host, task: Task) -> None:
        """Before the first task: keeps the weights to start from."""
        if not self.start:
            self.start = {name: tensor.detach().clone() for name, tensor in host.model.state_dict().items()}

    def fit(self, learner: Trainer, task: Task) -> None:
        """Fresh weights, then epochs over the stored rows and the new ones."""
        if learner.clock.epoch == 0 and learner.clock.batch == 0:
            learner.restart(self.start)
        past = self.store.all() if len(self.store) else None
        for _ in learner.epochs():
            learner.epoch(task.train, past)

    def end(self, host: Host, task: Task) -> None:
        """Keeps the task's rows."""
        for index in torch.arange(len(task.train)).split(1024):
            batch = host.read(task.train, index)
            if batch.y is not None:
                self.store.add({"x": batch.x, "y": batch.y, "task": batch.task})
