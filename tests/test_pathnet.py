"""PathNet: what a path computes, how paths compete, and that what is frozen never moves."""

import copy
import re
import warnings
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from conftest import small_stream
from torch import Tensor, nn
from trees import differences, snapshot

from perdure import Callback, Learner, Rows, Task, methods, models
from perdure.data import Batch
from perdure.method import Host, Method
from perdure.methods import PathNet
from perdure.models import Modular

OPTIMIZERS = {
    "adam": {"name": "adam", "lr": 0.01},
    "momentum": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    "adamw": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
}


def pathnet(**settings: Any) -> PathNet:
    return PathNet(**{"modules": 5, "active": 2, "width": 4, "population": 6, "trial": 2, "settle": 0.25, **settings})


def learner(method: Method, norm: bool = False, dropout: float = 0.0, **settings: Any) -> Learner:
    model = models.mlp(12, (10, 10), norm=norm, dropout=dropout)
    return Learner(model, method, scenario="task", **{"steps": 20, "batch_size": 8, **settings})


@dataclass(eq=False)
class Spy(Method):
    """What was there at every step."""

    name: ClassVar[str] = "spy"
    steps: list[dict[str, Any]] = field(default_factory=list)

    def after_step(self, host: Host, batch: Batch, outputs: Tensor) -> None:
        weights = {name: p.detach().clone() for name, p in host.model.state_dict().items()}
        right = outputs.masked_fill(~batch.allowed, -1e9).argmax(1) == batch.columns
        self.steps.append({"path": host.model.path.clone(), "right": right, "weights": weights})


# ---- the network ----


def by_hand(model: Modular, x: Tensor, path: list[list[int]], kind: str) -> Tensor:
    """What the heads see, one module at a time; batch norm as in eval mode."""
    h = x.flatten(1) if kind == "mlp" else x
    for layer, row in enumerate(path):
        total = torch.zeros(())
        for m in {*row}:
            parts = dict(model.layers[layer][m].named_children())
            weight, bias = parts["0"].weight, parts["0"].bias
            out = F.linear(h, weight, bias) if kind == "mlp" else F.conv2d(h, weight, bias, padding=1)
            norm = parts["1"] if len(parts) == 3 else None
            if norm is not None:
                shape = (1, -1) if kind == "mlp" else (1, -1, 1, 1)
                mean, var = norm.running_mean.view(shape), norm.running_var.view(shape)
                out = (out - mean) / (var + norm.eps).sqrt() * norm.weight.view(shape) + norm.bias.view(shape)
            total = total + out.clamp(min=0)
        h = total if kind == "mlp" else F.max_pool2d(total, 2)
    return h.flatten(1)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_a_layer_gives_the_sum_of_the_modules_on_the_path(kind: str, norm: bool) -> None:
    base = models.mlp(64, (8, 12), norm=norm) if kind == "mlp" else models.convnet((1, 8, 8), (8, 12), norm=norm)
    model = Modular(base.recipe, modules=4, active=3, width=None)
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(16, 1, 8, 8, generator=draws)
    assert model(x).shape == (16, 0)
    model.grow(2, draws)
    model.grow(5, draws)
    assert [layer[0][0].weight.shape[0] for layer in model.layers] == [2, 3]
    model(x)  # in train mode, which moves the statistics
    for path in ([[0, 1, 2], [1, 2, 3]], [[3, 3, 1], [0, 0, 0]]):
        model.train()
        model.run(torch.tensor(path))
        model(x)
        model.eval()
        seen = by_hand(model, x, path, kind)
        torch.testing.assert_close(model.features(x), seen)
        scores = [F.linear(seen, h.weights[0][: h.columns], h.biases[0][: h.columns]) for h in model.head]
        torch.testing.assert_close(model(x), torch.cat(scores, 1))
        assert model(x).shape == (16, 5)


