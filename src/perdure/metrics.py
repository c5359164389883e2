"""What the accuracy matrix, lists and ratings say: each number of a report is a pure function here, with its source."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch

from perdure.callbacks import Callback
from perdure.data import Task
from perdure.method import memory

if TYPE_CHECKING:
    from perdure.learner import Learner

Accuracies = Sequence[float | None]
Numbers = Sequence[float] | npt.NDArray[np.floating[Any]]
Truths = Sequence[bool] | npt.NDArray[np.bool_]
Matrix = Sequence[Accuracies]  # R[i][j]: accuracy on task j after learning task i; None: not known or not asked


@dataclass(eq=False)
class Record(Callback):
    """Fills in the accuracy matrix while a learner learns; travels in the learner's state.

    stream    the tasks to evaluate on, all of them, after each one
    every     steps between evaluations within a task (the stability gap); 0 for none
    infer     ways of task inference to grade at the end of the stream, in scenario "task"
    initial   the grades before anything was learnt, where the first task's labels allow an answer
    accuracy  the matrix so far
    """

    stream: Sequence[Task]
    every: int = 0
    infer: tuple[str, ...] = ()
    initial: list[float | None] | None = memory(lambda: None)
    accuracy: list[list[float | None]] = memory(list)
    trace: list[Evaluation] = memory(list)
    inferred: dict[str, float] = memory(dict)

    def before_task(self, learner: Learner, task: Task) -> None:
        """Notes the untrained model's grades."""
        if self.initial is None:
            self.initial = learner.evaluate(self.stream)

    def after_step(self, learner: Learner) -> None:
        """Notes a point of the trace."""
        if self.every and learner.clock.step % self.every == 0:
            row = learner.evaluate(self.stream)
            self.trace.append({"step": learner.clock.step, "task": learner.clock.task, "accuracy": row})

    def after_task(self, learner: Learner, task: Task) -> None:
        """Notes a row of the matrix."""
        self.accuracy.append(learner.evaluate(self.stream))
        if learner.clock.task == len(self.stream) - 1 and learner.settings.scenario == "task":
            self.inferred = {way: fmean(learner.evaluate(self.stream, infer=way)) for way in self.infer}


@dataclass(eq=False)
class RecordParts(Callback):
    """Fills in an accuracy matrix for each of several objectives; travels in the learner's state.

    stream    the tasks to evaluate on, all of them, after each one
    matrices  by the part's name; `forgetting(record.matrices["digit"])` is the forgetting of one objective
    """

    stream: Sequence[Task]
    matrices: dict[str, list[list[float | None]]] = memory(dict)

    def after_task(self, learner: Learner, task: Task) -> None:
        """Notes a row of each matrix."""
        for name, row in learner.evaluate_parts(self.stream).items():
            self.matrices.setdefault(name, []).append(row)


class Evaluation(TypedDict):
    """One evaluation while learning: after `step`, task number `task` being learnt, the accuracy on every task."""

    step: int
    task: int
    accuracy: Accuracies


# In the formulas below R is `matrix` and T = len(R) the number of tasks learnt (columns beyond it are tasks still to
# come); tasks are counted from 0, and a mean is over the terms that are known; without one it is None.


def average_accuracy(matrix: Matrix) -> float | None:
    """Mean over j < T of R[T-1][j]: how good the model is now (ACC; Lopez-Paz & Ranzato, 2017). Nulls are left out."""
    return _mean(matrix[-1][: len(matrix)]) if matrix else None


def average_incremental_accuracy(matrix: Matrix) -> float | None:
    """Mean over i < T of the mean over j <= i of R[i][j] (Rebuffi et al., 2017, iCaRL).

    Every task counts the same here, whatever its number of classes. Nulls are left out; so is a row of nulls.
    """
    return _mean(_mean(row[: i + 1]) for i, row in enumerate(matrix))


def forgetting(matrix: Matrix) -> float | None:
    """Mean over j < T-1 of (max over i in j..T-2 of R[i][j]) - R[T-1][j] (Chaudhry et al., 2018, RWalk).

    The best that the model once was on a task, since it learnt it, less what it is now; negative where it still
    improved. (The paper's maximum also looks at rows before j, where it scores above R[j][j] only by chance.) None for
    a single task. A null is left out of the maximum; a task with no maximum or no last value is left out of the mean.
    """
    return _mean(_less(max(_known(matrix[j:-1], j), default=None), matrix[-1][j]) for j in range(len(matrix) - 1))


