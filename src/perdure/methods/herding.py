"""Herding: a few rows, in an order of merit, whose mean is that of many."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def normalised(features: Tensor) -> Tensor:
    """Each row divided by its length, [n, features]."""
    return F.normalize(features.float().flatten(1), dim=1)


def herd(features: Tensor, count: int) -> Tensor:
    """Which rows, one after the other, keep the mean of those chosen nearest the mean of all; int64 [count or n]."""
    mean, total = features.mean(0), torch.zeros_like(features[0])
    squares, chosen = features.square().sum(1), []
    for k in range(1, min(count, len(features)) + 1):
        # |k mean - total - f|^2 without the part that all rows share
        best = (squares - features @ (2 * (k * mean - total))).argmin(0, keepdim=True)
        squares.index_fill_(0, best, torch.inf)
        total = total + features[best][0]
        chosen.append(best)
    return torch.cat(chosen)
