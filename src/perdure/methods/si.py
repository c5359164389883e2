"""Synaptic intelligence: weights that did the work of learning an old task are hard to move."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from perdure.data import Batch, Task
from perdure.method import Host, memory
from perdure.methods.curvature import Weights
from perdure.methods.quadratic import Quadratic

NO_PATH = (
    "si traces importances while a task is learnt, and here nothing was: what the model knows is not protected by si. "
    "To consolidate a model that was trained elsewhere, use ewc or mas"
)


@dataclass(eq=False)
class SI(Quadratic):
    """Synaptic intelligence (Zenke, Poole & Ganguli 2017).

    loss + strength / 2 * sum_i Omega_i (theta_i - theta*_i)^2, summed over the tasks (the paper's c is strength / 2)
    Omega_i = max(0, omega_i) / (Delta_i^2 + xi), omega_i = - sum over the task's steps of g_i * dtheta_i

    With `normalise` (the paper has none of it) each task's Omega is divided by its mean, and the sum by the number of
    tasks. With early stopping Delta ends at the best weights, which come back, and omega with the last step.

    where g is the step's gradient of the loss, without the pull and before any other part edits it, dtheta what the
    weight moved in that step, Delta in the whole task. The sum of omega is, to first order, the drop of the loss along
    the way that the weights really went: dtheta is the whole step, after clipping, the optimizer's own scaling, every
    part's pull and a proximal step. What other parts add to the loss itself (`penalty`) is in g.

    The paper takes the sum over the tasks before the max, and xi 0.001 for Split and 0.1 for permuted MNIST. Here 0.001
    was better on the second too: by 0.01 at this strength, with three epochs a task; on the first by up to 0.005. The
    proximal pull's strengths serve both streams best: 10 gives 0.985 and 0.949; 20: 0.989 and 0.934; 30: 0.991 and
    0.924 (task-incremental, 300 steps a task; five permutations, three epochs). With the gradient's 0.1 the second fell
    to 0.890, at xi 0.1. Over ten permutations the paper's own scale is best by far: normalise=False, pull="gradient",
    xi 0.1 and strength 2 give 0.937 (one seed, not those of RESULTS.md), the defaults with strength 30 give 0.863.

    Needs no pass over the rows after a task. Use it like EWC, where tasks are revealed; in class-incremental learning
    it forgets like fine-tuning (0.20 on Split MNIST). It must be there while a task is learnt: `consolidate` without
    training measures nothing, and says so.
    """

    name: ClassVar[str] = "si"
    title: ClassVar[str] = "SI"
    paper: ClassVar[str] = "Zenke, Poole & Ganguli 2017, arXiv:1703.04200"
    cost: ClassVar[str] = "a step 1.6x, nothing after a task; two numbers a weight, while learning four more"
    witness: ClassVar[bool] = True

    strength: float = 10.0
    pull: Literal["gradient", "proximal"] = "proximal"
    xi: float = 0.001
    omega: Weights = memory(dict)
    start: Weights = memory(dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.xi > 0:
            raise ValueError(f"xi is {self.xi}; it must be above 0, as a weight that did not move is divided by it")
        self.gradient: Weights = {}
        self.before: Weights = {}

    def begin(self, host: Host, task: Task | None) -> None:
        """A new path begins."""
        super().begin(host, task)
        self.omega, self.start, self.gradient, self.before = {}, {}, {}, {}

    @torch.no_grad()
    def project(self, host: Host, batch: Batch) -> None:
        """Notes the gradient of the loss and the weights that it was taken at, and then adds the pull."""
        live = {name: (p, p.grad) for name, p in host.params().items() if p.grad is not None}
        self.gradient = {name: grad.clone() for name, (_, grad) in live.items()}
        self.before = {name: p.detach().clone() for name, (p, _) in live.items()}
        for name in [name for name in live if name not in self.start]:
            self.start[name] = self.before[name].clone()
            self.omega[name] = torch.zeros_like(self.before[name])
        super().project(host, batch)

    @torch.no_grad()
    def after_step(self, host: Host, batch: Batch, outputs: Tensor) -> None:
        """omega -= g * (theta now - theta before the step)."""
        super().after_step(host, batch, outputs)
        names, params = list(self.before), host.params()
        if names:
            back = [self.before[name] for name in names]
            torch._foreach_sub_(back, [params[name] for name in names])
            torch._foreach_addcmul_([self.omega[name] for name in names], [self.gradient[name] for name in names], back)
        self.gradient, self.before = {}, {}

    def measure(self, host: Host, task: Task) -> Weights:
        """Omega of the task; 0 for weights that had no part in it."""
        found = {}
        for name, p in host.params().items():
            if name in self.omega:
                moved = p.detach() - self.start[name]
                found[name] = self.omega[name].relu() / (moved.square() + self.xi)
            else:
                found[name] = torch.zeros_like(p)
        return found

    def end(self, host: Host, task: Task) -> None:
        """Turns the path into importances, and forgets it."""
        if not self.omega:
            warnings.warn(NO_PATH, RuntimeWarning, stacklevel=2)
            return
        super().end(host, task)
        self.omega, self.start = {}, {}
