"""What is learnt: loss, grade and likelihood of classification, multi-label, regression; the mask of allowed columns.

Everywhere: `scores` [n, C] are a model's raw scores. `batch.columns` says which columns the rows' labels stand for:
[n] for classification, [n, k] for the dense objectives (one per label column, -1 where a row has none).
`batch.allowed` is a boolean mask [n, C] of the columns that a row may answer with, or None for all. Only this room
applies the mask: models and methods see raw scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from perdure.data import Batch

FisherKind = Literal["exact", "sampled", "empirical"]


class Objective(Protocol):
    """What a host asks of an objective. Losses are per row, times `batch.weight`, averaged over the rows."""

    @property
    def name(self) -> str:
        """As in `Learner(objective=name)`."""

    @property
    def dense(self) -> bool:
        """Whether a row's y is a vector of numbers (True) or one label (False)."""

    @property
    def measure(self) -> str:
        """What `grade` is called in tables."""

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """The mean over the rows of weight x loss; a scalar."""

    def distil(self, scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """How far scores [n, k] are from a teacher's on the same columns; per row, [n]."""

    def probes(self, scores: Tensor, batch: Batch, kind: FisherKind, draws: torch.Generator) -> Iterator[Tensor]:
        """Vectors v [n, C], gradients of the log-likelihood: Fisher = E sum_v (v^T ds/dtheta)^2."""

    def concerned(self, scores: Tensor, batch: Batch) -> Tensor:
        """The scores with 0 in the columns that do not concern a row."""

    def answer(self, scores: Tensor, allowed: Tensor | None) -> Tensor:
        """Probabilities (values, for regression) [n, C]; columns that are not allowed get 0."""

    def tally(self, scores: Tensor, batch: Batch) -> Tensor:
        """Sums over the rows from which `grade` works, float64; the tallies of batches add up."""

    def grade(self, tally: Tensor, rows: int) -> float:
        """The figure that stands in the accuracy matrix."""


@dataclass(frozen=True)
class Classification:
    """One label a row: softmax over the allowed columns, cross-entropy, accuracy.

    `batch.target` [n, C], where given, holds soft labels; a row of NaN there means "use the label".
    """

    name: str = "classification"
    dense: bool = False
    measure: str = "accuracy"

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy in nats."""
        scores, columns = _masked(scores, batch.allowed), _given(batch.columns)
        if batch.target is None:
            if batch.weight is None:
                return F.cross_entropy(scores, columns)
            return _weighted_mean(F.cross_entropy(scores, columns, reduction="none"), batch.weight)
        soft = batch.target[:, : scores.shape[1]]
        soft = F.pad(soft, (0, scores.shape[1] - soft.shape[1]))
        hard = F.one_hot(columns, scores.shape[1]).to(scores.dtype)
        target = torch.where(soft.isnan().any(1, keepdim=True), hard, soft)
        return _weighted_mean(-(target * scores.log_softmax(1)).sum(1), batch.weight)

    def distil(self, scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """T^2 x cross-entropy to the teacher's softened softmax (Hinton 2015): the gradient keeps its size as T
        grows.
        """
        target = (teacher / temperature).softmax(1)
        return -(target * (scores / temperature).log_softmax(1)).sum(1) * temperature**2

    def probes(self, scores: Tensor, batch: Batch, kind: FisherKind, draws: torch.Generator) -> Iterator[Tensor]:
        """Exact: sqrt(p_c) (e_c - p), every allowed c. Sampled: e_c - p, c drawn from p. Empirical: c the label."""
        p = _masked(scores, batch.allowed).softmax(1)
        if kind != "exact":
            label = torch.multinomial(p, 1, generator=draws)[:, 0] if kind == "sampled" else _given(batch.columns)
            yield F.one_hot(label, p.shape[1]).to(p.dtype) - p
            return
        every = range(p.shape[1])
        for c in every if batch.allowed is None else batch.allowed.any(0).nonzero()[:, 0].tolist():
            v = -p
            v[:, c] += 1
            yield v * p[:, c : c + 1].sqrt()

    def concerned(self, scores: Tensor, batch: Batch) -> Tensor:
        """The allowed columns."""
        return scores if batch.allowed is None else scores * batch.allowed

    def answer(self, scores: Tensor, allowed: Tensor | None) -> Tensor:
        """Softmax over the allowed columns."""
        return _masked(scores, allowed).softmax(1)

    def tally(self, scores: Tensor, batch: Batch) -> Tensor:
        """[rows answered rightly]."""
        right = _masked(scores, batch.allowed).argmax(1).eq(_given(batch.columns))
        return right.sum(dtype=torch.float64)[None]

    def grade(self, tally: Tensor, rows: int) -> float:
        """Accuracy in [0, 1]."""
        return float(tally[0]) / rows


@dataclass(frozen=True)
class MultiLabel:
    """Any number of labels a row: sigmoids, binary cross-entropy, label accuracy; means over the row's labels."""

    name: str = "multi-label"
    dense: bool = True
    measure: str = "label accuracy"

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Binary cross-entropy in nats, a mean over the labels that the row's task speaks of."""
        known, target = _dense(scores, batch)
        each = F.binary_cross_entropy_with_logits(scores, target, reduction="none") * known
        return _weighted_mean(each.sum(1) / known.sum(1).clamp(min=1), batch.weight)

    def distil(self, scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """T^2 x binary cross-entropy to the teacher's softened probabilities, a mean over the columns."""
        target = (teacher / temperature).sigmoid()
        each = F.binary_cross_entropy_with_logits(scores / temperature, target, reduction="none")
        return each.mean(1) * temperature**2

    def probes(self, scores: Tensor, batch: Batch, kind: FisherKind, draws: torch.Generator) -> Iterator[Tensor]:
        """Exact: sqrt(p_k (1 - p_k)) e_k for each label k, as they are independent. Else y - p, y drawn or given."""
        known, target = _dense(scores, batch)
        p = scores.sigmoid()
        if kind == "exact":
            yield from _one_by_one((p * (1 - p)).sqrt() * known)
            return
        y = torch.bernoulli(p, generator=draws) if kind == "sampled" else target
        yield (y - p) * known

    def concerned(self, scores: Tensor, batch: Batch) -> Tensor:
        """The columns of the row's task."""
        return scores * _dense(scores, batch)[0]

    def answer(self, scores: Tensor, allowed: Tensor | None) -> Tensor:
        """The sigmoid of each allowed column."""
        p = scores.sigmoid()
        return p if allowed is None else p * allowed

    def tally(self, scores: Tensor, batch: Batch) -> Tensor:
        """[sum over the rows of the share of labels answered rightly]."""
        known, target = _dense(scores, batch)
        right = ((scores > 0) == (target > 0.5)) * known
        return (right.sum(1, dtype=torch.float64) / known.sum(1).clamp(min=1)).sum()[None]

    def grade(self, tally: Tensor, rows: int) -> float:
        """1 - Hamming loss, in [0, 1]."""
        return float(tally[0]) / rows


@dataclass(frozen=True)
class Regression:
    """Numbers: squared error, a mean over the row's outputs; likelihood: a Gaussian of unit variance; grade: R^2."""

    name: str = "regression"
    dense: bool = True
    measure: str = "R2"

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Mean squared error over the row's outputs."""
        known, target = _dense(scores, batch)
        each = (scores - target).square() * known
        return _weighted_mean(each.sum(1) / known.sum(1).clamp(min=1), batch.weight)

    def distil(self, scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Mean squared distance to the teacher's values; the temperature plays no part."""
        return (scores - teacher).square().mean(1)

    def probes(self, scores: Tensor, batch: Batch, kind: FisherKind, draws: torch.Generator) -> Iterator[Tensor]:
        """Exact: e_k for every output k. Sampled: standard normal. Empirical: y - s."""
        known, target = _dense(scores, batch)
        if kind == "exact":
            yield from _one_by_one(known)
        elif kind == "sampled":
            yield torch.randn(scores.shape, generator=draws, device=scores.device, dtype=scores.dtype) * known
        else:
            yield (target - scores) * known

    def concerned(self, scores: Tensor, batch: Batch) -> Tensor:
        """The columns of the row's task."""
        return scores * _dense(scores, batch)[0]

    def answer(self, scores: Tensor, allowed: Tensor | None) -> Tensor:
        """The values themselves."""
        return scores if allowed is None else scores * allowed

    def tally(self, scores: Tensor, batch: Batch) -> Tensor:
        """Per column: squared errors, values, squared values; one vector of 3 C numbers."""
        known, target = (part.double() for part in _dense(scores, batch))
        errors = (scores.double() - target).square() * known
        return torch.cat([errors.sum(0), (target * known).sum(0), (target.square() * known).sum(0)])

    def grade(self, tally: Tensor, rows: int) -> float:
        """R^2 = 1 - squared errors / squared deviations, a mean over the outputs that vary; 0 where none does."""
        errors, total, squares = tally.view(3, -1)
        deviations = squares - total.square() / rows
        varies = deviations > 1e-12 * squares
        return float((1 - errors[varies] / deviations[varies]).mean()) if bool(varies.any()) else 0.0


OBJECTIVES: dict[str, Objective] = {o.name: o for o in (Classification(), MultiLabel(), Regression())}


def _weighted_mean(losses: Tensor, weight: Tensor | None) -> Tensor:
    return (losses if weight is None else losses * weight).mean()


def _masked(scores: Tensor, allowed: Tensor | None) -> Tensor:
    # The smallest finite number, not -inf: a soft target of 0 times -inf would be NaN.
    return scores if allowed is None else scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)


def _given(columns: Tensor | None) -> Tensor:
    if columns is None:
        raise ValueError("these rows have no labels, and this needs them: pass labelled rows")
    return columns


def _dense(scores: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Which columns the rows' tasks speak of (1.0 or 0.0), and the labels there (0.0 without labels); both [n, C]."""
    columns, width = _given(batch.columns), scores.shape[1]
    home = columns.where(columns >= 0, width)  # -1 goes to a column that is cut off
    known = scores.new_zeros(len(scores), width + 1).scatter_(1, home, 1.0)[:, :width]
    if batch.y is None:
        return known, torch.zeros_like(known)
    y = F.pad(batch.y.to(scores.dtype), (0, columns.shape[1] - batch.y.shape[1]))
    return known, scores.new_zeros(len(scores), width + 1).scatter_(1, home, y)[:, :width]


def _one_by_one(diagonal: Tensor) -> Iterator[Tensor]:
    """Splits [n, C] into C matrices that keep one column each."""
    for k in range(diagonal.shape[1]):
        v = torch.zeros_like(diagonal)
        v[:, k] = diagonal[:, k]
        yield v
