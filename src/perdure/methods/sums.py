"""Sums over rows: they add up, whatever the order, and grow with the columns."""

from __future__ import annotations

import torch
from torch import Tensor

Sums = dict[str, Tensor]


def plus(one: Sums, other: Sums) -> Sums:
    """The sums over both; where one knows fewer columns, it has 0 there. Neither is changed."""
    if not one or not other:
        return {**one, **other}
    same_features(one["sum"].shape[1], other["sum"].shape[1])
    return {name: _widened(one[name], other[name]) + _widened(other[name], one[name]) for name in one}


def same_features(before: int, now: int) -> None:
    """Refuses a body that changed."""
    if before != now:
        raise ValueError(f"rows were counted by {before} features, and now have {now}: the body must stay as it was")


def _widened(part: Tensor, like: Tensor) -> Tensor:
    """With zeros for the columns that only `like` has."""
    missing = max(0, like.shape[0] - part.shape[0])
    return torch.cat([part, part.new_zeros(missing, *part.shape[1:])])
