"""Quadratics over named weights: value, gradient, proximal step, and how they add up."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from perdure.method import Host

Weights = dict[str, Tensor]


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


def widened(old: Tensor, p: Tensor) -> Tensor:
    """`old` with zeros where `p` has grown at the end of a dimension."""
    if old.shape == p.shape:
        return old
    if old.ndim != p.ndim or any(a > b for a, b in zip(old.shape, p.shape, strict=True)):
        raise ValueError(
            f"a parameter of shape {list(old.shape)} now has shape {list(p.shape)}: it may grow, not shrink"
        )
    gaps = [(0, b - a) for a, b in zip(old.shape, p.shape, strict=True)]
    return F.pad(old, [size for gap in reversed(gaps) for size in gap])
