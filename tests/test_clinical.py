"""What a diagnosis is worth, by hand, and what is too little to say so."""

import numpy as np
import pytest

from perdure import metrics
from perdure.clinical import Estimate, diagnosis, table

CHANCES = np.array([0.9, 0.8, 0.6, 0.4, 0.2, 0.5, 0.1])  # 0.5 is no "sick"
SICK = np.array([True, True, True, True, False, False, False])


def test_shares_have_exact_intervals_and_the_rest_bootstrap_ones():
    found = diagnosis(CHANCES, SICK, least=3, draws=200)
    assert found["sensitivity"] == Estimate(0.75, *metrics.proportion_interval(3, 4), 4)
    assert found["specificity"] == Estimate(1.0, *metrics.proportion_interval(3, 3), 3)
    # of 12 pairs one is wrong: 0.4 of a sick one, 0.5 of another
    assert found["AUROC"].value == pytest.approx(11 / 12) and found["AUROC"].patients == 3
    assert found["Brier"].value == pytest.approx((0.01 + 0.04 + 0.16 + 0.36 + 0.04 + 0.25 + 0.01) / 7)
    assert found["ECE"].value == metrics.calibration_error(CHANCES, SICK) and found["ECE"].patients == 7
    low, high = metrics.bootstrap_interval(lambda rows: metrics.brier(CHANCES[rows], SICK[rows]), 7, draws=200)
    assert (found["Brier"].low, found["Brier"].high) == (low, high)
    assert low < found["Brier"].value < high


def test_another_threshold_says_another_thing():
    found = diagnosis(CHANCES, SICK, least=1, threshold=0.3, draws=20)
    assert (found["sensitivity"].value, found["specificity"].value) == (1.0, pytest.approx(2 / 3))


def test_groups_that_are_too_small_are_counted_and_not_judged():
    found = diagnosis(CHANCES, SICK, least=4, draws=20)
    assert found["sensitivity"].value == 0.75
    assert str(found["specificity"]) == "3 patients, not judged"
    assert found["AUROC"] == Estimate(None, None, None, 3)
    assert found["Brier"].value is not None
    assert str(diagnosis(CHANCES, SICK)["Brier"]) == "7 patients, not judged"


def test_where_all_are_sick_nothing_is_said_of_the_healthy():
    found = diagnosis([0.9] * 40, [True] * 40, draws=20)
    assert str(found["sensitivity"]) == "1.00 (0.91 to 1.00)"
    assert str(found["specificity"]) == "0 patients, not judged"
    assert str(found["AUROC"]) == "0 patients, not judged"


def test_diagnoses_as_a_table():
    found = {
        ("one", "a"): diagnosis(CHANCES, SICK, draws=20),
        ("one", "b"): diagnosis(CHANCES, SICK, least=3, draws=20),
    }
    lines = table(found, ["method", "of"]).splitlines()
    assert lines[0] == "| method | of | sensitivity | specificity | AUROC | Brier | ECE |" and len(lines) == 4
    assert lines[2].startswith("| one | a | 4 patients, not judged | 3 patients, not judged |")
    assert lines[3].startswith("| one | b | 0.75 (0.19 to 0.99) | 1.00 (0.29 to 1.00) | 0.92 (")
