"""Random projections of frozen features, and ridge regression on them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from perdure.method import Host, memory
from perdure.methods.frozen import Frozen
from perdure.methods.sums import Sums, same_features

RIDGES = tuple(10.0**power for power in range(8, -9, -1))
HELD_OUT = 5
JUDGES = 2  # rows a label held out, and as many kept, without which their error says nothing of a ridge


@dataclass(eq=False)
class RanPAC(Frozen):
    """RanPAC (McDonnell et al. 2023): random projection, then ridge regression to the labels.

    h = relu(P f), P [projection, features] drawn once from N(0, 1 / features); scores = C^T (G + ridge I)^-1 h, with
    G = sum_i h_i h_i^T and C = sum_i h_i onehot(y_i)^T. (The paper draws P from N(0, 1), which is this with another
    ridge.)

    ridge=None chooses from 1e-8, 1e-7, ..., 1e8 the one with the least squared error on rows held out, and then uses
    all rows, as the paper does. The paper holds out a fifth of the last task's rows, so that its ridge depends on which
    task comes last. Here every fifth row of all tasks is held out, told by its own features (the sum of h, counted in
    steps, modulo 5) and kept as sums of its own: |Y - H W|^2 = |Y|^2 - 2 tr(W^T C) + tr(W^T G W). The choice follows
    from sums alone, hence is the same in any order and any number of processes. With fewer than 2 rows a label to judge
    by, or to be judged, the ridge is a tenth of the mean |h|^2 (ten labels with a row each, 12 features as they are, 8
    seeds: 0.957; with all of it 0.925, with a hundredth 0.952).

    Cost: a forward pass and projection^2 multiply-adds a row; after each task 18 solves of projection^3 / 3 (one with
    a ridge of your own). Memory: 2 projection^2 numbers (1 with a ridge). The paper's 10 000 for ViT features are
    1.6 GB; 2 000 are 64 MB and 0.3 s a solve. The best of the three; where the features already suit, SLDA is near.
    """

    name: ClassVar[str] = "ranpac"
    title: ClassVar[str] = "RanPAC"
    paper: ClassVar[str] = "McDonnell et al. 2023, arXiv:2307.02251"
    cost: ClassVar[str] = "one forward pass over the rows; 2 projection^2 numbers; 18 solves a task"

    projection: int = 2000
    ridge: float | None = None
    matrix: Tensor = memory(lambda: torch.empty(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.projection < 1:
            raise ValueError(f"projection is {self.projection}; project onto at least one direction")
        if self.ridge is not None and not self.ridge > 0:
            raise ValueError(f"ridge is {self.ridge}; it must be above 0, or None to choose it")

    def prepare(self, host: Host, features: Tensor) -> None:
        """Draws the projection, once."""
        width = features.shape[1]
        if len(self.matrix) == 0:
            drawn = torch.randn(self.projection, width, generator=host.generator("projection", "cpu"))
            self.matrix = (drawn / math.sqrt(width)).to(host.device)
        same_features(self.matrix.shape[1], width)

    def expanded(self, features: Tensor) -> Tensor:
        """relu(P f)."""
        return (features @ self.matrix.T.double()).relu_()

    def added(self, seen: Tensor, member: Tensor) -> Sums:
        """Also "gram" [projection, projection], and what is held out of it, under names of its own."""
        sums = super().added(seen, member)
        if self.ridge is not None:
            return {**sums, "gram": seen.T @ seen}
        held = seen.sum(1).mul(2.0**self.bits).remainder(HELD_OUT) == 0
        kept, seen, member = seen[~held], seen[held], member[held]
        held_out = {"held_count": member.sum(0), "held_sum": member.T @ seen, "held_gram": seen.T @ seen}
        return {**sums, **held_out, "gram": kept.T @ kept}

    def classifier(self) -> tuple[Tensor, Tensor]:
        """By a Cholesky decomposition; a ridge too small for one to exist is raised tenfold until it does."""
        gram, target = self.sums["gram"], self.sums["sum"].T
        ridge = self.ridge or self.chosen()
        if self.ridge is None:
            gram = gram + self.sums["held_gram"]
        while (weights := _regression(gram, target, ridge)) is None:
            ridge *= 10
        return weights.T, torch.zeros_like(self.sums["count"])

    def chosen(self) -> float:
        """The ridge with the least squared error on the rows held out; of equals the largest."""
        held_gram, held = self.sums["held_gram"], self.sums["held_sum"].T
        count, judges = self.sums["count"], float(self.sums["held_count"].sum())
        rows = float(count.sum())
        if min(judges, rows - judges) < JUDGES * int((count > 0).sum()):
            return float((self.sums["gram"] + held_gram).trace()) / rows / 10
        target, errors = self.sums["sum"].T - held, {}
        for ridge in RIDGES:
            weights = _regression(self.sums["gram"], target, ridge)
            if weights is not None:
                errors[ridge] = float(((held_gram @ weights - 2 * held) * weights).sum())
        return min(errors, key=lambda ridge: errors[ridge])

    def merge(self, other: Self) -> None:
        """Adds the rows that another learner's method has counted, through the same projection."""
        if len(self.matrix) and len(other.matrix) and not torch.equal(self.matrix, other.matrix.to(self.matrix.device)):
            raise ValueError("these methods project differently: give their learners the same seed")
        super().merge(other)
        self.matrix = self.matrix if len(self.matrix) else other.matrix


def _regression(gram: Tensor, target: Tensor, ridge: float) -> Tensor | None:
    """(gram + ridge I)^-1 target; None where float64 finds no Cholesky decomposition."""
    ridged = gram.clone()
    ridged.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(ridged)
    return None if bool(failed) else torch.cholesky_solve(target, factor)