def test_a_recipe_makes_the_network_again_and_a_seed_draws_every_module() -> None:
    model = Modular(models.mlp(6, (8,), norm=True).recipe, modules=3, active=2)
    again = models.build(model.recipe)
    assert models.untouched(model) and again.recipe == model.recipe
    before = copy.deepcopy(model.state_dict())
    model.renew(5)
    linear = [name for name in before if ".0.weight" in name or ".0.bias" in name]
    assert len(linear) == 6 and all(not torch.equal(before[name], model.state_dict()[name]) for name in linear)
    again.renew(5)
    assert differences(dict(again.state_dict()), dict(model.state_dict())) == []


# ---- the evolution ----


def chi_square(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected) ** 2 / expected).sum())


def test_a_mutation_moves_each_entry_with_its_chance_by_up_to_two_either_way_around_the_ring() -> None:
    method, draws = PathNet(modules=7, active=2, mutation=0.3), torch.Generator().manual_seed(1)
    path = torch.arange(7).repeat(6000).view(-1, 2)
    moved = (method.mutated(path, draws) - path + 2) % 7
    share = torch.tensor([0.06, 0.06, 0.7 + 0.06, 0.06, 0.06])
    found = torch.bincount(moved.flatten(), minlength=7).double()
    assert found[5:].tolist() == [0, 0]  # -2 .. 2, and nothing else
    assert chi_square(found[:5], share * path.numel()) < 18.5  # 4 degrees of freedom: 0.1 %
    for value in range(7):  # whichever module stood there
        own = torch.bincount(moved[path == value], minlength=5).double()
        assert chi_square(own, share * 6000) < 25


def test_by_default_one_entry_of_a_path_is_drawn_to_move() -> None:
    method, draws = PathNet(modules=10, active=3), torch.Generator().manual_seed(2)
    path = torch.full((4, 3), 5)
    drawn = torch.stack([method.mutated(path, draws) != path for _ in range(6000)]).double()
    chance = 1 / 12 * 4 / 5  # one of the five moves is none
    error = (chance * (1 - chance) / 6000) ** 0.5
    assert (drawn.mean(0) - chance).abs().max() < 4 * error
    none = float((drawn.sum((1, 2)) == 0).double().mean())  # entries move independently
    assert abs(none - (1 - chance) ** 12) < 4 * (0.25 / 6000) ** 0.5


@pytest.mark.parametrize(("fitness", "winner", "loser"), [((0.7, 0.6), 4, 1), ((0.6, 0.7), 1, 4), ((0.5, 0.5), 4, 1)])
def test_the_loser_becomes_a_mutant_of_the_winner(fitness: tuple[float, float], winner: int, loser: int) -> None:
    method = pathnet(mutation=1.0)
    found = learner(method)
    draws = torch.Generator().manual_seed(3)
    before = torch.randint(5, (6, 2, 2), generator=draws)
    method.genotypes, method.pair = before.clone(), [4, 1]
    method.mutated = lambda path, draws: (path + 1) % 5
    method.compete(found, *fitness)
    after = before.clone()
    after[loser] = (before[winner] + 1) % 5
    assert torch.equal(method.genotypes, after)
    assert torch.equal(found.model.path, before[winner])


def test_two_random_paths_are_trained_in_turn_and_graded_on_the_rows_of_their_own_steps() -> None:
    spy, method = Spy(), pathnet(trial=3, settle=0.3, population=20)
    found, compete, seen = learner(spy + method, steps=40), method.compete, []

    def watched(host: Host, first: float, second: float) -> None:
        seen.append({"step": host.clock.step - host.clock.begun_at, "fitness": (first, second), "pair": method.pair,
                     "before": method.genotypes.clone()})  # fmt: skip
        compete(host, first, second)
        seen[-1]["after"] = method.genotypes.clone()

    method.compete = watched
    for task in small_stream(rows=60)[:2]:
        seen.clear()
        spy.steps.clear()
        found.learn(task)
        assert [one["step"] for one in seen] == [5, 11, 17, 23]  # 0.7 of 40 steps hold 4 tournaments of 2 x 3
        for one in seen:
            for contestant in (0, 1):
                begun = one["step"] - 5 + 3 * contestant
                steps = spy.steps[begun : begun + 3]
                right = torch.cat([step["right"] for step in steps]).double()
                assert one["fitness"][contestant] == pytest.approx(float(right.mean()))
                genotype = one["before"][one["pair"][contestant]]
                assert all(torch.equal(step["path"], genotype) for step in steps)
            assert one["pair"][0] != one["pair"][1]
            others = [i for i in range(20) if i not in one["pair"]]
            assert torch.equal(one["before"][others], one["after"][others])
        last = seen[-1]
        winner = last["pair"][0 if last["fitness"][0] >= last["fitness"][1] else 1]
        assert all(torch.equal(step["path"], last["after"][winner]) for step in spy.steps[24:])
        assert method.paths[task.name] == last["after"][winner].tolist()
        assert len({tuple(sorted(one["pair"])) for one in seen}) > 1


