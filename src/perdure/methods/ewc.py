"""Elastic weight consolidation: weights that an old task's likelihood depends on are hard to move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from perdure.data import Task
from perdure.method import Host, memory
from perdure.methods.curvature import Weights, summed, weights
from perdure.methods.quadratic import RowQuadratic
from perdure.objective import FisherKind
from perdure.spelling import one_of


@dataclass(eq=False)
class EWC(RowQuadratic):
    """Elastic weight consolidation (Kirkpatrick et al. 2017), and its online form (Schwarz et al. 2018).

    loss + strength / 2 * sum_i F_i (theta_i - theta*_i)^2, where F is the diagonal of the Fisher information,
    F_i = E_x E_{y ~ p(y|x)} [(d log p(y|x) / d theta_i)^2]: a mean over examples of squares, not the square of a mean.

    anchor="latest"  one quadratic about the latest weights; F is decayed once a task and added to (Schwarz et al. 2018)
    anchor="mean"    the sum of all tasks' quadratics, exactly, as one about their precision-weighted mean (Huszar 2018)
    anchor="each"    the same sum with every task kept apart: memory grows with the tasks; the oracle of "mean"

    With `normalise` (not in the papers) each task's F is divided by its mean and the sum by the number of tasks, so
    that one scale of strengths serves all data, and every Fisher.

    fisher="exact" sums over all answers (a backward each), "sampled" draws one from the model, "empirical" takes the
    label. Use it where no old row may be kept and the task is revealed; in class-incremental learning it forgets like
    fine-tuning.
    """

    name: ClassVar[str] = "ewc"
    title: ClassVar[str] = "EWC"
    paper: ClassVar[str] = "Kirkpatrick et al. 2017, arXiv:1612.00796; online: Schwarz et al. 2018, arXiv:1805.06370"
    cost: ClassVar[str] = "a step 1.2x; after a task a backward per answer on `rows` rows; two numbers a weight"

    anchor: Literal["latest", "mean", "each"] = "latest"
    fisher: FisherKind = "exact"
    tasks: list[tuple[Weights, Weights]] = memory(list)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("anchor", self.anchor, ("latest", "mean", "each"))
        one_of("fisher", self.fisher, ("exact", "sampled", "empirical"))

    def measure(self, host: Host, task: Task) -> Weights:
        """The Fisher diagonal over `rows` random rows of the task."""
        draws = host.generator("fisher")
        return self.importances(
            host, task, "square", lambda scores, batch: host.objective.probes(scores, batch, self.fisher, draws)
        )

    def end(self, host: Host, task: Task) -> None:
        """Adds the task's quadratic."""
        new, now = self.measured(host, task), weights(host)
        self.count = self.decay * self.count + 1
        if self.anchor == "each":
            self.tasks = [(summed(old, {}, self.decay), centre) for old, centre in self.tasks] + [(new, now)]
            return
        old, self.importance = self.importance, summed(self.importance, new, self.decay)
        if self.anchor == "mean":
            now |= {name: self._mean(name, old[name], new[name], now[name]) for name in old if name in new}
        self.centre = now

    def _mean(self, name: str, old: Tensor, new: Tensor, now: Tensor) -> Tensor:
        """The precision-weighted mean of the centre so far and the weights now; the latter where neither task cares."""
        total = self.importance[name]
        return torch.where(total > 0, (self.decay * old * self.centre[name] + new * now) / total.clamp(min=1e-38), now)

    def quadratics(self) -> list[tuple[Weights, Weights]]:
        """One, or with anchor="each" one a task. That of "mean" lacks the constant that the exact sum carries."""
        return self.tasks if self.anchor == "each" else [(self.importance, self.centre)]
