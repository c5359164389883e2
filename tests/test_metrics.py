"""The metrics against matrices and numbers written by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from perdure import metrics
from perdure.metrics import Evaluation, ndcg_at, recall_at, rmse

# Domain scenario, three tasks: everything is known. Task 0 is best after task 1, so its maximum is not the diagonal.
FULL = [
    [0.75, 0.50, 0.25],
    [0.875, 1.00, 0.375],
    [0.50, 0.75, 0.625],
]
INITIAL = [0.125, 0.25, 0.125]
REFERENCE = [[0.875, None, None], [0.9, 0.875, None], [0.9, 0.9, 1.0]]
# Class scenario: a task with a class to come is null.
CLASSES = [
    [1.0, None, None],
    [0.5, 0.75, None],
    [0.25, 0.25, 1.0],
]
TRACE: list[Evaluation] = [
    {"step": 10, "task": 0, "accuracy": [0.125, None, None]},  # task 0 is still being learnt: does not count
    {"step": 20, "task": 0, "accuracy": [0.875, None, None]},
    {"step": 30, "task": 1, "accuracy": [0.25, 0.375, None]},
    {"step": 40, "task": 1, "accuracy": [0.75, 0.875, None]},
    {"step": 50, "task": 2, "accuracy": [0.50, 0.625, 0.25]},
    {"step": 60, "task": 2, "accuracy": [None, 0.75, 0.50]},
]


def approximately(value: float) -> object:
    return pytest.approx(value, abs=1e-12)


def test_every_metric_of_a_full_matrix_equals_the_number_worked_out_by_hand() -> None:
    assert metrics.average_accuracy(FULL) == approximately((0.5 + 0.75 + 0.625) / 3)
    assert metrics.average_incremental_accuracy(FULL) == approximately((0.75 + (0.875 + 1) / 2 + 0.625) / 3)
    assert metrics.forgetting(FULL) == approximately(((0.875 - 0.5) + (1.0 - 0.75)) / 2)
    assert metrics.backward_transfer(FULL) == approximately(((0.5 - 0.75) + (0.75 - 1.0)) / 2)
    assert metrics.forward_transfer(FULL, INITIAL) == approximately(((0.5 - 0.25) + (0.375 - 0.125)) / 2)
    assert metrics.learning_accuracy(FULL) == approximately((0.75 + 1.0 + 0.625) / 3)
    assert metrics.intransigence(FULL, REFERENCE) == approximately((0.125 - 0.125 + 0.375) / 3)


def test_forgetting_ignores_what_the_model_could_do_before_it_learnt_the_task() -> None:
    matrix = [[0.5, 0.875, 0.25], [0.5, 0.75, 0.25], [0.25, 0.5, 0.75]]
    assert metrics.forgetting(matrix) == approximately((0.25 + 0.25) / 2)


def test_the_class_scenario_has_no_forward_transfer_and_nulls_are_left_out() -> None:
    assert metrics.average_accuracy(CLASSES) == approximately(0.5)
    assert metrics.average_incremental_accuracy(CLASSES) == approximately((1.0 + 0.625 + 0.5) / 3)
    assert metrics.forgetting(CLASSES) == approximately((0.75 + 0.5) / 2)
    assert metrics.backward_transfer(CLASSES) == approximately(-(0.75 + 0.5) / 2)
    assert metrics.forward_transfer(CLASSES, [None, None, None]) is None


def test_a_null_removes_its_task_and_nothing_else() -> None:
    matrix = [[0.5, None, None], [None, None, 0.25], [0.25, 0.75, None]]
    assert metrics.average_accuracy(matrix) == approximately(0.5)
    assert metrics.average_incremental_accuracy(matrix) == approximately(0.5)  # rows: 0.5, all null, 0.5
    assert metrics.forgetting(matrix) == approximately(0.25)
    assert metrics.backward_transfer(matrix) == approximately(-0.25)
    assert metrics.forward_transfer(matrix, [0.125, 0.125, 0.125]) == approximately(0.125)
    assert metrics.learning_accuracy(matrix) == approximately(0.5)
    assert metrics.intransigence(matrix, REFERENCE) == approximately(0.375)


def test_a_stream_that_is_not_finished_counts_the_tasks_learnt() -> None:
    half = FULL[:2]
    assert metrics.average_accuracy(half) == approximately((0.875 + 1.0) / 2)
    assert metrics.forgetting(half) == approximately(-0.125)
    assert metrics.forward_transfer(half, INITIAL) == approximately(0.25)
    assert metrics.intransigence(half, REFERENCE) == approximately(0.0)
    assert metrics.intransigence(FULL, REFERENCE[:2]) is None


def test_one_task_has_nothing_to_forget() -> None:
    assert metrics.summary([[0.75, 0.5]], INITIAL, REFERENCE, TRACE[:2]) == {
        "average_accuracy": 0.75,
        "average_incremental_accuracy": 0.75,
        "forgetting": None,
        "backward_transfer": None,
        "forward_transfer": None,
        "learning_accuracy": 0.75,
        "intransigence": 0.125,
        "minimum_accuracy": None,
        "worst_case_accuracy": 0.75,
    }


def test_nothing_learnt_has_no_metrics() -> None:
    assert set(metrics.summary([], INITIAL, REFERENCE, []).values()) == {None}


def test_minimum_accuracy_looks_only_at_what_follows_a_task() -> None:
    # task 0 after step 20: 0.25, 0.75, 0.5, null; task 1 after step 40: 0.625, 0.75; task 2 is the current one
    assert metrics.minimum_accuracy(TRACE) == approximately((0.25 + 0.625) / 2)
    assert metrics.minimum_accuracy(TRACE[:4]) == approximately(0.25)
    assert metrics.minimum_accuracy(TRACE[:2]) is None
    assert metrics.minimum_accuracy(None) is None


def test_worst_case_accuracy_weighs_the_current_task_against_the_minima() -> None:
    assert metrics.worst_case_accuracy(TRACE, FULL) == approximately(0.625 / 3 + 2 / 3 * (0.25 + 0.625) / 2)
    assert metrics.worst_case_accuracy(TRACE[:4], FULL[:2]) == approximately(1.0 / 2 + 1 / 2 * 0.25)
    assert metrics.worst_case_accuracy(TRACE[:4], FULL) is None, "the trace does not reach task 2"
    assert metrics.worst_case_accuracy(None, FULL) is None


unit = st.floats(0, 1)
square = st.integers(2, 5).flatmap(lambda n: st.lists(st.lists(unit, min_size=n, max_size=n), min_size=n, max_size=n))


@given(square)
def test_forgetting_is_never_less_than_the_backward_transfer_undone(matrix: list[list[float]]) -> None:
    forgotten, transferred = metrics.forgetting(matrix), metrics.backward_transfer(matrix)
    assert forgotten is not None and transferred is not None
    assert forgotten >= -transferred - 1e-12


@given(square)
def test_worst_case_accuracy_is_never_above_the_average_accuracy(matrix: list[list[float]]) -> None:
    trace: list[Evaluation] = [{"step": i, "task": i, "accuracy": row} for i, row in enumerate(matrix)]
    worst, average = metrics.worst_case_accuracy(trace, matrix), metrics.average_accuracy(matrix)
    assert worst is not None and average is not None
    assert worst <= average + 1e-12


def test_the_summary_has_the_keys_of_the_results_file() -> None:
    example = Path(__file__).parent.parent / "docs" / "results.example.json"
    cell = json.loads(example.read_text())["cells"][0]
    assert list(metrics.summary(cell["accuracy"])) == list(cell["metrics"])


# ---------------------------------------------------------------------------------------------------------- intervals


def test_an_interval_is_students() -> None:
    # mean 3, s = sqrt(2.5), n = 5, t(4) = 2.776: 2.776 * sqrt(0.5) = 1.963
    assert metrics.interval([1, 2, 3, 4, 5]) == (3, pytest.approx(1.9632, abs=1e-4))
    assert metrics.interval([0.5]) == (0.5, None)
    assert metrics.interval([0.5, 0.5]) == (0.5, 0)
    with pytest.raises(ValueError, match="at least one value"):
        metrics.interval([])


@pytest.mark.parametrize(
    ("freedom", "quantile"),  # two-sided 5 % points of Student's t, to four digits
    [(1, 12.7062), (2, 4.3027), (9, 2.2622), (29, 2.0452), (30, 2.0423), (31, 2.0395), (60, 2.0003), (1000, 1.9623)],
)
def test_the_quantiles_are_students(freedom: int, quantile: float) -> None:
    n = freedom + 1
    values = [(-1.0) ** i for i in range(n)] if n % 2 == 0 else [*[(-1.0) ** i for i in range(n - 1)], 0.0]
    spread = math.sqrt(sum(value**2 for value in values) / freedom / n)
    assert metrics.interval(values)[1] == pytest.approx(quantile * spread, rel=1e-4)


def test_pairs_see_a_difference_that_their_spread_hides() -> None:
    a, b = [0.50, 0.75, 1.00], [0.25, 0.625, 0.75]
    # differences 0.25, 0.125, 0.25: mean 0.208333, s = 0.072169, t(2) = 4.3027: 4.3027 * 0.072169 / sqrt(3) = 0.179279
    assert metrics.difference(a, b, paired=True) == (pytest.approx(0.2083333), pytest.approx(0.179279, abs=1e-5))
    assert metrics.difference(b, a, paired=True)[0] == pytest.approx(-0.2083333)
    mean, half_width = metrics.difference(a, b, paired=False)
    assert mean == pytest.approx(0.2083333) and half_width is not None and half_width > 0.5
    with pytest.raises(ValueError, match="3 and 2"):
        metrics.difference(a, b[:2], paired=True)


def test_seeds_that_differ_are_compared_by_welch() -> None:
    # variances 2.5 / 5 = 0.5 and 10 / 5 = 2: v = 2.5^2 / (0.25 / 4 + 4 / 4) = 5.882; t between t(5) = 2.5706 and
    # t(6) = 2.4469, straight in 1 / v: 2.4469 + (1 / 5.882 - 1 / 6) / (1 / 5 - 1 / 6) * 0.1237 = 2.4593 (exact: 2.4588)
    mean, half_width = metrics.difference([1, 2, 3, 4, 5], [0, 2, 4, 6, 8], paired=False)
    assert (mean, half_width) == (-1, pytest.approx(2.4593 * math.sqrt(2.5), abs=2e-4))
    assert metrics.difference([1, 2], [3], paired=False) == (-1.5, None)
    assert metrics.difference([1, 1], [3, 3, 3], paired=False) == (-2, 0)
    with pytest.raises(ValueError, match="each side, found 0 and 1"):
        metrics.difference([], [1], paired=False)


@pytest.mark.parametrize(
    ("right", "rows", "low", "high"),
    [(8, 8, 0.6306, 1.0), (0, 10, 0.0, 0.3085), (5, 10, 0.1871, 0.8129), (90, 100, 0.8238, 0.9510)],
)
def test_the_exact_interval_of_a_share_is_clopper_and_pearsons(right, rows, low, high):
    found = metrics.proportion_interval(right, rows)
    assert found == pytest.approx((low, high), abs=1e-4)


# ---- scores and chances ----

SCORED = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=30)


def slow_auroc(scores: list[float], positive: list[bool]) -> float | None:
    """Every pair, one by one."""
    pairs = [
        1.0 if a > b else 0.5 if a == b else 0.0
        for a, yes in zip(scores, positive, strict=True)
        for b, other in zip(scores, positive, strict=True)
        if yes and not other
    ]
    return sum(pairs) / len(pairs) if pairs else None


def slow_calibration_error(chances: list[float], positive: list[bool], bins: int) -> float:
    """Every bin, one by one; a chance of 1 belongs to the last."""
    total = 0.0
    for number in range(bins):
        low, high = number / bins, (number + 1) / bins
        own = [
            (p, y)
            for p, y in zip(chances, positive, strict=True)
            if low <= p < high or (p == 1.0 and number == bins - 1)
        ]
        if own:
            chance, share = sum(p for p, _ in own) / len(own), sum(y for _, y in own) / len(own)
            total += len(own) / len(chances) * abs(chance - share)
    return total


@given(SCORED)
def test_auroc_equals_the_loop_over_all_pairs(rows: list[tuple[float, bool]]) -> None:
    scores, positive = map(list, zip(*rows, strict=True))
    found, slow = metrics.auroc(scores, positive), slow_auroc(scores, positive)
    assert found == (None if slow is None else pytest.approx(slow))


def test_auroc_by_hand() -> None:
    # pairs: (0.8, 0.3) and (0.8, 0.5) are right, (0.5, 0.3) is, (0.5, 0.5) counts as half: 3.5 of 4
    assert metrics.auroc([0.8, 0.5, 0.3, 0.5], [True, True, False, False]) == 0.875
    assert metrics.auroc([1, 2], [True, True]) is None
    with pytest.raises(ValueError, match="NaN"):
        metrics.auroc([math.nan, 1.0], [True, False])
    with pytest.raises(ValueError, match="a truth a row"):
        metrics.auroc([1.0], [True, False])


@given(SCORED, st.sampled_from([1, 2, 4, 8]))
def test_calibration_error_equals_the_loop_over_bins(rows: list[tuple[float, bool]], bins: int) -> None:
    chances, positive = map(list, zip(*rows, strict=True))
    assert metrics.calibration_error(chances, positive, bins) == pytest.approx(
        slow_calibration_error(chances, positive, bins)
    )


def test_calibration_and_brier_by_hand() -> None:
    # two bins: 0.2 and 0.4, one a positive, |0.3 - 0.5| = 0.2; 0.9, a negative: 2/3 * 0.2 + 1/3 * 0.9 = 0.4333
    chances, truth = [0.2, 0.4, 0.9], [False, True, False]
    assert metrics.calibration_error(chances, truth, bins=2) == pytest.approx(0.43333, abs=1e-5)
    assert metrics.brier(chances, truth) == pytest.approx((0.04 + 0.36 + 0.81) / 3)
    with pytest.raises(ValueError, match="between 0 and 1"):
        metrics.calibration_error([1.2], [True])


def test_the_bootstrap_of_a_mean_is_the_textbooks_interval() -> None:
    draws = torch.Generator().manual_seed(1)
    values = torch.randn(400, generator=draws).numpy()
    found = metrics.bootstrap_interval(lambda rows: float(values[rows].mean()), len(values), draws=2000)
    half = 1.96 * values.std() / math.sqrt(len(values))  # 0.098; the percentiles of 2000 draws are off by about 0.003
    assert found == pytest.approx((values.mean() - half, values.mean() + half), abs=0.012)
    assert found == metrics.bootstrap_interval(lambda rows: float(values[rows].mean()), len(values), draws=2000)


def test_samples_without_a_value_are_left_out_of_the_bootstrap() -> None:
    scores, truth = np.array([0.9, 0.1, 0.5]), np.array([True, False, False])
    assert metrics.bootstrap_interval(lambda rows: metrics.auroc(scores[rows], truth[rows]), 3) == (1.0, 1.0)
    assert metrics.bootstrap_interval(lambda rows: None, 3, draws=5) is None


# ---- lists of recommendations, and ratings ----


def test_recall_at_k_by_hand():
    assert recall_at("abcde", "bxd", 4) == pytest.approx(2 / 3)  # b and d of three
    assert recall_at("abcde", "bxd", 3) == pytest.approx(1 / 3)
    assert recall_at("abcde", "bd", 10) == 1.0
    assert recall_at("ab", "abcdefgh", 2) == 1.0  # a full list, where plain recall would be 2 / 8
    assert recall_at("ax", "abcdefgh", 2) == 0.5
    assert recall_at("a", "ab", 10) == 0.5  # a list may be short
    assert recall_at("xyz", "a", 3) == 0.0


def test_ndcg_at_k_by_hand():
    second, fourth = 1 / math.log2(3), 1 / math.log2(5)
    assert ndcg_at("abcde", "bxd", 4) == pytest.approx((second + fourth) / (1 + second + 1 / 2))
    assert ndcg_at("abcde", "bxd", 2) == pytest.approx(second / (1 + second))
    assert ndcg_at("bd", "bd", 10) == 1.0
    assert ndcg_at("xb", "b", 10) == pytest.approx(0.63093, abs=1e-5)
    assert ndcg_at("abx", "abcdefgh", 2) == 1.0


def test_an_earlier_hit_is_worth_more_to_ndcg_and_nothing_to_recall():
    assert ndcg_at("axyz", "a", 4) > ndcg_at("xayz", "a", 4) > ndcg_at("xyza", "a", 4) > 0
    assert recall_at("axyz", "a", 4) == recall_at("xyza", "a", 4) == 1.0


@pytest.mark.parametrize("metric", [recall_at, ndcg_at])
def test_a_list_that_cannot_be_graded_is_refused(metric):
    with pytest.raises(ValueError, match="0 things are relevant"):
        metric("abc", "", 2)
    with pytest.raises(ValueError, match="the first 0"):
        metric("abc", "a", 0)
    with pytest.raises(ValueError, match="twice"):
        metric("aab", "a", 2)
    assert metric("aba", "a", 2) > 0


def test_rmse_by_hand():
    assert rmse([3.0, 4.0, 1.0], [3.0, 2.0, 2.0]) == pytest.approx(math.sqrt(5 / 3))
    with pytest.raises(ValueError, match="found 1 and 2"):
        rmse([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="found 0 and 0"):
        rmse([], [])
