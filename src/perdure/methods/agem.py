"""Averaged gradient episodic memory: no step may raise the loss on stored rows, to first order."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from perdure.data import Batch
from perdure.method import Host
from perdure.methods.rehearsal import Rehearsal
from perdure.models import aside, evaluating


@dataclass(eq=False)
class AGEM(Rehearsal):
    """A-GEM, averaged gradient episodic memory (Chaudhry et al. 2019).

    With g the gradient of the step and r that of the loss on `rows` stored rows of earlier tasks (default: as many as
    are new), both over all parameters as one vector:

        if g.r < 0:  g -= (g.r / r.r) r

    the nearest gradient that does not, to first order, raise the loss on those rows. Parameters that a step does not
    train are left out of both vectors. The reference pass is in train mode, but moves no running statistics.

    `capacity` rows are kept by `policy`, as in `Replay`: a uniform sample of all rows, where the paper keeps equally
    many of each class. They are drawn anew at every step, and not augmented. In a loop of your own, give `replay` rows
    as the model takes them. With `accumulate` they go through the model in one pass: set `rows` where that is too many.

    Stored rows only veto a step, they are not learnt from: where they may be kept, Replay is better at equal cost.
    """

    name: ClassVar[str] = "agem"
    title: ClassVar[str] = "A-GEM"
    paper: ClassVar[str] = "Chaudhry et al. 2019, arXiv:1812.00420"
    cost: ClassVar[str] = "a second forward and backward pass a step; `capacity` rows"

    def project(self, host: Host, batch: Batch) -> None:
        """Takes out of the gradient what goes against the reference."""
        past = self.draw(host, self.count(batch))
        live = [p for p in host.params().values() if p.grad is not None]
        if past is None or not live:
            return
        project_out([p.grad for p in live if p.grad is not None], self._reference(host, past, live))

    def _reference(self, host: Host, past: Batch, live: list[torch.nn.Parameter]) -> list[Tensor]:
        """The gradient of the loss on rows of the past, of each of these parameters."""
        past = host.ready(past)
        host.spend(forward=len(past), backward=len(past))
        alone = len(past) == 1  # batch norm has no statistics of one row
        with evaluating(host.model) if alone else contextlib.nullcontext():
            loss = host.objective.loss(aside(host.model, past.x).float(), past)
        found = torch.autograd.grad(loss, live, allow_unused=True)
        return [torch.zeros_like(p) if r is None else r for p, r in zip(live, found, strict=True)]


@torch.no_grad()
def project_out(gradient: list[Tensor], reference: list[Tensor]) -> None:
    """g -= min(0, g.r) / r.r * r, in place, all tensors as one vector; decided on the device, without a wait."""
    against = inner(gradient, reference)
    share = torch.where(against < 0, against / inner(reference, reference), 0.0)
    torch._foreach_sub_(gradient, torch._foreach_mul(reference, share))


def inner(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """The inner product of two vectors that are given in pieces; a scalar."""
    return torch.stack([(one * other).sum() for one, other in zip(a, b, strict=True)]).sum()
