"""The quadratic methods, LwF, Replay and Joint against the slow obvious computation."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perdure import Learner, Rows, Task, methods, models
from perdure.data import Batch
from perdure.method import Host, Method
from perdure.methods.quadratic import Quadratic

NO_ROWS = Batch(x=torch.zeros(0, 3), y=None, task=torch.zeros(0))


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def host_of(method: Method, model: nn.Module, optimizer: str = "adam", lr: float = 0.1, **settings: Any) -> Any:
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]
    return methods.attach(method, model, kind(model.parameters(), lr=lr), **settings)


def network() -> nn.Module:
    """In float64, with numbers of its own."""
    return redrawn(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double())


@torch.no_grad()
def redrawn(model: nn.Module) -> nn.Module:
    for p in model.parameters():
        p.zero_()
    move(model, 0, 1.0)
    return model


@torch.no_grad()
def move(model: nn.Module, seed: int, scale: float) -> None:
    for i, p in enumerate(model.parameters()):
        p += scale * torch.randn(p.shape, generator=draws(seed + 100 * i), dtype=p.dtype)


def task(seed: int, rows: int = 20, dtype: torch.dtype = torch.float64) -> Task:
    x = torch.randn(rows, 3, generator=draws(seed), dtype=dtype)
    return Task(Rows(x, torch.arange(rows) % 3), name=f"task {seed}")


def learnt(method: Quadratic, model: nn.Module, tasks: int, optimizer: str = "adam", lr: float = 0.1) -> Any:
    """A host whose method has consolidated a few tasks, the weights moving in between."""
    host = host_of(method, model, optimizer, lr)
    for seed in range(tasks):
        move(model, seed + 1, 0.3)
        method.end(host, task(seed))
    move(model, 77, 0.5)
    return host


def projected(method: Quadratic, host: Host) -> list[Tensor]:
    """What `project` adds to gradients that were 1."""
    for p in host.params().values():
        p.grad = torch.ones_like(p)
    method.project(host, NO_ROWS)
    return [p.grad - 1 for p in host.params().values() if p.grad is not None]


def autograd(method: Quadratic, host: Host) -> list[Tensor]:
    return list(torch.autograd.grad(method.quadratic_value(host), list(host.params().values())))


def close(found: list[Tensor], expected: list[Tensor], rtol: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * max(float(t.abs().max()) for t in expected))


QUADRATIC: dict[str, Callable[..., Quadratic]] = {
    "latest": lambda **s: methods.EWC(anchor="latest", **s),
    "mean": lambda **s: methods.EWC(anchor="mean", **s),
    "each": lambda **s: methods.EWC(anchor="each", **s),
    "mas": lambda **s: methods.MAS(**{"pull": "gradient", "strength": 1.0, **s}),
}
every_quadratic = pytest.mark.parametrize("make", QUADRATIC.values(), ids=QUADRATIC.keys())

# ---- the quadratic penalty ----


@every_quadratic
@pytest.mark.parametrize("normalise", [True, "sum", False])
def test_the_pull_is_the_gradient_of_the_value(make: Callable[..., Quadratic], normalise: bool | str) -> None:
    method = make(strength=3.0, normalise=normalise, decay=0.7)
    host = learnt(method, network(), tasks=3)
    pull = projected(method, host)
    assert float(method.quadratic_value(host).detach()) > 0.01
    close(pull, autograd(method, host))


def test_the_value_is_half_strength_times_importance_times_the_squared_distance() -> None:
    method = QUADRATIC["mas"](strength=4.0, normalise=False)
    model = nn.Linear(2, 1)
    host = host_of(method, model)
    method.importance = {"weight": torch.tensor([[1.0, 3.0]]), "bias": torch.tensor([0.5])}
    method.centre = {"weight": torch.tensor([[1.0, 1.0]]), "bias": torch.tensor([0.0])}
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, 3.0]]))
        model.bias.copy_(torch.tensor([2.0]))
    assert float(method.quadratic_value(host).detach()) == pytest.approx(4.0 / 2 * (1 * 1 + 3 * 4 + 0.5 * 4))
    close(projected(method, host), [torch.tensor([[4.0, 24.0]]), torch.tensor([4.0])], rtol=1e-6)


@pytest.mark.parametrize("decay", [1.0, 0.7])
@pytest.mark.parametrize("normalise", [True, "sum", False])
def test_the_precision_weighted_mean_is_the_sum_of_all_anchors_and_a_constant(
    decay: float, normalise: bool | str
) -> None:
    model = network()
    kinds = [methods.EWC(anchor=a, strength=2.0, decay=decay, normalise=normalise) for a in ("mean", "each")]
    hosts = [host_of(kind, model) for kind in kinds]
    for seed in range(3):
        move(model, seed + 1, 0.3)
        for kind, host in zip(kinds, hosts, strict=True):
            kind.end(host, task(seed))
    gaps = []
    for seed in range(4):
        move(model, 50 + seed, 0.5)
        mean, each = (projected(kind, host) for kind, host in zip(kinds, hosts, strict=True))
        close(mean, each)
        values = [float(kind.quadratic_value(host).detach()) for kind, host in zip(kinds, hosts, strict=True)]
        gaps.append(values[1] - values[0])
    assert gaps[0] > 1e-3  # the constant
    assert gaps == pytest.approx([gaps[0]] * 4, rel=1e-9)
    latest = learnt(methods.EWC(anchor="latest", strength=2.0, decay=decay, normalise=normalise), network(), 3)
    assert not torch.allclose(projected(latest.method, latest)[0], mean[0])


@every_quadratic
def test_only_the_mean_over_the_tasks_does_not_grow_with_their_number(make: Callable[..., Quadratic]) -> None:
    values = {}
    for tasks in (1, 3):
        for normalise in (True, "sum", False):
            method, model = make(strength=2.0, normalise=normalise), network()
            host = host_of(method, model)
            for _ in range(tasks):
                method.end(host, task(0))  # the same task, the same weights
            move(model, 77, 0.5)
            values[tasks, normalise] = float(method.quadratic_value(host).detach())
    assert values[3, True] == pytest.approx(values[1, True])
    for normalise in ("sum", False):
        assert values[3, normalise] == pytest.approx(3 * values[1, normalise])
    assert values[1, "sum"] == pytest.approx(values[1, True]) != pytest.approx(values[1, False])


def test_with_decay_old_importances_fade_once_a_task() -> None:
    parts = [methods.MAS(normalise=False) for _ in range(3)]
    faded = methods.MAS(normalise=False, decay=0.5)
    for count, part in enumerate(parts, start=1):
        learnt(part, network(), count)
    learnt(faded, network(), 3)
    for name, found in faded.importance.items():
        one, two, three = (part.importance[name] for part in parts)
        torch.testing.assert_close(found, 0.25 * one + 0.5 * (two - one) + (three - two))


# ---- any strength stays finite under SGD ----


@every_quadratic
@pytest.mark.parametrize("pull", ["gradient", "proximal"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_under_sgd_a_strength_of_a_billion_stays_finite(
    make: Callable[..., Quadratic], pull: str, momentum: float
) -> None:
    method, model = make(strength=1e9, pull=pull), network()
    host = learnt(method, model, tasks=3, optimizer="sgd")
    host.optimizer.param_groups[0]["momentum"] = momentum
    centre = torch.cat([p.flatten() for p in method.quadratics()[-1][1].values()])
    for step in range(60):
        for i, p in enumerate(model.parameters()):
            p.grad = torch.randn(p.shape, generator=draws(step + 1000 * i), dtype=p.dtype)
        method.project(host, NO_ROWS)
        host.optimizer.step()
        method.after_step(host, NO_ROWS, torch.zeros(0, 3))
    away = (torch.cat([p.detach().flatten() for p in model.parameters()]) - centre).abs().max()
    assert away < 2.0  # 60 free steps of momentum would lead some 5 away


@every_quadratic
def test_the_proximal_step_minimises_what_it_says(make: Callable[..., Quadratic]) -> None:
    method, model = make(strength=2.0, pull="proximal", normalise=False), network()
    host = learnt(method, model, tasks=3, lr=0.3)
    before = [p.detach().clone() for p in model.parameters()]
    assert all((pull == 0).all() for pull in projected(method, host))
    method.after_step(host, NO_ROWS, torch.zeros(0, 3))
    moved = sum(float((p.detach() - old).abs().sum()) for p, old in zip(model.parameters(), before, strict=True))
    assert moved > 0.1
    # at the minimum of (q - p)^2 / (2 lr) + penalty(q) the gradient is zero
    for q, old, gradient in zip(model.parameters(), before, autograd(method, host), strict=True):
        torch.testing.assert_close((old - q.detach()) / 0.3, gradient)


def test_the_cap_begins_where_a_step_would_overshoot() -> None:
    model = nn.Linear(3, 1, bias=False)
    nn.init.ones_(model.weight)
    method = QUADRATIC["mas"](strength=2.0, normalise=False)
    host = host_of(method, model, "sgd", lr=0.1)
    method.importance = {"weight": torch.tensor([[1.0, 4.9, 500.0]])}  # lr * strength * importance: 0.2, 0.98, 100
    method.centre = {"weight": torch.zeros(1, 3)}
    torch.testing.assert_close(projected(method, host)[0], torch.tensor([[2.0, 9.8, 10.0]]))
    host.optimizer.param_groups[0]["lr"] = 0.0  # the first step of a warm-up
    torch.testing.assert_close(projected(method, host)[0], torch.tensor([[2.0, 9.8, 1000.0]]))


@every_quadratic
def test_below_the_cap_sgd_and_adam_pull_alike(make: Callable[..., Quadratic]) -> None:
    pulls = []
    for optimizer in ("sgd", "adam"):
        method = make(strength=1e-3)
        pulls.append(projected(method, learnt(method, network(), tasks=3, optimizer=optimizer)))
    close(*pulls)
    assert max(float(pull.abs().max()) for pull in pulls[0]) > 0


# ---- importances ----


@every_quadratic
def test_normalised_importances_of_one_task_have_the_mean_one(make: Callable[..., Quadratic]) -> None:
    method = make()
    host = learnt(method, network(), tasks=1)
    importance, _ = method.quadratics()[0]
    total = sum(float(tensor.sum()) for tensor in importance.values())
    assert total / sum(p.numel() for p in host.params().values()) == pytest.approx(1.0)
    raw = make(normalise=False)
    learnt(raw, network(), tasks=1)
    ratios = [importance[name] / raw.quadratics()[0][0][name] for name in importance]
    assert all(torch.allclose(ratio, ratios[0].flatten()[0]) for ratio in ratios)


@pytest.mark.parametrize("fisher", ["exact", "empirical", "sampled"])
def test_the_fisher_of_a_logistic_model_is_the_one_worked_out_by_hand(fisher: str) -> None:
    """Scores W x + b: d log p_y / d W_cj = ([y = c] - p_c) x_j, and E_y ([y = c] - p_c)^2 = p_c (1 - p_c)."""
    model, rows = redrawn(nn.Linear(3, 3).double()), task(9)
    method = methods.EWC(fisher=fisher, normalise=False)
    host = host_of(method, model)
    x, y = rows.train.read(torch.arange(20)), rows.train.positions(range(3))
    p = (x @ model.weight.detach().T + model.bias.detach()).softmax(1)
    per_class = (F.one_hot(y, 3) - p).square() if fisher == "empirical" else p * (1 - p)
    expected = [per_class.T @ x.square() / 20, per_class.mean(0)]
    method.end(host, rows)
    found = [method.importance["weight"], method.importance["bias"]]
    if fisher != "sampled":
        close(found, expected)
        return
    assert (found[1] - expected[1]).abs().max() > 0.02  # one draw a row is no expectation
    draws = [method.measured(host, rows) for _ in range(400)]
    mean = [torch.stack([draw[name] for draw in draws]).mean(0) for name in ("weight", "bias")]
    error = [torch.stack([draw[name] for draw in draws]).std(0) / 400**0.5 for name in ("weight", "bias")]
    for m, e, standard in zip(mean, expected, error, strict=True):
        assert ((m - e).abs() < 5 * standard).all()


def test_mas_of_a_linear_model_by_hand_with_labels_and_without() -> None:
    model = redrawn(nn.Linear(3, 3).double())
    rows = task(9).train
    x = rows.read(torch.arange(20))
    scores = x @ model.weight.detach().T + model.bias.detach()
    expected = {"weight": (2 * scores).abs().T @ x.abs() / 20, "bias": (2 * scores).abs().mean(0)}
    for train in (rows, Rows(x)):
        method = methods.MAS(normalise=False)
        method.end(host_of(method, model), Task(train, name="rows", classes=range(3)))
        close(list(method.importance.values()), [expected[name] for name in method.importance])
        torch.testing.assert_close(method.centre, dict(model.state_dict()))


def test_the_exact_fisher_needs_no_labels_and_the_empirical_one_says_that_it_does() -> None:
    unlabelled = Task(Rows(task(9).train.read(torch.arange(20))), name="rows", classes=range(3))
    exact = methods.EWC()
    exact.end(host_of(exact, network()), unlabelled)
    assert set(exact.importance) == set(dict(network().named_parameters()))
    empirical = methods.EWC(fisher="empirical")
    with pytest.raises(ValueError, match="these rows have no labels"), pytest.warns(RuntimeWarning):
        empirical.end(host_of(empirical, network()), unlabelled)


def test_only_so_many_random_rows_are_looked_at() -> None:
    few, all_rows = methods.MAS(rows=5, normalise=False), methods.MAS(normalise=False)
    for method in (few, all_rows):
        method.end(host_of(method, network()), task(9))
    single = []
    for row in range(20):
        method = methods.MAS(normalise=False)
        train = task(9).train.select([row])
        method.end(host_of(method, network()), Task(train, name="one", classes=range(3)))
        single.append(method.importance["0.bias"])
    torch.testing.assert_close(all_rows.importance["0.bias"], torch.stack(single).mean(0))
    assert not torch.allclose(few.importance["0.bias"], all_rows.importance["0.bias"])
    # five of the twenty: some subset has this very mean
    subsets = torch.combinations(torch.arange(20), 5)
    means = torch.stack(single)[subsets].mean(1)
    assert (means - few.importance["0.bias"]).abs().sum(1).min() < 1e-9


# ---- importances of a learner's tasks, by plain autograd ----


def by_autograd(model: nn.Module, x: Tensor, values: Callable[[Tensor], list[Tensor]], size: Any) -> dict[str, Tensor]:
    """The mean over the rows of sum over the values of size(gradient), a backward for each row and value."""
    model.eval()
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in x:
        for value in values(model(row[None])[0]):
            gradients = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
            for name, gradient in zip(sums, gradients, strict=True):
                sums[name] += size(gradient) / len(x)
    model.train()
    return sums


def log_likelihoods(scores: Tensor, objective: str) -> list[Tensor]:
    """sqrt(p(y)) log p(y | x) with the weight constant: the exact Fisher is the sum of their squared gradients."""
    if objective == "classification":
        p = scores.softmax(0)
        return [p[c].detach().sqrt() * p[c].log() for c in range(len(scores))]
    if objective == "regression":
        return list(scores)  # a Gaussian of unit variance: E (y - s)^2 = 1
    p = scores.sigmoid()
    pairs = [(q, 1 - q) for q in p]
    return [value.detach().sqrt() * value.log() for pair in pairs for value in pair]


def labelled(objective: str, seed: int) -> Task:
    x = torch.randn(16, 12, generator=draws(seed))
    y = (x[:, seed] > 0).long() if objective == "classification" else (x[:, seed : seed + 2] > 0).float()
    return Task(Rows(x, y), name=f"task {seed}")


@pytest.mark.parametrize("scenario", ["task", "domain"])
@pytest.mark.parametrize("objective", ["classification", "multi-label", "regression"])
@pytest.mark.parametrize("kind", ["ewc", "mas"])
def test_importances_in_a_learner_are_those_of_plain_autograd(kind: str, objective: str, scenario: str) -> None:
    """The second task's: with heads of its own, only its own columns count."""
    method = methods.EWC(anchor="each", normalise=False) if kind == "ewc" else methods.MAS(decay=0, normalise=False)
    learner = Learner(models.mlp(12, (5,)), method, scenario=scenario, objective=objective, batch_size=8)
    for seed in (0, 1):
        learner.learn(labelled(objective, seed))
    found = method.tasks[1][0] if isinstance(method, methods.EWC) else method.importance
    own = slice(2, 4) if scenario == "task" else slice(0, 2)
    x = labelled(objective, 1).train.read(torch.arange(16))

    def values(scores: Tensor) -> list[Tensor]:
        if kind == "mas":
            return [scores[own].square().sum()]
        return log_likelihoods(scores[own], objective)

    expected = by_autograd(learner.model, x, values, torch.square if kind == "ewc" else torch.abs)
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in expected.items()}
    close([found[name] for name in expected], list(expected.values()), rtol=1e-4)
    assert (found["head.weights.0"][4:] == 0).all()