def backward_transfer(matrix: Matrix) -> float | None:
    """Mean over j < T-1 of R[T-1][j] - R[j][j]: what later tasks did to earlier ones (Lopez-Paz & Ranzato, 2017).

    None for a single task; a task with a null on either side is left out.
    """
    return _mean(_less(matrix[-1][j], matrix[j][j]) for j in range(len(matrix) - 1))


def forward_transfer(matrix: Matrix, initial: Accuracies | None) -> float | None:
    """Mean over 1 <= j < T of R[j-1][j] - initial[j]: what a task gains before it is learnt.

    FWT of Lopez-Paz & Ranzato, 2017. `initial` is the accuracy of the untrained model on each task. A task with a null
    on either side is left out; in the class scenario, where classes to come are unknown, that is every task: None.
    """
    if initial is None:
        return None
    return _mean(_less(matrix[j - 1][j], initial[j]) for j in range(1, len(matrix)))


def learning_accuracy(matrix: Matrix) -> float | None:
    """Mean over j < T of R[j][j]: how well each task was learnt when it came (Riemer et al., 2019). Nulls left out."""
    return _mean(row[j] for j, row in enumerate(matrix))


def intransigence(matrix: Matrix, reference: Matrix | None) -> float | None:
    """Mean over k < T of reference[k][k] - R[k][k]: what could not be learnt (Chaudhry et al., 2018, RWalk).

    The paper gives each term; the mean is ours. `reference` is the matrix of joint training on tasks 0..k; without it
    None. A task that is null on either side is left out; a reference of fewer tasks is no reference: None.
    """
    if reference is None or len(reference) < len(matrix):
        return None
    return _mean(_less(reference[k][k], row[k]) for k, row in enumerate(matrix))


def minimum_accuracy(trace: Sequence[Evaluation] | None) -> float | None:
    """Mean over tasks j before the current one of the least accuracy on j at any step after it was learnt.

    min-ACC of De Lange et al., 2023 (the stability gap). "After" is any evaluation during a later task; the current
    task is that of the last evaluation. Nulls are left out; None without a trace or with one task.
    """
    if not trace:
        return None
    return _mean(_minimum(trace, j) for j in range(trace[-1]["task"]))


def worst_case_accuracy(trace: Sequence[Evaluation] | None, matrix: Matrix) -> float | None:
    """R[T-1][T-1] / T + (1 - 1 / T) * min-ACC: WC-ACC of De Lange et al., 2023, at the end of the last task.

    A lower bound of the average accuracy where the last step was evaluated too. With one task it is R[0][0]. None
    without a trace, where the trace does not reach the last task, or where one of the two terms is null.
    """
    tasks = len(matrix)
    if not trace or trace[-1]["task"] != tasks - 1:
        return None
    current, worst = matrix[-1][tasks - 1], minimum_accuracy(trace)
    if tasks == 1 or current is None:
        return current
    return None if worst is None else current / tasks + (1 - 1 / tasks) * worst


def summary(
    matrix: Matrix,
    initial: Accuracies | None = None,
    reference: Matrix | None = None,
    trace: Sequence[Evaluation] | None = None,
) -> dict[str, float | None]:
    """Every metric by name; None where it is undefined, or where what it needs was not given."""
    return {
        "average_accuracy": average_accuracy(matrix),
        "average_incremental_accuracy": average_incremental_accuracy(matrix),
        "forgetting": forgetting(matrix),
        "backward_transfer": backward_transfer(matrix),
        "forward_transfer": forward_transfer(matrix, initial),
        "learning_accuracy": learning_accuracy(matrix),
        "intransigence": intransigence(matrix, reference),
        "minimum_accuracy": minimum_accuracy(trace),
        "worst_case_accuracy": worst_case_accuracy(trace, matrix),
    }