def test_where_there_are_no_steps_for_a_tournament_a_random_path_is_trained() -> None:
    seen = []
    for seed in range(3):
        spy, method = Spy(), pathnet(settle=1.0)
        found = learner(spy + method, seed=seed)
        found.learn(small_stream(rows=40)[0])
        assert all(torch.equal(step["path"], method.genotypes[0]) for step in spy.steps)
        seen.append(method.paths["task 0"])
    assert seen[0] != seen[1] != seen[2]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        (
            {"trial": 8},
            r"'task \d' has 15 steps for evolution, .* takes 2 x 8: none .*; set trial to 7 at most, or take",
        ),
        ({"trial": 7}, None),  # as the sentence says
        ({"settle": 0.95}, r"has 1 steps for evolution, .*; set settle lower, or take more steps"),
        ({"settle": 1.0}, None),  # nobody wants any
    ],
)
def test_that_no_tournament_fits_is_said_once_a_task(setting: dict[str, Any], sentence: str | None) -> None:
    found = learner(pathnet(**setting), steps=20)
    for task in small_stream(rows=40)[:2]:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found.learn(task)
        said = [one for one in said if one.category is RuntimeWarning]
        assert len(said) == (sentence is not None)
        assert sentence is None or re.search(sentence, str(said[0].message))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_only_what_runs_is_trained(optimizer: str) -> None:
    spy = Spy()
    found = learner(spy + pathnet(), norm=True, optimizer=OPTIMIZERS[optimizer])
    for number, task in enumerate(small_stream(rows=60)):
        spy.steps.clear()
        found.learn(task)
        frozen = set().union(*(on(path) for path in found.model.paths[:number]))
        trained = set()
        for before, after in pairwise(spy.steps):
            old, new = before["weights"], after["weights"]
            moved = {name for name in new if name != "path" and not torch.equal(old[name], new[name])}
            assert {name for name in moved if not place(name)} == {
                f"head.{number}.weights.0",
                f"head.{number}.biases.0",
            }
            assert {place(name) for name in moved} - {None} == on(after["path"]) - frozen
            trained |= on(after["path"]) - frozen
        assert number or len(trained) > 4  # more than one path ran


def on(path: Tensor) -> set[tuple[int, int]]:
    return {(layer, m) for layer, row in enumerate(path.tolist()) for m in row}


def place(name: str) -> tuple[int, int] | None:
    kind, *rest = name.split(".")
    return (int(rest[0]), int(rest[1])) if kind == "layers" else None


# ---- what is frozen ----


class Look(Callback):
    """Asks for a task's probabilities after every step."""

    def __init__(self, task: Task) -> None:
        self.task, self.x, self.seen = task, task.test.read(torch.arange(len(task.test))), []

    def after_step(self, learner: Learner) -> None:
        self.seen.append(learner.predict_proba(self.x, task=self.task.name))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["mlp", "convnet"])
def test_the_answers_for_a_task_are_the_same_bits_for_ever(kind: str, optimizer: str, tmp_path: Any) -> None:
    stream = [image_task(number) for number in range(4)]
    base = models.mlp(64, (12, 12), norm=True, dropout=0.1) if kind == "mlp" else models.convnet((1, 8, 8), (8, 8))
    found = Learner(base, pathnet(modules=3), scenario="task", steps=16, batch_size=8, optimizer=OPTIMIZERS[optimizer])
    found.learn(stream[0])
    look = Look(stream[0])
    look.after_step(found)
    frozen = {
        name: p.clone() for name, p in found.model.state_dict().items() if place(name) in on(found.model.paths[0])
    }
    assert any("running_mean" in name for name in frozen)
    for task in stream[1:]:
        found.callbacks.append(look)
        found.learn(task)
        found.save(tmp_path / "state")
        found = Learner.load(tmp_path / "state")
        look.after_step(found)
    assert len(look.seen) == 1 + 3 * 17
    assert all(torch.equal(look.seen[0], other) for other in look.seen)
    assert differences(frozen, {name: found.model.state_dict()[name] for name in frozen}) == []
    assert any(on(found.model.paths[0]) & on(later) for later in found.model.paths[1:])  # and they were run again


