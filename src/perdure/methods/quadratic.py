"""What EWC, MAS and SI share: importances that pull weights back where they were, acting on the gradient in place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from perdure.data import Batch, Task
from perdure.importance import Chunks, Kind, diagonal
from perdure.method import Host, Method, memory, sampled
from perdure.methods.curvature import Weights, add_gradient, step_back, summed, value, weights, widened
from perdure.spelling import one_of


@dataclass(eq=False)
class Quadratic(Method):
    """loss + strength / 2 * sum importance * (theta - centre)^2.

    pull="gradient"  p.grad += strength * importance * (p - centre), before the optimizer's step
    pull="proximal"  after it, p = argmin_q (q - p)^2 / (2 lr) + strength / 2 * importance * (q - centre)^2, that is
                     p += w / (1 + w) * (centre - p) with w = lr * strength * importance: stable at any strength; Adam
                     does not rescale it, so that its strengths are larger

    `importance` and `centre` have the parameters' names and shapes.

    normalise=True   a task's importances are divided by their mean, and the tasks' sum by their number: one scale of
                     strengths for all models, and for streams of any length (see docs/strength.md)
    normalise="sum"  they are divided by their mean, and summed, as the papers sum: what was chosen on a few tasks
                     protects each of many as much; a long stream needs decay < 1, or stiffens the model
    normalise=False  as measured, and summed: the papers'

    Cost: three passes over the parameters a step, whatever the number of tasks. Memory: two tensors a parameter.
    """

    strength: float = 0.1
    decay: float = 1.0
    normalise: bool | Literal["sum"] = True
    pull: Literal["gradient", "proximal"] = "gradient"
    importance: Weights = memory(dict)
    centre: Weights = memory(dict)
    count: float = memory(float)

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise ValueError(f"strength is {self.strength}; it must be 0 or more")
        if not 0 <= self.decay <= 1:
            raise ValueError(
                f"decay is {self.decay}; it must lie between 0 (only the last task) and 1 (all tasks alike)"
            )
        one_of("pull", self.pull, ("gradient", "proximal"))
        one_of("normalise", self.normalise, (True, False, "sum"))

    def measure(self, host: Host, task: Task) -> Weights:
        """The importance of each parameter for the task just learnt."""
        raise NotImplementedError

    def begin(self, host: Host, task: Task | None) -> None:
        """Where a parameter has grown (a head in somebody else's loop), what is new has no importance."""
        for importance, centre in self.quadratics():
            for name, p in host.params().items():
                if name in importance:
                    importance[name] = widened(importance[name], p)
                    centre[name] = widened(centre[name], p)

    def quadratics(self) -> list[tuple[Weights, Weights]]:
        """Importance and centre of each quadratic."""
        return [(self.importance, self.centre)]

    def project(self, host: Host, batch: Batch) -> None:
        """p.grad += strength * importance * (p - centre), for each quadratic."""
        if self.pull == "gradient":
            add_gradient(host, self.share, self.quadratics())

    def after_step(self, host: Host, batch: Batch, outputs: Tensor) -> None:
        """The proximal step of all quadratics together."""
        if self.pull == "proximal":
            step_back(host, self.share, self.quadratics())

    def end(self, host: Host, task: Task) -> None:
        """importance = decay * importance + the new task's; centre = the weights now."""
        self.importance = summed(self.importance, self.measured(host, task), self.decay)
        self.centre = weights(host)
        self.count = self.decay * self.count + 1

    @property
    def share(self) -> float:
        """The strength of the summed importances: with `normalise=True` their sum counts as their mean."""
        return self.strength / self.count if self.normalise is True and self.count else self.strength

    def measured(self, host: Host, task: Task) -> Weights:
        """What `measure` says, normalised if so set."""
        found = self.measure(host, task)
        if not self.normalise:
            return found
        mean = sum(float(value.sum()) for value in found.values()) / sum(value.numel() for value in found.values())
        return {name: value / mean for name, value in found.items()} if mean > 0 else found

    def quadratic_value(self, host: Host) -> Tensor:
        """The penalty's value, for logs and for gradcheck; a scalar."""
        parts = [value(host, self.share, importance, centre) for importance, centre in self.quadratics()]
        return torch.stack(parts).sum() if parts else torch.zeros((), device=host.device)


@dataclass(eq=False)
class RowQuadratic(Quadratic):
    """A Quadratic whose importances are means over `rows` random rows of the task just learnt."""

    rows: int = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows < 1:
            raise ValueError(f"rows is {self.rows}; importances need at least one row")

    def importances(
        self, host: Host, task: Task, kind: Kind, probes: Callable[[Tensor, Batch], Iterator[Tensor]]
    ) -> Weights:
        """`importance.diagonal` over `rows` random rows of the task."""

        def counted(scores: Tensor, batch: Batch) -> Iterator[Tensor]:
            for probe in probes(scores, batch):
                host.spend(forward=0, backward=len(batch))
                yield probe

        def chunks() -> Chunks:
            for batch in sampled(host, task.train, self.rows, "importance rows"):
                host.spend(forward=len(batch))
                yield batch.x, functools.partial(counted, batch=batch)

        return diagonal(host.model, chunks(), kind=kind, names=host.params())