def recall_at(ranked: Sequence[object], relevant: Collection[object], k: int = 10) -> float:
    """How many of the relevant are among the first k recommended: |ranked[:k] & relevant| / min(k, |relevant|).

    Recall@k of Liang et al., 2018 (Mult-VAE): where more than k are relevant a full list counts as 1, which plain
    recall (divided by |relevant|) cannot reach. `ranked` is best first and may be shorter. ValueError where nothing is
    relevant, k is below 1, or the first k hold an item twice.
    """
    return sum(_hits(ranked, relevant, k)) / min(k, len(set(relevant)))


def ndcg_at(ranked: Sequence[object], relevant: Collection[object], k: int = 10) -> float:
    """As `recall_at`, but a hit on place r counts 1 / log2(r + 1), over what the best list would have.

    NDCG@k with gains of 0 and 1 (Jarvelin & Kekalainen, 2002): sum over hits r <= k of 1 / log2(r + 1), over the same
    sum for r = 1 .. min(k, |relevant|).
    """
    discounts = [1 / math.log2(place + 2) for place in range(k)]
    gained = sum(discount for discount, hit in zip(discounts, _hits(ranked, relevant, k), strict=False) if hit)
    return gained / sum(discounts[: len(set(relevant))])


def _hits(ranked: Sequence[object], relevant: Collection[object], k: int) -> list[bool]:
    first, wanted = list(ranked[:k]), set(relevant)
    if k < 1 or not wanted:
        raise ValueError(f"the first {k} of a list, of which {len(wanted)} things are relevant, cannot be graded")
    if len(set(first)) < len(first):
        raise ValueError(f"the first {k} hold something twice: {first}")
    return [item in wanted for item in first]


def rmse(said: Sequence[float], truth: Sequence[float]) -> float:
    """The square root of the mean of (said - true)^2. ValueError for none, or as many as do not match."""
    if not truth or len(said) != len(truth):
        raise ValueError(f"an error needs an answer for each truth, found {len(said)} and {len(truth)}")
    return math.sqrt(fmean((answer - true) ** 2 for answer, true in zip(said, truth, strict=True)))


def proportion_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share (Clopper & Pearson 1934): (low, high), 0 to 1; (0, 1) of nothing.

    low is the share at which `successes` or more have a chance of (1 - confidence) / 2, high that of so few or fewer.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} of {trials} is no share")
    tail = (1 - confidence) / 2
    counts = np.arange(trials + 1)
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    ways = factorials[trials] - factorials - factorials[::-1]

    def at_most(k: int, p: float) -> float:
        chances = ways + counts * math.log(p) + (trials - counts) * math.log1p(-p)
        return float(np.exp(chances[: k + 1]).sum())

    def solve(k: int, wanted: float) -> float:
        low, high = 0.0, 1.0
        while high - low > 1e-9:
            middle = (low + high) / 2
            low, high = (middle, high) if at_most(k, middle) > wanted else (low, middle)
        return low

    return (
        solve(successes - 1, 1 - tail) if successes else 0.0,
        solve(successes, tail) if successes < trials else 1.0,
    )


def auroc(scores: Numbers, positive: Truths) -> float | None:
    """The area under the ROC curve: of all pairs (positive, negative) the share whose positive scores higher.

    Ties count as half. By ranks (Mann & Whitney 1947; Hanley & McNeil 1982). None where all are of one kind.
    """
    values, truth = _scored(scores, positive)
    many, few = int(truth.sum()), int((~truth).sum())
    if not many or not few:
        return None
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # of those that tie, the mean of their ranks
    return (float(ranks[truth].sum()) - many * (many + 1) / 2) / (many * few)


def brier(chances: Numbers, positive: Truths) -> float:
    """Mean of (chance - truth)^2, truth being 1 or 0: 0 is perfect, 0.25 says one half of everybody (Brier 1950)."""
    values, truth = _scored(chances, positive)
    return float(np.square(values - truth).mean())


def calibration_error(chances: Numbers, positive: Truths, bins: int = 10) -> float:
    """Expected calibration error: sum over bins of (rows in the bin / rows) * |mean chance - share of positives|.

    The bins are [0, 1/bins), ..., [1 - 1/bins, 1] of the chance of being positive (Naeini et al. 2015). Few rows make
    it large by chance alone: a bin of n rows is off by about sqrt(p (1 - p) / n) where nothing is wrong.
    """
    values, truth = _scored(chances, positive)
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"chances lie between 0 and 1, found {values.min():g} to {values.max():g}")
    place = np.minimum((values * bins).astype(np.int64), bins - 1)
    return float(np.abs(np.bincount(place, values - truth, bins)).sum() / len(values))