def image_task(number: int) -> Task:
    draws = torch.Generator().manual_seed(number)
    y = torch.arange(48) % 2
    x = torch.randn(48, 1, 8, 8, generator=draws) + 2 * y[:, None, None, None] * torch.randn(1, 8, 8, generator=draws)
    return Task(Rows(x, y), Rows(x[:20], y[:20]), name=f"images {number}")


def test_before_a_task_everything_that_is_not_frozen_is_drawn_anew_and_has_no_moments() -> None:
    seen = []

    class Begun(Callback):
        def before_task(self, learner: Learner, task: Task) -> None:
            seen.append((copy.deepcopy(learner.model.state_dict()), len(learner.optimizer.state)))

    found = learner(pathnet(), norm=True, callbacks=[Begun()])
    first, second, _ = small_stream(rows=60)
    found.learn(first)
    learnt = copy.deepcopy(found.model.state_dict())
    assert len(found.optimizer.state) > 0
    found.learn(second)
    fresh, moments = seen[1]
    assert moments == 0
    kept = on(found.model.paths[0])
    for name, tensor in learnt.items():
        if place(name) in kept:
            assert torch.equal(tensor, fresh[name])
        elif place(name) is not None and name.endswith((".0.weight", ".0.bias")):
            assert not torch.equal(tensor, fresh[name]) and not torch.equal(seen[0][0][name], fresh[name])
        elif place(name) is not None and name.endswith("running_mean"):
            assert not fresh[name].any()


def test_a_row_is_counted_as_on_a_path_on_which_no_module_stands_twice() -> None:
    costs = []

    class Watch(Callback):
        def after_step(self, learner: Learner) -> None:
            costs.append(learner.clock.row_cost)

    found = learner(pathnet(modules=2), callbacks=[Watch()])
    for task in small_stream(rows=40)[:2]:
        found.learn(task)
    assert any(len(set(row)) < 2 for row in found.method.paths["task 0"])
    modules = 2 * (12 * 4) + 2 * (4 * 4)
    assert costs == [modules + 4 * 2] * 20 + [modules + 4 * 4] * 20


def test_a_failure_after_the_path_was_frozen_thaws_it() -> None:
    class Fails(Callback):
        def after_task(self, learner: Learner, task: Task) -> None:
            raise RuntimeError("no disk")

    first, second, _ = small_stream(rows=60)
    found, unbroken = learner(pathnet(), norm=True), learner(pathnet(), norm=True)
    for either in (found, unbroken):
        either.learn(first)
    unbroken.learn(second)
    for _ in range(2):
        found.callbacks = [Fails()]
        with pytest.raises(RuntimeError, match="no disk"):
            found.learn(second)
        assert len(found.model.paths) == 1 and list(found.method.paths) == ["task 0"]
        frozen = {name for name, p in found.model.named_parameters() if not p.requires_grad}
        assert {place(name) for name in frozen if name.startswith("layers")} == on(found.model.paths[0])
        assert {name for name in frozen if name.startswith("head")} == {"head.0.weights.0", "head.0.biases.0"}
    found.callbacks = []
    found.learn(second)
    assert differences(snapshot(unbroken), snapshot(found)) == []


# ---- stopped and resumed ----


