"""Wrong on purpose: what other libraries compute, for the tables that compare with it; never offered to users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from perdure.data import Task
from perdure.method import Host, sampled
from perdure.methods import EWC, METHODS
from perdure.methods.curvature import Weights


@dataclass(eq=False)
class BatchedEWC(EWC):
    """EWC whose "Fisher" squares the gradient of a batch's mean loss, as several libraries do.

    The mean over batches of 128 rows of (gradient of the mean log-likelihood of the labels)^2: noise and signal of
    different examples cancel before the square, and the value depends on the size of the batch.
    """

    name: ClassVar[str] = "ewc-batched"
    title: ClassVar[str] = "EWC, batched Fisher (wrong)"

    def measure(self, host: Host, task: Task) -> Weights:
        """Squares of batch means."""
        params = host.params()
        total = {name: torch.zeros_like(p) for name, p in params.items()}
        count = 0
        for batch in sampled(host, task.train, self.rows, "importance rows", chunk=128):
            loss = host.objective.loss(host.model(batch.x), batch)
            grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
            host.spend(forward=len(batch), backward=len(batch))
            for sums, grad in zip(total.values(), grads, strict=True):
                if grad is not None:
                    sums.add_(grad.square())
            count += 1
        return {name: value / count for name, value in total.items()}


def register() -> None:
    """Makes it known to this process, for the tables that name it."""
    METHODS[BatchedEWC.name] = BatchedEWC
