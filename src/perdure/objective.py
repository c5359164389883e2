"""What is learnt: loss, grade and likelihood of labels, numbers, ratings and rankings; the mask of allowed columns.

Everywhere: `scores` [n, C] are a model's raw scores. `batch.columns` says which columns the rows' labels stand for:
[n] for classification, [n, k] for the dense objectives (one per label column, -1 where a row has none).
`batch.allowed` is a boolean mask [n, C] of the columns that a row may answer with, or None for all. Only this room
applies the mask: models and methods see raw scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from perdure.data import Batch
from perdure.spelling import one_of

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

    def sensitivity(self, scores: Tensor, batch: Batch) -> Tensor:
        """The gradient of the answers' squared length with respect to the scores, [n, C]: what MAS follows back."""

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

    def sensitivity(self, scores: Tensor, batch: Batch) -> Tensor:
        """Twice the scores that concern a row: an answer is its raw score (Aljundi et al. 2018)."""
        return 2 * self.concerned(scores, batch)

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

    def sensitivity(self, scores: Tensor, batch: Batch) -> Tensor:
        """Twice the scores that concern a row: an answer is its raw score (Aljundi et al. 2018)."""
        return 2 * self.concerned(scores, batch)

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

    def sensitivity(self, scores: Tensor, batch: Batch) -> Tensor:
        """Twice the scores that concern a row: an answer is its raw score (Aljundi et al. 2018)."""
        return 2 * self.concerned(scores, batch)

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


@dataclass(frozen=True)
class Rating(Regression):
    """Numbers within bounds, as stars: r = low + (high - low) sigmoid(s), squared error of r.

    Likelihood: a Gaussian of unit variance about r. Grade: 1 - RMSE / (high - low), so that RMSE = (1 - grade) (high -
    low).
    """

    name: str = "rating"
    measure: str = "1 - RMSE / range"
    low: float = 1.0
    high: float = 5.0

    def value(self, scores: Tensor) -> Tensor:
        """The ratings that scores stand for."""
        return self.low + (self.high - self.low) * scores.sigmoid()

    def slope(self, scores: Tensor) -> Tensor:
        """dr / ds."""
        p = scores.sigmoid()
        return (self.high - self.low) * p * (1 - p)

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Mean squared error of the ratings over the row's outputs."""
        return super().loss(self.value(scores), batch)

    def distil(self, scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Mean squared distance to the teacher's ratings; the temperature plays no part."""
        return super().distil(self.value(scores), self.value(teacher), temperature)

    def probes(self, scores: Tensor, batch: Batch, kind: FisherKind, draws: torch.Generator) -> Iterator[Tensor]:
        """Regression's of r, times dr / ds: by the chain rule."""
        slope = self.slope(scores)
        for probe in super().probes(self.value(scores), batch, kind, draws):
            yield probe * slope

    def sensitivity(self, scores: Tensor, batch: Batch) -> Tensor:
        """d r^2 / ds = 2 r dr / ds: the answer is the rating, so that what is saturated does not matter."""
        return 2 * self.concerned(self.value(scores) * self.slope(scores), batch)

    def answer(self, scores: Tensor, allowed: Tensor | None) -> Tensor:
        """The ratings."""
        return super().answer(self.value(scores), allowed)

    def tally(self, scores: Tensor, batch: Batch) -> Tensor:
        """[sum over the rows of the mean squared error over the row's outputs]."""
        known, target = (part.double() for part in _dense(scores, batch))
        errors = (self.value(scores.double()) - target).square() * known
        return (errors.sum(1) / known.sum(1).clamp(min=1)).sum()[None]

    def grade(self, tally: Tensor, rows: int) -> float:
        """1 - RMSE / (high - low), in [0, 1]."""
        return 1 - math.sqrt(float(tally[0]) / rows) / (self.high - self.low)


@dataclass(frozen=True)
class Ranking(MultiLabel):
    """Pairs of items: Bayesian personalised ranking (Rendle et al. 2009), loss = -log sigmoid(s) where y is 1.

    A row's score s is the score of one item less that of another (see `models.ratings`), y is 1 where the first is to
    stand before the second, 0 where after it. p(y = 1) = sigmoid(s) is the likelihood, that of one label, so that loss,
    Fisher and MAS are those of a label. Grade: the share of pairs in the right order (AUC), a tie being half right.
    """

    name: str = "ranking"
    measure: str = "AUC"

    def answer(self, scores: Tensor, allowed: Tensor | None) -> Tensor:
        """Scores as they are, to sort by: of single items, they mean nothing by themselves."""
        return scores if allowed is None else scores * allowed

    def tally(self, scores: Tensor, batch: Batch) -> Tensor:
        """[sum over the rows of the share of pairs in the right order]."""
        known, target = _dense(scores, batch)
        right = ((scores > 0) == (target > 0.5)).double().where(scores != 0, 0.5) * known
        return (right.sum(1) / known.sum(1).clamp(min=1)).sum()[None]

    def grade(self, tally: Tensor, rows: int) -> float:
        """AUC, in [0, 1]."""
        return float(tally[0]) / rows


OBJECTIVES: dict[str, Objective] = {
    o.name: o for o in (Classification(), MultiLabel(), Regression(), Rating(), Ranking())
}
NUMERIC = ("regression", "rating", "ranking")  # their answers are numbers, not labels


def named(name: str) -> Objective:
    """The objective of that name; "rating:0:10" is "rating" from 0 to 10 instead of 1 to 5. ValueError for another."""
    kind, *bounds = name.split(":")
    if kind != "rating" or not bounds:
        one_of("objective", name, OBJECTIVES)
        return OBJECTIVES[name]
    try:
        low, high = map(float, bounds)
    except ValueError:
        low, high = 0.0, 0.0
    if not -math.inf < low < high < math.inf:
        raise ValueError(f'objective is {name!r}; bounds are written "rating:1:5", the lower first')
    return Rating(low=low, high=high)


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
