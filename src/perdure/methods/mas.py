"""Memory aware synapses: weights that the model's answers are sensitive to are hard to move. Needs no labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from perdure.data import Task
from perdure.method import Host
from perdure.methods.curvature import Weights
from perdure.methods.quadratic import RowQuadratic


@dataclass(eq=False)
class MAS(RowQuadratic):
    """Memory aware synapses (Aljundi et al. 2018).

    loss + strength / 2 * sum_i Omega_i (theta_i - theta*_i)^2, Omega_i = E_x |d ||s(x)||^2 / d theta_i|, where s are
    the raw scores of the classes that concern the row, or its ratings (the paper's lambda is strength / 2). Omega sums
    over the tasks; theta* are the latest weights. The absolute value is taken per example, before the mean.

    Use it like EWC; also where the rows to consolidate on have no labels.
    """

    name: ClassVar[str] = "mas"
    title: ClassVar[str] = "MAS"
    paper: ClassVar[str] = "Aljundi et al. 2018, arXiv:1711.09601"
    cost: ClassVar[str] = "a step 1.2x; after a task one backward on `rows` rows; two numbers a weight"

    strength: float = 300.0
    pull: Literal["gradient", "proximal"] = "proximal"

    def measure(self, host: Host, task: Task) -> Weights:
        """Mean absolute gradient of the squared length of the scores, over `rows` random rows of the task."""
        objective = host.objective
        return self.importances(
            host, task, "absolute", lambda scores, batch: iter([objective.sensitivity(scores, batch)])
        )