def bootstrap_interval(
    statistic: Callable[[npt.NDArray[np.int64]], float | None],
    rows: int,
    *,
    draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float] | None:
    """The percentile interval of a statistic of rows (Efron 1979): what it is on `draws` samples of as many rows.

    statistic  called with row numbers [rows], drawn with replacement; a sample of which it says None is left out

    None where no sample has a value.
    """
    generator = torch.Generator().manual_seed(seed)
    samples = (torch.randint(rows, (rows,), generator=generator).numpy() for _ in range(draws))
    found = [value for sample in samples if (value := statistic(sample)) is not None]
    if not found:
        return None
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _scored(scores: Numbers, positive: Truths) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if values.shape != truth.shape or values.ndim != 1 or not len(values):
        raise ValueError(f"a score a row and a truth a row, found {values.shape} and {truth.shape}")
    if not np.isfinite(values).all():
        raise ValueError("some scores are NaN or infinite")
    return values, truth


def interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and the half width of its 95 % confidence interval, t * s / sqrt(n) (Student, 1908).

    One value has no half width (None); none at all is a ValueError. Assumes independent values, as of different seeds.
    """
    if not values:
        raise ValueError("an interval needs at least one value, found none")
    if len(values) == 1:
        return values[0], None
    return fmean(values), _quantile(len(values) - 1) * math.sqrt(variance(values) / len(values))


def difference(a: Sequence[float], b: Sequence[float], paired: bool) -> tuple[float, float | None]:
    """The mean of a less that of b, and the half width of its 95 % confidence interval.

    paired: a[i] and b[i] share a seed; the interval is that of the differences. Otherwise Welch (1947): the variances
    may differ, with v = (va + vb)^2 / (va^2 / (n-1) + vb^2 / (m-1)) degrees of freedom, va = s_a^2 / n, vb = s_b^2 / m.
    None as half width where a side has one value; ValueError for no values, or pairs that do not match.
    """
    if paired:
        if len(a) != len(b):
            raise ValueError(f"pairs need as many values on both sides, found {len(a)} and {len(b)}")
        return interval([x - y for x, y in zip(a, b, strict=True)])
    if not a or not b:
        raise ValueError(f"a difference needs at least one value on each side, found {len(a)} and {len(b)}")
    mean = fmean(a) - fmean(b)
    if min(len(a), len(b)) == 1:
        return mean, None
    parts = [variance(side) / len(side) for side in (a, b)]
    total = sum(parts)
    if total == 0:
        return mean, 0.0
    freedom = total**2 / sum(part**2 / (len(side) - 1) for part, side in zip(parts, (a, b), strict=True))
    return mean, _quantile(freedom) * math.sqrt(total)


# The 0.975 quantiles of Student's t with 1 to 30 degrees of freedom.
_STUDENT = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


def _quantile(freedom: float) -> float:
    """Student's 0.975 quantile: the table, straight in 1 / freedom between its entries; an expansion beyond (1e-4)."""
    if freedom >= len(_STUDENT):
        return 1.95996 + 2.37227 / freedom + 2.82250 / freedom**2
    lower = max(1, math.floor(freedom))
    weight = (1 / lower - 1 / max(freedom, lower)) / (1 / lower - 1 / (lower + 1))
    return _STUDENT[lower - 1] + weight * (_STUDENT[lower] - _STUDENT[lower - 1])


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _less(left: float | None, right: float | None) -> float | None:
    return None if left is None or right is None else left - right


def _known(rows: Iterable[Accuracies], j: int) -> list[float]:
    """The known accuracies on task j; a row that ends before j does not know it."""
    return [value for row in rows if j < len(row) and (value := row[j]) is not None]


def _minimum(trace: Sequence[Evaluation], j: int) -> float | None:
    return min(_known((entry["accuracy"] for entry in trace if entry["task"] > j), j), default=None)
