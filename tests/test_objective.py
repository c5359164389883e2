"""Losses, grades and likelihoods: against numbers worked out by hand, and against autograd of the log-likelihood."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from perdure import Batch
from perdure.objective import OBJECTIVES, MultiLabel, Rating, Regression, named

CLASSIFICATION, MULTI_LABEL, REGRESSION, RATING, RANKING = OBJECTIVES.values()


def classes(columns: list[int], **fields) -> Batch:
    """A batch of which only what an objective reads matters."""
    count = len(columns)
    columns = torch.tensor(columns)
    return Batch(
        x=torch.zeros(count, 1), y=columns, task=torch.zeros(count, dtype=torch.long), columns=columns, **fields
    )


def dense(y: list[list[float]] | None, columns: list[list[int]], **fields) -> Batch:
    count = len(columns)
    values = None if y is None else torch.tensor(y)
    task = torch.zeros(count, dtype=torch.long)
    return Batch(x=torch.zeros(count, 1), y=values, task=task, columns=torch.tensor(columns), **fields)


def mask(*rows: str) -> Tensor:
    return torch.tensor([[letter == "x" for letter in row] for row in rows])


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- classification: loss ----


def test_cross_entropy_of_known_scores():
    scores = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    assert CLASSIFICATION.loss(scores, classes([0, 1])).item() == pytest.approx((math.log(4) + math.log(2)) / 2)


def test_forbidden_columns_take_no_part_in_the_loss_and_get_no_gradient():
    scores = torch.tensor([[1.0, 2.0, 90.0, 4.0]], requires_grad=True)
    loss = CLASSIFICATION.loss(scores, classes([1], allowed=mask("xx.x")))
    assert loss.item() == pytest.approx(math.log(math.e + math.e**2 + math.e**4) - 2)
    loss.backward()
    assert scores.grad[0, 2] == 0
    assert scores.grad[0, 0] > 0 > scores.grad[0, 1]


def test_weights_scale_rows_and_the_mean_is_over_the_rows():
    scores = torch.tensor([[0.0, math.log(3)], [0.0, 0.0], [5.0, 1.0]])
    loss = CLASSIFICATION.loss(scores, classes([0, 1, 0], weight=torch.tensor([3.0, 1.0, 0.0])))
    assert loss.item() == pytest.approx((3 * math.log(4) + math.log(2)) / 3)
    values = dense([[1.0], [2.0]], [[0], [0]], weight=torch.tensor([0.5, 2.0]))
    assert REGRESSION.loss(torch.zeros(2, 1), values).item() == pytest.approx((0.5 * 1 + 2 * 4) / 2)
    assert MULTI_LABEL.loss(torch.zeros(2, 1), values).item() == pytest.approx(math.log(2) * 2.5 / 2)


def test_soft_targets_count_and_rows_of_nan_fall_back_to_the_label():
    nan = math.nan
    scores = torch.randn(3, 4, generator=chance())
    logs = scores.log_softmax(1)
    batch = classes([3, 0, 2], target=torch.tensor([[0.25, 0.75, 0.0], [nan, nan, nan], [0.0, 0.0, 1.0]]))
    by_hand = -(0.25 * logs[0, 0] + 0.75 * logs[0, 1] + logs[1, 0] + logs[2, 2]) / 3
    assert CLASSIFICATION.loss(scores, batch).item() == pytest.approx(by_hand.item())


def test_soft_targets_with_a_mask_stay_finite_and_so_does_their_gradient():
    scores = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    batch = classes([0], target=torch.tensor([[0.5, 0.5, 0.0]]), allowed=mask("xx."))
    loss = CLASSIFICATION.loss(scores, batch)
    assert loss.item() == pytest.approx(math.log(math.e + math.e**2) - 1.5)
    loss.backward()
    assert scores.grad.isfinite().all()


def test_a_row_without_a_label_is_refused_where_one_is_needed():
    batch = Batch(x=torch.zeros(1, 1), y=None, task=torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="no labels"):
        CLASSIFICATION.loss(torch.zeros(1, 2), batch)
    with pytest.raises(ValueError, match="no labels"):
        next(CLASSIFICATION.probes(torch.zeros(1, 2), batch, "empirical", chance()))
    assert len(list(CLASSIFICATION.probes(torch.zeros(1, 2), batch, "exact", chance()))) == 2


# ---- the dense objectives: loss ----


def test_binary_cross_entropy_is_a_mean_over_the_labels_that_a_task_speaks_of():
    scores = torch.tensor([[0.0, 1.0, -2.0], [3.0, 0.0, 9.0]])
    batch = dense([[1.0, 0.0], [1.0, 0.0]], [[2, 0], [1, -1]])  # row 0: column 2 is 1, column 0 is 0; row 1: one label
    soft = F.softplus
    by_hand = ((soft(torch.tensor(2.0)) + soft(torch.tensor(0.0))) / 2 + math.log(2)) / 2
    assert MULTI_LABEL.loss(scores, batch).item() == pytest.approx(by_hand.item())


def test_squared_error_is_a_mean_over_the_outputs_that_a_task_speaks_of():
    scores = torch.tensor([[0.0, 1.0, -2.0], [3.0, 0.5, 9.0]])
    batch = dense([[1.0, 3.0], [1.5, 0.0]], [[2, 0], [1, -1]])
    assert REGRESSION.loss(scores, batch).item() == pytest.approx(((9 + 9) / 2 + 1) / 2)


def test_ratings_lie_between_their_bounds_and_their_squared_error_is_by_hand():
    scores = torch.tensor([[0.0], [math.log(3)], [60.0], [-60.0]])  # 3, 4, 5 and 1 stars
    assert RATING.answer(scores, None)[:, 0].tolist() == pytest.approx([3, 4, 5, 1])
    batch = dense([[5.0], [2.0], [5.0], [2.0]], [[0]] * 4)
    assert RATING.loss(scores, batch).item() == pytest.approx((4 + 4 + 0 + 1) / 4)
    batch.weight = torch.tensor([0.0, 2.0, 1.0, 1.0])
    assert RATING.loss(scores, batch).item() == pytest.approx((8 + 1) / 4)
    assert named("rating:0:10").answer(scores, None)[:, 0].tolist() == pytest.approx([5, 7.5, 10, 0])


def test_the_loss_of_a_pair_is_that_of_bayesian_personalised_ranking():
    """Rendle et al. 2009: -ln sigmoid(x_ui - x_uj)."""
    differences = torch.tensor([[2.0], [-1.0]])
    by_hand = (math.log(1 + math.exp(-2)) + math.log(1 + math.e)) / 2
    assert RANKING.loss(differences, dense([[1.0], [1.0]], [[0], [0]])).item() == pytest.approx(by_hand)
    assert RANKING.loss(-differences, dense([[0.0], [0.0]], [[0], [0]])).item() == pytest.approx(by_hand)


@pytest.mark.parametrize("name", ["rating:5:1", "rating:1", "rating:a:b", "rating:0:inf", "regression:0:1", "stars"])
def test_an_objective_that_nobody_knows_is_refused(name):
    with pytest.raises(ValueError, match="objective is"):
        named(name)


# ---- distillation ----


def test_distillation_by_hand():
    teacher, student = torch.tensor([[0.0, math.log(9.0)]]), torch.tensor([[0.0, math.log(81.0)]])
    # temperature 2: softmax of (0, log 3) = (1/4, 3/4) against (1/10, 9/10), times 4
    by_hand = -4 * (0.25 * math.log(0.1) + 0.75 * math.log(0.9))
    assert CLASSIFICATION.distil(student, teacher, 2.0).item() == pytest.approx(by_hand, rel=1e-5)
    by_hand = -4 * (0.5 * math.log(0.5) + 0.75 * math.log(0.9) + 0.25 * math.log(0.1) - 0.5 * math.log(2)) / 2
    assert MULTI_LABEL.distil(student, teacher, 2.0).item() == pytest.approx(by_hand, rel=1e-5)
    assert REGRESSION.distil(student, teacher, 2.0).item() == pytest.approx(math.log(9.0) ** 2 / 2, rel=1e-5)
    # the ratings are 1 + 4 (1/2, 0.9) and 1 + 4 (1/2, 81/82)
    assert RATING.distil(student, teacher, 2.0).item() == pytest.approx((4 * (81 / 82 - 0.9)) ** 2 / 2, rel=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=lambda o: o.name)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_a_student_that_equals_its_teacher_is_not_pulled(objective, temperature):
    teacher = torch.randn(5, 3, generator=chance())
    student = teacher.clone().requires_grad_()
    distance = objective.distil(student, teacher, temperature)
    assert distance.shape == (5,)
    distance.sum().backward()
    assert student.grad.abs().max() < 1e-6
    other = (teacher + torch.randn(5, 3, generator=chance(1))).requires_grad_()
    objective.distil(other, teacher, temperature).sum().backward()
    assert other.grad.abs().min() > 1e-5


def test_distillation_keeps_its_size_as_the_temperature_grows():
    """Hinton et al. 2015: at high temperature the gradient tends to (s - t) / n for centred scores."""
    teacher, student = torch.randn(1, 4, generator=chance()), torch.randn(1, 4, generator=chance(1))
    centred = (student - student.mean() - teacher + teacher.mean()) / 4
    student.requires_grad_()
    CLASSIFICATION.distil(student, teacher, 1000.0).sum().backward()
    assert torch.allclose(student.grad, centred, atol=1e-3)


# ---- probes: the Fisher of one row in the space of its scores, against the definition ----

SCORES = torch.tensor([[0.3, -1.2, 0.8, 0.1], [2.0, 0.5, -0.5, -1.0], [0.0, 0.0, 0.0, 1.0]], dtype=torch.float64)


def outer(probes: Tensor) -> Tensor:
    return probes[:, :, None] * probes[:, None, :]


def fisher(objective, batch: Batch, kind: str) -> Tensor:
    """sum_v v v^T, [n, C, C]."""
    found = [outer(v) for v in objective.probes(SCORES, batch, kind, chance())]
    assert all(v.shape == (3, 4, 4) for v in found)
    return torch.stack(found).sum(0)


def expected(row: Tensor, answers: list, log_likelihood, density) -> Tensor:
    """E_y [g g^T], g = d log p(y | s) / d s by autograd, over all answers."""
    total = torch.zeros(4, 4, dtype=torch.float64)
    for y in answers:
        s = row.clone().requires_grad_()
        (g,) = torch.autograd.grad(log_likelihood(s, y), s)
        total += density(row, y) * torch.outer(g, g)
    return total


@pytest.mark.parametrize("allowed", [None, mask("xx..", "x.xx", ".x..")], ids=["all", "masked"])
def test_exact_probes_of_classification_are_the_expectation_over_all_answers(allowed):
    found = fisher(CLASSIFICATION, classes([0, 2, 1], allowed=allowed), "exact")
    for i, row in enumerate(SCORES):
        open_columns = range(4) if allowed is None else allowed[i].nonzero()[:, 0].tolist()

        def likelihood(s: Tensor, y: int, columns=tuple(open_columns)) -> Tensor:
            return s[y] - s[list(columns)].logsumexp(0)

        truth = expected(row, list(open_columns), likelihood, lambda s, y, of=likelihood: of(s, y).exp())
        assert torch.allclose(found[i], truth, atol=1e-12)


def bernoulli(columns: list[int]):
    def likelihood(s: Tensor, y: tuple[float, ...]) -> Tensor:
        return sum(
            (y[i] * F.logsigmoid(s[c]) + (1 - y[i]) * F.logsigmoid(-s[c]) for i, c in enumerate(columns)), s.sum() * 0
        )

    return likelihood


HOMES = [[2, 0], [1, -1], [3, 1]]


def test_exact_probes_of_multi_label_are_the_expectation_over_all_sets_of_labels():
    found = fisher(MULTI_LABEL, dense(None, HOMES), "exact")
    for i, (row, home) in enumerate(zip(SCORES, HOMES, strict=True)):
        known = [c for c in home if c >= 0]
        likelihood = bernoulli(known)
        answers = list(itertools.product([0.0, 1.0], repeat=len(known)))
        truth = expected(row, answers, likelihood, lambda s, y, of=likelihood: of(s, y).exp())
        assert torch.allclose(found[i], truth, atol=1e-12)


def gauss(columns: list[int], centre: Tensor):
    def likelihood(s: Tensor, y: tuple[float, ...]) -> Tensor:
        return sum((-0.5 * (centre[c] + y[i] - s[c]).square() for i, c in enumerate(columns)), s.sum() * 0)

    return likelihood


def test_exact_probes_of_regression_are_the_expectation_over_a_unit_gaussian():
    """Answers s +- 1 have the mean and the variance of the Gaussian, which is all that the expectation needs."""
    found = fisher(REGRESSION, dense(None, HOMES), "exact")
    for i, (row, home) in enumerate(zip(SCORES, HOMES, strict=True)):
        known = [c for c in home if c >= 0]
        answers = list(itertools.product([-1.0, 1.0], repeat=len(known)))
        share = 0.5 ** len(known)
        truth = expected(row, answers, gauss(known, row), lambda _s, _y, share=share: share)
        assert torch.allclose(found[i], truth, atol=1e-12)


def test_exact_probes_of_ratings_are_the_expectation_over_a_unit_gaussian_about_the_rating():
    def likelihood_of(known: list[int], centre: Tensor):
        def likelihood(s: Tensor, y: tuple[float, ...]) -> Tensor:
            stars = 1 + 4 / (1 + torch.exp(-s))
            return sum((-0.5 * (centre[c] + y[i] - stars[c]).square() for i, c in enumerate(known)), s.sum() * 0)

        return likelihood

    found, mutant = (fisher(kind, dense(None, HOMES), "exact") for kind in (RATING, Regression()))
    for i, (row, home) in enumerate(zip(SCORES, HOMES, strict=True)):
        known = [c for c in home if c >= 0]
        answers, share = list(itertools.product([-1.0, 1.0], repeat=len(known))), 0.5 ** len(known)
        likelihood = likelihood_of(known, 1 + 4 / (1 + torch.exp(-row)))
        truth = expected(row, answers, likelihood, lambda _s, _y, share=share: share)
        assert torch.allclose(found[i], truth, atol=1e-12)
        assert not torch.allclose(mutant[i], truth, atol=1e-3)


def test_exact_probes_of_a_pair_are_the_expectation_over_both_orders():
    found = fisher(RANKING, dense(None, HOMES), "exact")
    assert torch.allclose(found, fisher(MultiLabel(), dense(None, HOMES), "exact"))
    for i, (row, home) in enumerate(zip(SCORES, HOMES, strict=True)):
        known = [c for c in home if c >= 0]
        p = torch.zeros(4, dtype=torch.float64)
        p[known] = 1 / (1 + torch.exp(-row[known]))
        assert torch.allclose(found[i], torch.diag(p * (1 - p)), atol=1e-12)  # E (y - p)^2 of a Bernoulli


@pytest.mark.parametrize("name", OBJECTIVES)
def test_sensitivity_is_the_gradient_of_the_squared_length_of_the_answers_that_concern_a_row(name):
    scores, objective = SCORES.clone().requires_grad_(), OBJECTIVES[name]
    allowed, home = mask("xx..", "x.xx", ".x.."), mask("x.x.", ".x..", ".x.x")
    batch = classes([0, 0, 1], allowed=allowed) if name == "classification" else dense(None, HOMES)
    answers = 1 + 4 / (1 + torch.exp(-scores)) if name == "rating" else scores
    length = (answers * (allowed if name == "classification" else home)).square().sum()
    (truth,) = torch.autograd.grad(length, scores)
    assert torch.allclose(objective.sensitivity(SCORES, batch), truth, atol=1e-12)
    if name == "rating":
        assert not torch.allclose(Regression().sensitivity(SCORES, batch), truth, atol=1e-3)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_empirical_probes_are_the_gradient_at_the_label(name):
    objective = OBJECTIVES[name]
    scores = SCORES.clone().requires_grad_()
    if name == "classification":
        batch = classes([0, 2, 1], allowed=mask("xx..", "x.xx", ".x.."))
        (g,) = torch.autograd.grad(-3 * objective.loss(scores, batch), scores)
    else:
        batch = dense([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], HOMES)
        labels = torch.tensor([2.0, 1.0, 2.0])  # the loss is a mean over a row's labels, the likelihood a sum
        batch.weight = labels / 2 if name in ("regression", "rating") else labels
        (g,) = torch.autograd.grad(-3 * objective.loss(scores, batch), scores)
    (found,) = objective.probes(SCORES, batch, "empirical", chance())
    assert torch.allclose(found, g, atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_mean_of_sampled_probes_converges_to_the_exact_ones(name):
    objective, draws = OBJECTIVES[name], 20_000
    if name == "classification":
        batch = classes([0, 2, 1], allowed=mask("xx.x", "x.xx", ".x.."))
    else:
        batch = dense(None, HOMES)
    exact = fisher(objective, batch, "exact")
    many = batch.select(torch.arange(3).repeat(draws))
    (found,) = objective.probes(SCORES.repeat(draws, 1), many, "sampled", chance(5))
    mean = outer(found.view(draws, 3, 4).transpose(0, 1).reshape(-1, 4)).view(3, draws, 4, 4).mean(1)
    assert torch.allclose(mean, exact, atol=0.05)
    assert (mean - exact).abs().max() > 0


def test_sampled_probes_come_from_the_given_generator_only():
    before = torch.get_rng_state()
    for name, objective in OBJECTIVES.items():
        batch = classes([0, 2, 1]) if name == "classification" else dense(None, HOMES)
        first, again, other = (next(objective.probes(SCORES, batch, "sampled", chance(s))) for s in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


# ---- answers and grades ----


def test_answers_are_probabilities_over_the_allowed_columns():
    allowed = mask("xx..", "x.xx", ".x..")
    p = CLASSIFICATION.answer(SCORES, allowed)
    assert torch.allclose(p.sum(1), torch.ones(3, dtype=torch.float64))
    assert (p[~allowed] == 0).all()
    assert p[2, 1] == 1
    assert torch.allclose(MULTI_LABEL.answer(SCORES, allowed), SCORES.sigmoid() * allowed)
    assert torch.equal(REGRESSION.answer(SCORES, None), SCORES)


def test_only_the_scores_of_columns_that_concern_a_row_are_kept():
    allowed = mask("xx..", "x.xx", ".x..")
    assert torch.equal(CLASSIFICATION.concerned(SCORES, classes([0, 0, 1], allowed=allowed)), SCORES * allowed)
    assert torch.equal(CLASSIFICATION.concerned(SCORES, classes([0, 0, 1])), SCORES)
    home = mask("x.x.", ".x..", ".x.x")
    for objective in (MULTI_LABEL, REGRESSION):
        assert torch.equal(objective.concerned(SCORES, dense(None, HOMES)), SCORES * home)


def test_accuracy_counts_the_best_allowed_answer():
    batch = classes([2, 0, 3], allowed=mask("xxxx", ".xxx", "xxxx"))
    tally = CLASSIFICATION.tally(SCORES, batch)
    assert CLASSIFICATION.grade(tally, 3) == pytest.approx(2 / 3)  # row 1 may not answer 0
    assert CLASSIFICATION.grade(CLASSIFICATION.tally(SCORES, classes([2, 0, 3])), 3) == 1.0


def test_label_accuracy_by_hand():
    scores = torch.tensor([[2.0, -1.0, 0.5], [-2.0, 1.0, 9.0]])
    batch = dense([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], [[0, 1, 2], [0, 1, -1]])
    assert MULTI_LABEL.grade(MULTI_LABEL.tally(scores, batch), 2) == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_r2_by_hand():
    home = [[0, 1]] * 4
    y = [[1.0, 10.0], [2.0, 10.0], [3.0, 30.0], [6.0, 30.0]]  # deviations about 3 and 20: 14 and 400
    scores = torch.tensor([[1.0, 15.0], [2.0, 10.0], [3.0, 30.0], [4.0, 30.0]])  # squared errors: 4 and 25
    tally = REGRESSION.tally(scores, dense(y, home))
    assert REGRESSION.grade(tally, 4) == pytest.approx((1 - 4 / 14 + 1 - 25 / 400) / 2)
    mean = torch.tensor([[3.0, 20.0]] * 4)
    assert REGRESSION.grade(REGRESSION.tally(mean, dense(y, home)), 4) == pytest.approx(0.0, abs=1e-9)


def test_the_grade_of_ratings_says_their_rmse():
    scores = torch.tensor([[0.0], [math.log(3)], [0.0]])  # 3, 4 and 3 stars
    batch = dense([[5.0], [4.0], [2.0]], [[0]] * 3)
    assert RATING.grade(RATING.tally(scores, batch), 3) == pytest.approx(1 - math.sqrt(5 / 3) / 4)
    ten = Rating(low=0, high=10)
    assert ten.grade(ten.tally(scores, batch), 3) == pytest.approx(1 - math.sqrt((0 + 3.5**2 + 3**2) / 3) / 10)


def test_the_grade_of_pairs_is_the_share_in_the_right_order():
    scores = torch.tensor([[2.0], [-1.0], [0.0], [-3.0]])
    batch = dense([[1.0], [1.0], [1.0], [0.0]], [[0]] * 4)
    assert RANKING.grade(RANKING.tally(scores, batch), 4) == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert torch.equal(RANKING.answer(scores, None), scores)


def test_r2_leaves_out_outputs_that_do_not_vary():
    y = [[1.0, 7.0], [3.0, 7.0]]
    scores = torch.tensor([[1.0, 0.0], [2.0, 0.0]])
    assert REGRESSION.grade(REGRESSION.tally(scores, dense(y, [[0, 1]] * 2)), 2) == pytest.approx(1 - 1 / 2)
    constant = dense([[7.0], [7.0]], [[1]] * 2)
    assert REGRESSION.grade(REGRESSION.tally(scores, constant), 2) == 0.0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_tallies_of_parts_add_up_to_the_tally_of_the_whole(name):
    objective, draws = OBJECTIVES[name], chance(3)
    scores = torch.randn(50, 4, generator=draws)
    columns = torch.randint(4, (50,), generator=draws)
    if name == "classification":
        batch = Batch(x=scores, y=columns, task=torch.zeros_like(columns), columns=columns)
    else:
        y = torch.rand(50, 4, generator=draws).round() if name == "multi-label" else torch.randn(50, 4, generator=draws)
        batch = Batch(x=scores, y=y, task=torch.zeros_like(columns), columns=torch.arange(4).expand(50, -1))
    whole = objective.tally(scores, batch)
    parts = [objective.tally(scores[i], batch.select(i)) for i in torch.arange(50).split([1, 20, 29])]
    assert whole.dtype == torch.float64
    assert torch.allclose(torch.stack(parts).sum(0), whole)
    assert objective.grade(torch.stack(parts).sum(0), 50) == pytest.approx(objective.grade(whole, 50))