@dataclass(eq=False)
class Cutter(Callback):
    step: int
    path: Any

    def after_step(self, learner: Learner) -> None:
        if learner.clock.step - learner.clock.begun_at == self.step:
            learner.save(self.path)
            raise InterruptedError


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_cut_at_any_step_of_a_trial_it_goes_on_as_if_never_cut(optimizer: str, tmp_path: Any) -> None:
    first, second, third = small_stream(rows=40)
    settings = {"steps": 12, "optimizer": OPTIMIZERS[optimizer], "norm": True, "dropout": 0.1}
    unbroken = learner(pathnet(), **settings)
    unbroken.learn(first)
    unbroken.save(tmp_path / "first")
    unbroken.learn(second)
    after_second = snapshot(unbroken)
    unbroken.learn(third)
    for step in range(1, 12, 1 if optimizer == "adam" else 3):
        found = Learner.load(tmp_path / "first", callbacks=[Cutter(step, tmp_path / "cut")])
        with pytest.raises(InterruptedError):
            found.learn(second)
        loaded = Learner.load(tmp_path / "cut")
        assert torch.equal(loaded.model.path, torch.tensor(loaded.model._path))
        loaded.learn(second)
        assert differences(after_second, snapshot(loaded)) == []
    loaded.learn(third)
    assert differences(snapshot(unbroken), snapshot(loaded)) == []


def test_early_stopping_brings_back_the_path_with_the_weights() -> None:
    found = learner(pathnet(trial=1), steps=None, epochs=6, validation=0.3, patience=2)
    best = []

    class Watch(Callback):
        def after_epoch(self, learner: Learner) -> None:
            if learner.stopper.waited == 0:
                best[:] = [learner.model.path.tolist(), copy.deepcopy(learner.model.state_dict())]

    found.callbacks.append(Watch())
    for task in small_stream(rows=60):
        found.learn(task)
        assert found.method.paths[task.name] == best[0]
        assert all(torch.equal(found.model.state_dict()[name], best[1][name]) for name in best[1] if name != "paths")


# ---- what is asked of it ----


def test_modules_in_common_are_told_a_layer_for_any_two_tasks() -> None:
    method = pathnet()
    method.paths = {"a": [[0, 1], [2, 2]], "b": [[1, 0], [3, 2]], "c": [[4, 4], [3, 0]]}
    assert method.shared() == {
        "a": {"a": [2, 1], "b": [2, 1], "c": [0, 0]},
        "b": {"a": [2, 1], "b": [2, 2], "c": [0, 1]},
        "c": {"a": [0, 0], "b": [0, 1], "c": [1, 2]},
    }


def test_tasks_opened_ahead_and_learnt_in_another_order_have_their_own_heads_and_paths() -> None:
    stream = small_stream(rows=60)
    found = learner(pathnet(), steps=60, optimizer=OPTIMIZERS["adam"])
    found.open_ahead(stream)
    for number in (2, 0, 1):
        found.learn(stream[number])
        assert found.model.paths[number].tolist() == found.method.paths[stream[number].name]
    assert min(found.evaluate(stream)) > 0.9
    assert list(found.method.paths) == ["task 2", "task 0", "task 1"]


def given_up(task: Task, path: Any) -> Learner:
    """A learner that has begun a task, and another one before."""
    found = learner(pathnet(), steps=60, optimizer=OPTIMIZERS["adam"])
    found.learn(small_stream(rows=60)[0])
    found.callbacks = [Cutter(5, path)]
    with pytest.raises(InterruptedError):
        found.learn(task)
    found = Learner.load(path)
    assert found.clock.begun
    found.abandon()
    return found


def test_a_task_that_was_given_up_may_be_learnt_later_and_tasks_can_be_inferred(tmp_path: Any) -> None:
    first, second, third = small_stream(rows=60)
    found = given_up(second, tmp_path / "state")
    for task in (third, second):
        found.learn(task)
    assert min(found.evaluate([first, second, third])) > 0.9
    assert min(found.evaluate([first, second, third], infer="nearest-mean")) > 0.5


def test_labels_that_come_later_and_heads_that_tasks_share_are_refused(tmp_path: Any) -> None:
    _, second, third = small_stream(rows=60)
    found = given_up(second, tmp_path / "state")
    rows = Rows(torch.cat([second.train.read(torch.arange(60)), torch.zeros(20, 12)]), [2, 3] * 30 + [7] * 20)
    before = snapshot(found)
    with pytest.raises(ValueError, match="bring a task's labels at once"):
        found.learn(Task(rows, name=second.name))
    assert differences(before, snapshot(found)) == []
    found.learn(third)
    with pytest.raises(ValueError, match='pathnet works with heads="separate", not "shared"'):
        learner(pathnet(), heads="shared")


