"""Streaming linear discriminant analysis on frozen features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from perdure.methods.frozen import Frozen
from perdure.methods.sums import Sums


@dataclass(eq=False)
class SLDA(Frozen):
    """Deep streaming linear discriminant analysis (Hayes & Kanan 2020).

    score_c = w_c . f + b_c with W = Lambda mu, b_c = -mu_c . w_c / 2, Lambda = [(1 - s) Sigma + s I]^-1: mu are the
    class means, s the shrinkage, Sigma the one covariance that all classes share,
    Sigma = 1/N sum_i (f_i - mu_y(i)) (f_i - mu_y(i))^T = 1/N (sum_i f_i f_i^T - sum_c n_c mu_c mu_c^T).

    The paper updates Sigma row by row, Sigma <- (t Sigma + t / (t + 1) (f - mu_y) (f - mu_y)^T) / (t + 1), t rows
    being before this one and mu_y the mean of those of its class: that depends on the order, and overstates the spread
    while a class is few rows old. Here Sigma is what that approaches, exactly, in any order. The authors' code begins
    with Sigma of a base of rows, shrunk by OAS (Chen et al. 2010); here there is no base, and all rows count alike.

    Cost: a forward pass and features^2 multiply-adds a row; an answer after new rows solves once, features^3 / 3.
    Memory: features^2 + columns * features numbers. Use it wherever the body is pretrained, or good as it is, and
    rows pass by once: no rehearsal, no steps, nothing to tune. It cannot learn features that the body lacks.
    """

    name: ClassVar[str] = "slda"
    title: ClassVar[str] = "Streaming LDA"
    paper: ClassVar[str] = "Hayes & Kanan 2020, arXiv:1909.01520"
    cost: ClassVar[str] = "one forward pass over the rows; features^2 numbers"

    shrinkage: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.shrinkage <= 1:
            raise ValueError(f"shrinkage is {self.shrinkage}; it is the identity's share, above 0 and up to 1")

    def added(self, seen: Tensor, member: Tensor) -> Sums:
        """Also the sum of products, [features, features]."""
        return {**super().added(seen, member), "gram": seen.T @ seen}

    def classifier(self) -> tuple[Tensor, Tensor]:
        """By a Cholesky decomposition of the shrunk covariance."""
        mean = self.mean
        shrunk = self.covariance(mean).mul_(1 - self.shrinkage)
        shrunk.diagonal().add_(self.shrinkage)
        weights = torch.cholesky_solve(mean.T, torch.linalg.cholesky(shrunk)).T
        return weights, -(weights * mean).sum(1) / 2

    def covariance(self, mean: Tensor) -> Tensor:
        """Sigma, [features, features]."""
        return (self.sums["gram"] - mean.T @ self.sums["sum"]) / self.sums["count"].sum()
