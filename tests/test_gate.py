"""The gate, by hand and by simulation: how often it refuses what is as good, and what is worse."""

import itertools
import math

import numpy as np
import pytest

from perdure.store.gate import Rules, Sitting, decide, holm, judged, mcnemar, rows_needed, sitting

CHURN = 0.06  # rows on which two equally good versions differ in being right


def draws(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def answers(chance: np.random.Generator, rows: int = 1000, accuracy: float = 0.9) -> np.ndarray:
    return chance.random(rows) < accuracy


def next_version(chance: np.random.Generator, old: np.ndarray, worse: float = 0.0, churn: float = CHURN) -> np.ndarray:
    """Answers of a version that changes `churn` of the rows and is worse by `worse` (a share) on average."""
    right = min(max(old.mean(), 0.5), 0.95)
    lost, gained = (churn + worse) / 2 / right, (churn - worse) / 2 / (1 - right)
    return np.where(old, chance.random(len(old)) >= lost, chance.random(len(old)) < gained)


def sat(
    name: str, candidate: np.ndarray, incumbent: np.ndarray, best: np.ndarray | None = None, labels=None
) -> Sitting:
    labels = [str(i % 5) for i in range(len(candidate))] if labels is None else labels
    return Sitting(name, labels, candidate, incumbent, incumbent if best is None else best)


# ---- the test ----


@pytest.mark.parametrize(("lost", "gained"), list(itertools.product([0, 1, 2, 5, 9], [0, 1, 3, 8])))
def test_mcnemar_is_the_tail_of_a_fair_coin(lost, gained):
    reference = np.array([True] * lost + [False] * gained + [True] * 20)
    candidate = np.array([False] * lost + [True] * gained + [True] * 20)
    total = lost + gained
    expected = sum(math.comb(total, k) for k in range(lost, total + 1)) / 2**total
    assert mcnemar(reference, candidate) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_very_many_rows_is_still_a_number():
    reference = np.ones(40_000, bool)
    candidate = np.concatenate([np.zeros(15_000, bool), np.ones(25_000, bool)])
    assert mcnemar(reference, candidate) == pytest.approx(0.0, abs=1e-300)
    assert mcnemar(candidate, reference) == pytest.approx(1.0)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_the_rows_that_would_settle_it_do_settle_it():
    chance, old = draws(0), answers(draws(1), 200_000)
    new = next_version(chance, old, worse=0.03)
    needed = rows_needed(old[:300], new[:300], 0.01)
    assert needed is not None and needed > 300
    needed = rows_needed(old, new, 0.01, power=0.8)
    assert needed == 200_000  # settled already
    need = rows_needed_from(old, new)
    found = [mcnemar(old[i : i + need], new[i : i + need]) < 0.01 for i in range(0, 100_000, need)]
    assert 0.7 < np.mean(found) < 0.9


def rows_needed_from(old, new) -> int:
    """As if these shares had been seen in an exam of 100 rows."""
    lost, gained = (old & ~new).mean(), (~old & new).mean()
    z = 2.326 * math.sqrt(lost + gained) + 0.8416 * math.sqrt(lost + gained - (lost - gained) ** 2)
    return math.ceil((z / (lost - gained)) ** 2)


# ---- the gate, by simulation ----


def refused(worse: float, seed: int, rows: int = 1000) -> bool:
    """Whether a candidate is refused that is worse on one of ten exams."""
    chance = draws(seed)
    sittings = []
    for exam in range(10):
        old = answers(chance, rows)
        sittings.append(sat(str(exam), next_version(chance, old, worse if exam == 3 else 0.0), old))
    return not decide(sittings, Rules()).promote


@pytest.mark.parametrize("rows", [25, 250, 1000])
def test_an_equal_candidate_is_refused_in_at_most_5_percent_of_updates(rows):
    assert np.mean([refused(0.0, seed, rows) for seed in range(400)]) <= 0.05


def test_a_plain_rule_of_two_points_would_refuse_it_often():
    """What the simulation is worth: it tells a rule without a test from ours."""

    def plain(seed):
        chance, drops = draws(seed), []
        for _ in range(10):
            old = answers(chance, 250)
            drops.append(old.mean() - next_version(chance, old).mean())
        return max(drops) > 0.02

    assert np.mean([plain(seed) for seed in range(400)]) > 0.4


def test_one_that_is_5_points_worse_on_one_exam_is_refused_in_at_least_95_percent():
    assert np.mean([refused(0.05, seed) for seed in range(400)]) >= 0.95


def chain(loss: float, seed: int) -> float:
    """The sum of losses with which a chain of updates, each a little worse than the last, is refused; 1 if never."""
    chance = draws(seed)
    best = current = answers(chance, 4000, 0.95)
    for step in range(1, 21):
        candidate = next_version(chance, current, loss, churn=0.01 + loss)
        if not decide([sat("a", candidate, current, best, ["one"] * 4000)], Rules(tolerance=0.02)).promote:
            return step * loss
        current = candidate
    return 1.0


def test_a_chain_of_small_losses_is_refused_when_their_sum_passes_the_tolerance():
    ends = [chain(0.005, seed) for seed in range(100)]
    assert np.mean([0.015 <= end <= 0.035 for end in ends]) >= 0.95
    # judged against the version in production alone it would never be: the mutant
    chance = draws(0)
    current = answers(chance, 4000, 0.95)
    for _ in range(10):
        candidate = next_version(chance, current, 0.005, churn=0.015)
        assert decide([sat("a", candidate, current, labels=["one"] * 4000)], Rules(tolerance=0.02)).promote
        current = candidate


# ---- what is judged ----


def broken(rows: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    old = np.ones(rows, bool)
    new = old.copy()
    new[: round(rows * share)] = False
    return old, new


def test_small_exams_are_judged_together():
    sittings = [sat(str(n), *reversed(broken(60, 0.1)), labels=["a"] * 60) for n in range(5)]
    names = [found.what for found in judged(sittings, Rules())]
    assert names == ["small exams together", "label a"]
    assert not decide(sittings, Rules()).promote
    few = [sat("0", *reversed(broken(60, 0.05)), labels=["a"] * 60)]
    assert decide(few, Rules()).warnings  # three rows lost of 60: perhaps


def test_a_label_that_is_lost_is_seen_whatever_the_average():
    old = np.ones(2000, bool)
    new = old.copy()
    new[:35] = False  # 1.75 points
    labels = ["rare"] * 40 + ["common"] * 1960
    found = decide([sat("a", new, old, labels=labels)], Rules())
    assert not found.promote and found.refusals == [s for s in found.refusals if s.startswith("label rare")]


def test_labels_of_few_rows_are_judged_together():
    old = np.ones(1000, bool)
    new = old.copy()
    labels = ["common"] * 940 + [f"rare {i}" for i in range(20) for _ in range(3)]
    new[940:970] = False
    names = {found.what: found.verdict for found in judged([sat("a", new, old, labels=labels)], Rules())}
    assert names == {"exam a": "worse", "label common": "kept", "rare labels together": "worse"}


def test_a_drop_that_may_be_chance_is_said_with_the_rows_that_would_settle_it():
    old, new = broken(120, 0.03)
    back = new.copy()
    back[0] = True
    sitting = sat("a", back, old, labels=[str(i % 2) for i in range(120)])
    lenient, strict = decide([sitting], Rules()), decide([sitting], Rules(when_unsure="refuse"))
    assert lenient.promote and not strict.promote and strict.refusals == lenient.warnings
    assert "it may be chance; about" in lenient.warnings[0]


def test_the_incumbent_and_the_best_are_both_references():
    best, incumbent, candidate = np.ones(500, bool), np.arange(500) >= 25, np.arange(500) >= 30
    found = judged([sat("a", candidate, incumbent, best)], Rules())
    verdicts = {(f.what, f.against): f.verdict for f in found if f.what == "exam a"}
    assert verdicts == {("exam a", "best"): "worse", ("exam a", "incumbent"): "kept"}


# ---- the other rules ----


def test_gain_flips_size_and_time():
    chance = draws(0)
    old = answers(chance)
    new = next_version(chance, old)
    sitting = [sat("new", new, old)]
    assert decide(sitting, Rules(), newest="new", size=10**9, milliseconds=10**3).promote
    for rules, said in (
        (Rules(gain=0.05), "a gain of"),
        (Rules(flips=0.01), "are wrong now"),
        (Rules(bytes=10), "has 11 bytes"),
        (Rules(milliseconds=1.0), "takes 2.0 ms"),
    ):
        found = decide(sitting, rules, newest="new", size=11, milliseconds=2.0)
        assert not found.promote and said in found.refusals[0]
    assert decide(sitting, Rules(gain=0.05), newest=None).promote
    assert decide([sat("new", np.ones(1000, bool), old)], Rules(gain=0.05), newest="new").promote


def test_without_exams_only_limits_count():
    assert decide([], Rules()).promote and not decide([], Rules(bytes=1), size=2).promote


def test_rules_and_sittings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="a share"):
        Rules(tolerance=2.0)
    with pytest.raises(ValueError, match="when_unsure"):
        Rules(when_unsure="maybe")
    with pytest.raises(ValueError, match="different lengths"):
        Sitting("a", ["x"], np.ones(2, bool), np.ones(1, bool), np.ones(1, bool))


def test_a_label_that_the_reference_gives_too_often_does_not_refuse_a_better_candidate_for_ever():
    draws = np.random.default_rng(0)
    truth = draws.choice(["good", "bad"], 600).astype(str)
    lazy = np.full(600, "bad")
    better = np.where(draws.random(600) < 0.9, truth, np.where(truth == "good", "bad", "good"))
    found = decide([sitting("a", truth, better, lazy, lazy)], Rules())
    assert found.promote and not found.warnings
    recall_alone = Sitting("a", truth.tolist(), better == truth, lazy == truth, lazy == truth)
    assert not decide([recall_alone], Rules()).promote, "its rows alone are no measure of a label"


def test_a_label_that_is_lost_refuses_however_many_new_ones_are_gained():
    truth = np.array(["a"] * 300 + ["b"] * 300 + ["new"] * 600)
    before = np.array(["a"] * 300 + ["b"] * 300 + ["a"] * 600)  # what it does not know it takes for "a"
    after = np.array(["a"] * 240 + ["new"] * 60 + ["b"] * 300 + ["new"] * 600)
    found = decide([sitting("a", truth, after, before, before, known=["a", "b"])], Rules())
    assert not found.promote and any("label a" in why for why in found.refusals)


def test_drawn_rows_are_judged_by_themselves_and_less_strictly():
    """A drop of six points on drawn rows is none; of fifteen it is, and the real exam is judged as before."""

    def drawn(share: float) -> Sitting:
        right, worse = np.ones(400, dtype=bool), np.arange(400) >= 400 * share
        return Sitting("0001-drawn", ["a", "b"] * 200, worse, right, right)

    assert decide([], Rules(), drawn=[drawn(0.06)]).promote
    assert not decide([], Rules(), drawn=[drawn(0.15)]).promote
    assert not decide([drawn(0.06)], Rules()).promote
    one_label = np.where(np.arange(4000) % 20 == 0, np.arange(4000) % 60 > 0, True)  # a third of one label of twenty
    lost = np.arange(4000) % 20 > 0  # all of it
    twenty, right = [f"l{row % 20}" for row in range(4000)], np.ones(4000, dtype=bool)
    assert decide([], Rules(), drawn=[Sitting("0001-drawn", twenty, one_label, right, right)]).promote
    assert not decide([], Rules(), drawn=[Sitting("0001-drawn", twenty, lost, right, right)]).promote
    assert not decide([], Rules(drawn=0.02), drawn=[drawn(0.06)]).promote