def test_a_task_that_comes_back_is_refused() -> None:
    first, second, _ = small_stream(rows=24)
    found = learner(pathnet())
    found.learn(first)
    found.learn(second)
    before = snapshot(found)
    with pytest.raises(ValueError, match="'task 0' comes back, but its path is frozen"):
        found.learn(first)
    assert differences(before, snapshot(found)) == []


def test_nothing_is_consolidated_without_training() -> None:
    first, _, _ = small_stream(rows=24)
    found = learner(pathnet())
    found.open_ahead([first])
    before = snapshot(found)
    with pytest.raises(ValueError, match="there is nothing to consolidate"):
        found.consolidate(first.train, name=first.name)
    assert differences(before, snapshot(found)) == []


@pytest.mark.parametrize(
    ("model", "error"),
    [
        (lambda: models.resnet18((1, 8, 8), 2), "this resnet18 is something else"),
        (lambda: models.adapt(nn.Sequential(nn.Linear(3, 2)), head="0"), "this Adapted is something else"),
        (lambda: trained(models.mlp(12, (8,))), "not yet trained"),
        (lambda: models.mlp(12, ()), "no hidden layer"),
        (lambda: Modular(models.mlp(12, (8,)).recipe, 4, 2, 4), "make them agree"),
    ],
)
def test_it_makes_its_modules_from_a_new_mlp_or_convnet_only(model: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        Learner(model(), pathnet(), scenario="task")


def trained(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(model.parameters()).add_(1)
    return model


def test_an_optimizer_of_the_network_that_it_replaces_is_refused_with_what_to_pass() -> None:
    model = models.mlp(12, (8,))
    with pytest.raises(ValueError, match="the method makes a network of its own out of the model"):
        Learner(model, pathnet(), scenario="task", optimizer=torch.optim.SGD(model.parameters()))


def test_a_modular_network_that_agrees_is_learnt_with_as_it_is() -> None:
    own = Modular(models.mlp(12, (8,)).recipe, 5, 2, 4)
    assert Learner(own, pathnet(), scenario="task").model is own


@pytest.mark.parametrize(
    "setting",
    [{"active": 0}, {"active": 6}, {"width": 0}, {"population": 1}, {"trial": 0}, {"mutation": 1.5}, {"settle": -0.1}],
)
def test_settings_that_mean_nothing_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is"):
        pathnet(**setting)


@pytest.mark.parametrize("ahead", [True, False])
def test_a_method_that_puts_weights_back_leaves_paths_and_what_they_run(ahead: bool) -> None:
    stream = small_stream(rows=60)
    found = learner(pathnet() + methods.GDumb(90), norm=True, steps=120, optimizer=OPTIMIZERS["adam"])
    if ahead:
        found.open_ahead(stream)
    for number, task in enumerate(stream):
        found.learn(task)
        assert found.model.paths[: number + 1].tolist() == list(found.method.parts[0].paths.values())
    assert min(found.evaluate(stream)) > 0.9


def test_a_base_that_makes_no_modules_is_refused() -> None:
    with pytest.raises(ValueError, match="found 'resnet18'"):
        Modular({"name": "resnet18"})


OTHERS = [methods.EWC(rows=16), methods.LwF(), methods.MAS(rows=16, pull="proximal"), methods.GDumb(40)]


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("first", [True, False])
def test_in_a_composition_what_is_frozen_stays(other: Method, first: bool) -> None:
    other = methods.build(other.settings())
    stream = small_stream(rows=40)
    found = learner(pathnet() + other if first else other + pathnet(), norm=True)
    found.learn(stream[0])
    look = Look(stream[0])
    look.after_step(found)
    for task in stream[1:]:
        found.callbacks = [look]
        found.learn(task)
    assert all(torch.equal(look.seen[0], other) for other in look.seen)
