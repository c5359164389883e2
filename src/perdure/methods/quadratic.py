"""What EWC and MAS share: importances that pull weights back to where they were, acting on the gradient in place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from perdure.data import Batch, Task
from perdure.importance import Chunks, Kind, diagonal
from perdure.method import Host, Method, memory, sampled
from perdure.spelling import one_of

Weights = dict[str, Tensor]


@dataclass(eq=False)
class Quadratic(Method):
    """loss + strength / 2 * sum importance * (theta - centre)^2.

    pull="gradient"  p.grad += strength * importance * (p - centre), before the optimizer's step
    pull="proximal"  after it, p = argmin_q (q - p)^2 / (2 lr) + strength / 2 * importance * (q - centre)^2, that is
                     p += w / (1 + w) * (centre - p) with w = lr * strength * importance: stable at any strength; Adam
                     does not rescale it, so that its strengths are larger

    `importance` and `centre` have the parameters' names and shapes. With `normalise` a task's importances are divided
    by their mean, and the tasks' sum by their number, which gives `strength` one scale for all models and streams (see
    docs/strength.md); without it importances are as measured, and summed. Cost: three passes over the parameters a
    step, whatever the number of tasks. Memory: two tensors a parameter.
    """

    strength: float = 0.1
    decay: float = 1.0
    rows: int = 2000
    normalise: bool = True
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
        if self.rows < 1:
            raise ValueError(f"rows is {self.rows}; importances need at least one row")

    def measure(self, host: Host, task: Task) -> Weights:
        """The importance of each parameter for the task just learnt."""
        raise NotImplementedError

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

    def begin(self, host: Host, task: Task | None) -> None:
        """Where a parameter has grown (a head in somebody else's loop), what is new has no importance."""
        for importance, centre in self.quadratics():
            for name, p in host.params().items():
                if name in importance:
                    importance[name] = _widened(importance[name], p)
                    centre[name] = _widened(centre[name], p)

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
        """The strength of the summed importances: with `normalise`, their sum counts as their mean over the tasks."""
        return self.strength / self.count if self.normalise and self.count else self.strength

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


def summed(old: Weights, new: Weights, decay: float) -> Weights:
    """decay * old + new, for every name in either."""
    kept = {name: decay * value for name, value in old.items()}
    return {
        name: kept[name] + new[name] if name in kept and name in new else either[name]
        for either in (kept, new)
        for name in either
    }


def weights(host: Host) -> Weights:
    """A copy of the trained parameters."""
    return {name: p.detach().clone() for name, p in host.params().items()}


@torch.no_grad()
def add_gradient(host: Host, strength: float, quadratics: list[tuple[Weights, Weights]]) -> None:
    """Adds the gradient of the penalty to `p.grad`.

    Under SGD a curvature above 1 / lr makes a step overshoot its centre, and above 2 / lr diverge: there the curvature
    of all quadratics together is capped at 1 / lr.
    """
    if strength == 0:
        return
    live = {name: p for name, p in host.params().items() if p.grad is not None}
    for importance, centre in quadratics:
        names = [name for name in live if name in importance]
        if not names:
            continue
        grads = [grad for name in names if (grad := live[name].grad) is not None]
        distance = torch._foreach_sub([live[name] for name in names], [centre[name] for name in names])
        if isinstance(host.optimizer, torch.optim.SGD):
            steep = [_steepness(name, quadratics).mul(strength * host.lr(live[name])) for name in names]
            torch._foreach_div_(distance, torch._foreach_clamp_min(steep, 1.0))
        torch._foreach_addcmul_(grads, [importance[name] for name in names], distance, value=strength)


def _steepness(name: str, quadratics: list[tuple[Weights, Weights]]) -> Tensor:
    """The curvature of all quadratics together, for strength 1."""
    first, *others = [importance[name] for importance, _ in quadratics if name in importance]
    for other in others:
        first = first + other
    return first


@torch.no_grad()
def step_back(host: Host, strength: float, quadratics: list[tuple[Weights, Weights]]) -> None:
    """p = (p + sum_k w_k centre_k) / (1 + sum_k w_k), w_k = lr * strength * importance_k, where p has a gradient."""
    for name, p in host.params().items():
        own = [(importance[name], centre[name]) for importance, centre in quadratics if name in importance]
        if not own or p.grad is None:
            continue
        step = strength * host.lr(p)
        weight = torch.ones_like(p)
        for importance, centre in own:
            weight.add_(importance, alpha=step)
            p.addcmul_(importance, centre, value=step)
        p.div_(weight)


def value(host: Host, strength: float, importance: Weights, centre: Weights) -> Tensor:
    """strength / 2 * sum importance * (theta - centre)^2, differentiable."""
    params = host.params()
    parts = [(importance[name] * (params[name] - centre[name]).square()).sum() for name in importance if name in params]
    return strength / 2 * torch.stack(parts).sum() if parts else torch.zeros((), device=host.device)


def _widened(old: Tensor, p: Tensor) -> Tensor:
    """`old` with zeros where `p` has grown at the end of a dimension."""
    if old.shape == p.shape:
        return old
    if old.ndim != p.ndim or any(a > b for a, b in zip(old.shape, p.shape, strict=True)):
        raise ValueError(
            f"a parameter of shape {list(old.shape)} now has shape {list(p.shape)}: it may grow, not shrink"
        )
    gaps = [(0, b - a) for a, b in zip(old.shape, p.shape, strict=True)]
    return F.pad(old, [size for gap in reversed(gaps) for size in gap])
