"""Progressive networks: columns against plain matrix products, what is frozen stays so, and what they cost."""

import copy
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import small_stream
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from trees import bits, differences, snapshot

from perdure import Callback, Learner, Rows, Task, methods, models
from perdure.data import Batch
from perdure.models import Columns

OPTIMIZERS = {
    "adam": {"name": "adam", "lr": 0.01},
    "momentum": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.1},
    "adamw": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
}


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mlp(hidden: tuple[int, ...] = (8, 6), **settings: Any) -> Any:
    return models.mlp(12, hidden, **settings)


def convnet(norm: bool = True) -> Any:
    return models.convnet((1, 4, 6), (4, 6), norm=norm)


def grown(network: Columns, tasks: int, classes: int = 2) -> Columns:
    """With every parameter and statistic moved away from where it began."""
    for task in range(tasks):
        network.grow((task + 1) * classes, draws(task))
    with torch.no_grad():
        for i, tensor in enumerate(network.state_dict().values()):
            if tensor.is_floating_point():
                tensor.add_(0.5 * torch.rand(tensor.shape, generator=draws(i)))
    return network.eval()


def learner(method: Any = None, model: Any = None, **settings: Any) -> Learner:
    defaults = {"scenario": "task", "optimizer": OPTIMIZERS["adam"], "epochs": 2, "batch_size": 8, "seed": 3}
    return Learner(
        model or mlp(norm=True, dropout=0.2),
        method or methods.Progressive(width=0.5, most=3),
        **{**defaults, **settings},
    )


def image_stream(tasks: int) -> list[Task]:
    """The rows of small_stream as images of 2 x 6, once above and once below."""

    def images(rows: Rows) -> Rows:
        x = rows.read(torch.arange(len(rows))).view(-1, 1, 2, 6)
        return Rows(torch.cat([x, -x], 2), rows.positions(rows.classes), classes=None)

    flat = small_stream(tasks=tasks, rows=32)
    return [Task(images(task.train), images(task.test), name=task.name) for task in flat]


# ---- against plain matrix products ----


def flat_by_hand(network: Columns, x: Tensor, widths: list[tuple[int, int]]) -> Tensor:
    """Two hidden layers of widths[k] in column k: each product written out, for each earlier column on its own."""
    state, scores = network.state_dict(), []
    hidden: list[list[Tensor]] = []

    def laterals(prefix: str, level: int) -> Tensor:
        total, start = state[f"{prefix}.project.bias"], 0
        for j, alpha in enumerate(state[f"{prefix}.alpha"]):
            v = state[f"{prefix}.project.weight"][:, start : start + widths[j][level]]
            total = total + (alpha * hidden[j][level]) @ v.T
            start += widths[j][level]
        return total.clamp(min=0)

    for k, own in enumerate(widths):
        column = f"columns.{k}"
        one = (x @ state[f"{column}.blocks.0.0.weight"].T + state[f"{column}.blocks.0.0.bias"]).clamp(min=0)
        w, u = state[f"{column}.blocks.1.0.weight"].tensor_split([own[0]], dim=1)
        two = one @ w.T + state[f"{column}.blocks.1.0.bias"]
        if k:
            two = two + laterals(f"{column}.adapters.0", 0) @ u.T
        two = two.clamp(min=0)
        opened = network.tops[k].head.columns
        w, u = state[f"tops.{k}.head.weights.0"][:opened].tensor_split([own[1]], dim=1)
        top = two @ w.T + state[f"tops.{k}.head.biases.0"][:opened]
        if k:
            top = top + laterals(f"tops.{k}.adapter", 1) @ u.T
        hidden.append([one, two])
        scores.append(top)
    return torch.cat(scores, 1)


@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_linear_columns_are_the_papers_formula(tasks: int) -> None:
    network = grown(models.columns(mlp().recipe, width=0.5, projection=0.7).double(), tasks, classes=3)
    x = torch.randn(5, 12, generator=draws(9), dtype=torch.float64)
    expected = flat_by_hand(network, x, [(8, 6), (4, 3), (4, 3)][:tasks])
    assert expected.shape == (5, 3 * tasks) and expected.std() > 0.1
    torch.testing.assert_close(network(x), expected)
    if tasks > 1:  # V projects onto 0.7 of the column's width
        assert network.columns[1].adapters[0].project.weight.shape == (3, 8)
        assert network.tops[1].adapter.project.weight.shape == (2, 6)


def maps_by_hand(network: Columns, x: Tensor, widths: list[tuple[int, int]], norm: bool) -> Tensor:
    state, scores = network.state_dict(), []
    maps: list[list[Tensor]] = []

    def laterals(prefix: str, level: int) -> Tensor:
        total, start = state[f"{prefix}.project.bias"][:, None, None], 0
        for j, alpha in enumerate(state[f"{prefix}.alpha"]):
            v = state[f"{prefix}.project.weight"][:, start : start + widths[j][level], 0, 0]
            total = total + torch.einsum("oc,nchw->nohw", v, alpha * maps[j][level])
            start += widths[j][level]
        return total.clamp(min=0)

    def after(z: Tensor, prefix: str) -> Tensor:
        if norm:
            mean, var, scale, shift = (
                state[f"{prefix}.1.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
            )
            z = (z - mean) / (var + 1e-5).sqrt() * scale + shift
        else:
            z = z + state[f"{prefix}.0.bias"][:, None, None]
        return F.max_pool2d(z.clamp(min=0), 2)

    for k, own in enumerate(widths):
        column = f"columns.{k}"
        one = after(F.conv2d(x, state[f"{column}.blocks.0.0.weight"], padding=1), f"{column}.blocks.0")
        w, u = state[f"{column}.blocks.1.0.weight"].tensor_split([own[0]], dim=1)
        two = F.conv2d(one, w, padding=1)
        if k:
            two = two + F.conv2d(laterals(f"{column}.adapters.0", 0), u, padding=1)
        two = after(two, f"{column}.blocks.1")
        opened = network.tops[k].head.columns
        w, u = state[f"tops.{k}.head.weights.0"][:opened].tensor_split([two[0].numel()], dim=1)
        top = two.flatten(1) @ w.T + state[f"tops.{k}.head.biases.0"][:opened]
        if k:
            top = top + laterals(f"tops.{k}.adapter", 1).flatten(1) @ u.T
        maps.append([one, two])
        scores.append(top)
    return torch.cat(scores, 1)


@pytest.mark.parametrize("tasks", [1, 2, 3])
@pytest.mark.parametrize("norm", [True, False])
def test_convolutional_columns_are_the_papers_formula_with_1x1_projections(norm: bool, tasks: int) -> None:
    base = models.convnet((2, 9, 12), (4, 6), norm=norm).recipe  # 2 x 3 pixels are left for the head
    network = grown(models.columns(base, width=0.5).double(), tasks)
    x = torch.randn(3, 2, 9, 12, generator=draws(9), dtype=torch.float64)
    expected = maps_by_hand(network, x, [(4, 6), (2, 3), (2, 3)][:tasks], norm)
    assert expected.shape == (3, 2 * tasks) and expected.std() > 0.1
    torch.testing.assert_close(network(x), expected)


def test_a_capped_task_has_a_top_like_that_of_the_last_column_on_its_features() -> None:
    network = grown(models.columns(mlp().recipe, most=2).double(), 4)
    x = torch.randn(5, 12, generator=draws(9), dtype=torch.float64)
    assert (len(network.columns), len(network.tops)) == (2, 4)
    as_column = copy.deepcopy(network)
    as_column.tops[1] = network.tops[3]
    assert torch.equal(network(x)[:, 6:], as_column(x)[:, 2:4])
    assert not torch.equal(network(x)[:, 6:], network(x)[:, 2:4])
    alone = grown(models.columns(mlp().recipe, most=1), 3)
    assert [top.adapter for top in alone.tops] == [None] * 3  # a plain head on the features of the only column
    linear = grown(models.columns(mlp(()).recipe), 3)
    assert [len(column.adapters) for column in linear.columns] == [0] * 3 and linear(torch.zeros(2, 12)).shape == (2, 6)


def test_an_adapter_begins_with_a_small_number_of_its_own_for_every_earlier_column() -> None:
    network = models.columns(mlp().recipe)
    for task in range(4):
        network.grow(2 * task + 2, draws(task))
    adapters = [module for module in network.modules() if type(module).__name__ == "Adapter"]
    assert [len(adapter.alpha) for adapter in adapters] == [1, 2, 3, 1, 2, 3]
    alphas = torch.cat([adapter.alpha.detach() for adapter in adapters])
    assert len(alphas.unique()) == 12 and alphas.abs().max() <= 0.1 and alphas.std() > 0.02


# ---- the first column, and growth ----


@pytest.mark.parametrize("make", [lambda: mlp(norm=True, dropout=0.2), convnet], ids=["mlp", "convnet"])
def test_the_first_task_is_plain_descent_bit_for_bit(make: Callable[[], Any]) -> None:
    task = (image_stream(1) if make is convnet else small_stream(1))[0]
    states = []
    for method in (methods.Progressive(), methods.Finetune()):
        found = learner(method, make())
        found.learn(task)
        states.append(list(found.model.state_dict().values()))
    assert len(states[0]) == len(states[1])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_each_growth_opens_a_column_for_the_new_scores_alone() -> None:
    network = models.columns(mlp().recipe)
    assert network(torch.zeros(3, 12)).shape == (3, 0) and not network.grown
    assert all(p.requires_grad for p in network.parameters())
    for columns in (2, 19, 19, 22):  # over the edge of a head's block, and none new
        network.grow(columns, draws())
        assert network(torch.zeros(3, 12)).shape == (3, columns)
    assert [top.head.columns for top in network.tops] == [2, 17, 3]
    assert len(network.columns) == 3 and network.grown
    with pytest.raises(ValueError, match="has 22 columns of scores and can't shrink to 21"):
        network.grow(21, draws())


def test_growth_draws_from_its_generator_alone() -> None:
    networks = []
    for seed, growth in ((1, 5), (2, 5), (1, 6)):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        network = models.columns(mlp().recipe)
        network.grow(2, draws(growth))
        network.grow(4, draws(growth))
        assert torch.equal(state, torch.get_rng_state())
        networks.append(network.state_dict())
    assert differences(networks[0], networks[1]) == []
    changed = {path[1:] for path in differences(networks[0], networks[2])}
    assert {name for name in networks[0] if name.startswith(("columns.1", "tops"))} == changed
    again = models.columns(mlp().recipe).double().eval()
    again.grow(2, draws(5))
    again.grow(4, draws(5))
    assert {tensor.dtype for tensor in again.state_dict().values()} == {torch.float64}
    assert not any(module.training for module in again.modules())
    torch.testing.assert_close(again.state_dict(), networks[0], check_dtype=False)


def layer_of(plain: Any, name: str) -> Tensor:
    """A block of a convnet with batch norm is four layers of its body."""
    block, layer, tensor = name.split(".")
    found: Tensor = plain.body.state_dict()[f"{4 * int(block) + int(layer)}.{tensor}"]
    return found


def test_a_network_of_columns_is_built_drawn_and_loaded_like_any_other() -> None:
    network = models.columns(convnet().recipe, width=0.5, most=3, projection=0.25)
    recipe = json.loads(json.dumps(network.recipe))
    again = models.build(recipe)
    assert again.recipe == recipe and str(again) == str(network) and models.untouched(again)
    assert recipe["settings"] == {"base": convnet().recipe, "width": 0.5, "most": 3, "projection": 0.25}
    models.initialise(network, draws(4))
    plain = convnet()
    models.initialise(plain, draws(4))
    assert not models.untouched(network)
    for name in ("0.0.weight", "1.0.weight"):
        assert torch.equal(network.state_dict()[f"columns.0.blocks.{name}"], layer_of(plain, name))
    network, other = grown(network, 4), grown(again, 4)
    other.load_state_dict({name: 2 * tensor for name, tensor in network.state_dict().items()})
    other.load_state_dict(network.state_dict())
    x = torch.randn(2, 1, 4, 6, generator=draws())
    assert torch.equal(network(x), other(x)) and torch.equal(network(x), copy.deepcopy(network)(x))


# ---- what is frozen ----


def learnt_then_watched(found: Learner, stream: list[Task], path: Any) -> None:
    """After every task, its scores and tensors are kept; at the end, and after a load, all are there bit for bit."""
    scores: list[Tensor] = []
    kept: list[dict[str, Tensor]] = []
    x = torch.cat([task.test.read(torch.arange(8)) for task in stream])

    def asked(found: Learner, task: int) -> Tensor:
        found.model.eval()
        with torch.no_grad():
            return found.model(x)[:, 2 * task : 2 * task + 2]

    for number, task in enumerate(stream):
        found.learn(task)
        scores.append(asked(found, number))
        own = {name for part in found.model.parts(number) for name in names_of(found.model, part)}
        kept.append({name: t.clone() for name, t in found.model.state_dict().items() if name in own})
    found.save(path)
    for again in (found, Learner.load(path)):
        for number in range(len(stream)):
            assert torch.equal(bits(scores[number]), bits(asked(again, number)))
            assert all(torch.equal(bits(t), bits(again.model.state_dict()[name])) for name, t in kept[number].items())
    assert sorted(name for own in kept for name in own) == sorted(found.model.state_dict())


def names_of(network: nn.Module, part: nn.Module) -> list[str]:
    prefix = next(name for name, module in network.named_modules() if module is part)
    return [f"{prefix}.{name}" for name in part.state_dict()]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["mlp", "convnet", "capped"])
def test_what_was_said_of_a_task_stays_bit_for_bit(kind: str, optimizer: str, tmp_path: Any) -> None:
    model, method = (convnet(), methods.Progressive()) if kind == "convnet" else (mlp(norm=True, dropout=0.2), None)
    found = learner(method, model, optimizer=OPTIMIZERS[optimizer])
    stream = image_stream(3) if kind == "convnet" else small_stream(tasks=5 if kind == "capped" else 3, rows=32)
    learnt_then_watched(found, stream, tmp_path / "state")


def test_what_is_frozen_has_no_gradient_no_moments_and_is_at_rest_while_the_network_trains() -> None:
    found = learner()
    for task in small_stream(tasks=2, rows=32):
        found.learn(task)
    network = found.model.train()
    x = torch.randn(8, 12, generator=draws())
    again = network(x)
    assert all(module.training for module in network.modules())
    assert torch.equal(again[:, :2], copy.deepcopy(network).eval()(x)[:, :2])
    assert not torch.equal(again[:, 2:], network(x)[:, 2:])  # the last column drops out, and follows its batch
    again.sum().backward()
    parameters = dict(network.named_parameters())
    frozen = {name for name in parameters if name.startswith(("columns.0", "tops.0"))}
    assert {name for name, p in parameters.items() if p.grad is None and not p.requires_grad} == frozen
    assert {name for name, p in parameters.items() if p.grad is not None} == set(found.params())
    assert all((parameters[name].grad != 0).any() for name in found.params() if "blocks.1.0.bias" not in name)
    assert set(snapshot(found)["optimizer"]["moments"]) == set(found.params())
    network.grow(6, draws())
    assert all(parameters[name].grad is None for name in parameters)


def test_stored_rows_of_earlier_tasks_move_nothing_of_their_own_columns(tmp_path: Any) -> None:
    found = learner(methods.Progressive() + methods.Replay(40))
    learnt_then_watched(found, small_stream(rows=32), tmp_path / "state")
    network = found.model.train()
    network.zero_grad()
    old = found.ready(rows_of(found, 0))
    loss = found.objective.loss(network(old.x), old)
    loss.backward()
    assert loss > 0 and not any(p.grad.any() for p in found.params().values())


def rows_of(found: Learner, task: int) -> Any:
    x = torch.randn(8, 12, generator=draws())
    return Batch(x=x, y=torch.arange(8) % 2, task=torch.full((8,), task))


OTHERS = [lambda: methods.EWC(rows=8), methods.LwF, methods.SI, lambda: methods.GDumb(60)]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("other", OTHERS, ids=lambda other: other().name)
def test_they_compose_with_methods_that_watch_or_move_the_weights(other: Any, first: bool, tmp_path: Any) -> None:
    method = methods.Progressive() + other() if first else other() + methods.Progressive()
    found, stream = learner(method, epochs=12), small_stream(rows=32)
    learnt_then_watched(found, stream, tmp_path / "state")
    assert min(found.evaluate(stream)) > 0.8


def test_per_example_gradients_by_vmap_equal_the_plain_loop() -> None:
    network = grown(models.columns(mlp(norm=True).recipe), 3)
    weights = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    x, y = torch.randn(4, 12, generator=draws()), torch.tensor([4, 5, 5, 4])

    def loss(weights: dict[str, Tensor], row: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, weights, (row[None],)), label[None])

    fast = vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, y)
    for i in range(4):
        network.zero_grad()
        F.cross_entropy(network(x[i : i + 1]), y[i : i + 1]).backward()
        for name, p in network.named_parameters():
            assert (name in weights) == (p.grad is not None)
            assert name not in weights or torch.allclose(fast[name][i], p.grad, atol=1e-5), name


def test_bfloat16_autocast_gives_nearly_the_same_scores_and_learns() -> None:
    network, x = grown(models.columns(mlp().recipe), 3), torch.randn(4, 12, generator=draws())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = network(x)
    expected = network(x).detach()
    assert scores.dtype == torch.bfloat16
    assert ((scores - expected).abs() < 0.02 * expected.abs().max()).all()
    found, stream = learner(methods.Progressive(), mlp(), precision="bf16", epochs=8), small_stream(rows=32)
    for task in stream:
        found.learn(task)
    assert min(found.evaluate(stream)) > 0.9


# ---- a task that fails, is given up, or comes back ----


class Failing(Callback):
    """Raises after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def after_step(self, learner: Learner) -> None:
        if learner.clock.step == self.step:
            raise RuntimeError("pulled the plug")


def test_an_exception_inside_a_task_undoes_its_column() -> None:
    first, second, third = small_stream(rows=32)
    found, unharmed = learner(), learner()
    for either in (found, unharmed):
        either.learn(first)
    before, trained = snapshot(found), set(found.params())
    found.callbacks.append(Failing(found.clock.step + 3))
    with pytest.raises(RuntimeError, match="pulled the plug"):
        found.learn(second)
    assert differences(before, snapshot(found)) == []
    assert len(found.model.columns) == len(found.model.tops) == 1
    assert set(found.params()) == trained == {name for name, _ in found.model.named_parameters()}
    found.callbacks.clear()
    for task in (second, third):
        found.learn(task)
        unharmed.learn(task)
    assert differences(snapshot(unharmed), snapshot(found)) == []


def test_a_task_that_was_given_up_is_learnt_on_in_its_own_column() -> None:
    first, second, third = small_stream(rows=32)
    found = learner(model=mlp(), save_every=0.0, epochs=8)
    found.learn(first)
    found.callbacks.append(Failing(found.clock.step + 3))
    with pytest.raises(RuntimeError, match="pulled the plug"):
        found.learn(second)
    found.callbacks.clear()
    found.abandon()
    weights = snapshot(found)["weights"]
    found.learn(second)
    assert len(found.model.columns) == 2
    assert differences(weights, snapshot(found)["weights"]) != []
    found.learn(third)
    assert min(found.evaluate([first, second, third])) > 0.8


def test_a_task_whose_column_is_frozen_is_refused_when_it_comes_back() -> None:
    first, second, _ = small_stream(rows=32)
    found = learner()
    found.learn(first)
    found.learn(Task(first.train, name="task 0"))  # its column is still the last
    with pytest.raises(ValueError, match="'task 0' comes back, but its column is frozen"):
        found.learn(Task(second.train, name="task 0"))  # with other labels, which it has no scores for
    found.learn(second)
    before = snapshot(found)
    with pytest.raises(ValueError, match="'task 0' comes back, but its column is frozen"):
        found.learn(first)
    assert differences(before, snapshot(found)) == []
    found.learn(Task(first.train, name="again"))
    assert len(found.model.columns) == 3


def test_scores_that_tasks_would_share_or_that_are_opened_ahead_are_refused() -> None:
    for method in (methods.Progressive(), methods.Progressive() + methods.Replay(20)):
        with pytest.raises(ValueError, match=r'progressive.* works with heads="separate", not "shared"'):
            learner(method, heads="shared")
        assert not method.owned
    tasks, ahead = small_stream(rows=32), learner()
    ahead.open_ahead(tasks)
    with pytest.raises(ValueError, match=r'use heads="separate", and open no outputs ahead'):
        ahead.learn(tasks[0])


def test_an_optimizer_of_the_network_that_they_replace_is_refused_with_what_to_pass() -> None:
    model = mlp()
    for optimizer in (torch.optim.SGD(model.parameters(), lr=0.1), lambda _: torch.optim.SGD(model.parameters())):
        with pytest.raises(ValueError, match=r"makes a network of its own out of the model, .* or a function of the"):
            learner(model=model, optimizer=optimizer)
    assert learner(model=model, optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1)).optimizer is not None
    columns = models.columns(mlp().recipe, width=0.5, most=3)
    assert learner(model=columns, optimizer=torch.optim.SGD(columns.parameters())).model is columns
    with pytest.raises(ValueError, match=r"make the optimizer from model\.parameters\(\)"):
        learner(model=columns, optimizer=torch.optim.SGD(model.parameters()))


@pytest.mark.parametrize("other", [{"width": 0.25}, {"most": 1}, {"projection": 0.5}])
def test_columns_of_other_settings_are_refused(other: dict[str, Any]) -> None:
    own = {"width": 0.5, "most": 3, "projection": 1.0}
    columns = models.columns(mlp().recipe, **{**own, **other})
    with pytest.raises(ValueError, match=r"the columns have .* and progressive is set to .*: make them agree"):
        learner(methods.Progressive(**own), columns)
    assert learner(methods.Progressive(**{**own, **other}), columns).model is columns


# ---- which networks ----


def test_columns_take_the_place_of_an_mlp_or_convnet_and_of_nothing_else() -> None:
    method = methods.Progressive(width=0.5, most=4, projection=0.25)
    own = method.remodel(mlp())
    assert isinstance(own, Columns) and method.remodel(own) is own
    settings = {"base": mlp().recipe, "width": 0.5, "most": 4, "projection": 0.25}
    assert own.recipe == {"name": "columns", "settings": settings}
    trained = mlp()
    trained.body[1].bias.data.add_(1)
    known = mlp()
    known.grow(2, draws())
    resnet = models.resnet18((1, 8, 8), width=2)
    adapted = models.adapt(nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2)), head="2")
    for model, what in (
        (trained, "this mlp is trained: pass a new one"),
        (known, "this mlp is trained: pass a new one"),
        (resnet, "made like a models.mlp or a models.convnet, not like resnet18"),
        (adapted, "made like a models.mlp or a models.convnet, not like Adapted"),
    ):
        with pytest.raises(ValueError, match=what):
            learner(methods.Progressive(), model)


@pytest.mark.parametrize("setting", [{"width": 0.0}, {"most": 0}, {"projection": 0.0}, {"projection": 1.5}])
def test_settings_that_make_no_columns_are_refused(setting: dict[str, Any]) -> None:
    for make in (lambda: methods.Progressive(**setting), lambda: models.columns(mlp().recipe, **setting)):
        with pytest.raises(ValueError, match=f"^{next(iter(setting))} is"):
            make()
    with pytest.raises(ValueError, match="base is the recipe of one of mlp, convnet, found 'resnet18'"):
        models.columns({"name": "resnet18"})


# ---- the answers ----


def test_a_task_is_answered_by_its_own_column_without_the_later_ones() -> None:
    found = learner(methods.Progressive(most=2), mlp(dropout=0.2), epochs=8)
    stream = small_stream(tasks=3, rows=32)
    for task in stream:
        found.learn(task)
    asked: list[str] = []
    for name, module in found.model.named_modules():
        if name.count(".") == 1 and name.startswith(("columns", "tops")):
            module.register_forward_hook(lambda *_, name=name: asked.append(name))
    x = stream[0].test.read(torch.arange(8))
    with torch.no_grad():
        found.model.eval()
        whole = found.model(x)
        for task, needed in enumerate((["columns.0"], ["columns.0", "columns.1"], ["columns.0", "columns.1"])):
            asked.clear()
            scores = found.method.predict(found, x, task)
            own = slice(2 * task, 2 * task + 2)
            assert asked == [*needed, f"tops.{task}"]
            assert scores.shape == whole.shape and torch.equal(bits(scores[:, own]), bits(whole[:, own]))
            features = found.method.features(found, x, task)
            assert torch.equal(found.model.tops[task].head(features), whole[:, own])
    grades = found.evaluate(stream)
    assert min(grades) > 0.8
    inferred = found.evaluate(stream, infer="nearest-mean")
    assert sum(inferred) / 3 > 0.8 and all(isinstance(grade, float) for grade in inferred)


# ---- what it costs ----


@pytest.mark.parametrize("width", [1.0, 0.5])
def test_the_table_of_an_mlp_counts_what_the_formula_says(width: float) -> None:
    network = models.columns(models.mlp(10, (8, 6)).recipe, width=width, most=3, projection=0.5)
    classes, expected, frozen = 2, [], 0
    for task in range(5):
        network.grow((task + 1) * classes, draws())
    for task in range(5):
        k = min(task, 2)  # columns before its own
        a, b = (8, 6) if k == 0 else (int(8 * width), int(6 * width))
        below_a, below_b = (8 + (k - 1) * int(8 * width), 6 + (k - 1) * int(6 * width)) if k else (0, 0)
        column = (b + 1) * classes
        lateral = 0
        if k:  # into the scores: alpha, V with its bias, U
            p = round(b / 2)
            lateral += k + (below_b + 1) * p + p * classes
        if task < 3:
            column += (10 + 1) * a + (a + 1) * b
        if 0 < task < 3:
            p = round(a / 2)
            lateral += k + (below_a + 1) * p + p * b
        trained = column + lateral
        row = {"task": task, "column": column, "adapters": lateral, "trained": trained, "frozen": frozen}
        frozen += trained
        expected.append({**row, "total": frozen})
    assert network.table() == expected
    unopened = sum((top.head.capacity - classes) * (top.head.features + 1) for top in network.tops)
    assert frozen == sum(p.numel() for p in network.parameters()) - unopened


@pytest.mark.parametrize("most", [None, 1])
def test_a_step_goes_back_through_the_last_column_only(most: int | None) -> None:
    found, spent = learner(methods.Progressive(most=most), mlp((8,)), epochs=2), [0]
    for task in small_stream(tasks=3, rows=32):
        found.learn(task)
        spent.append(found.cost.multiply_adds)
    column, head = 12 * 8, 8 * 2
    live = [column + head, head, head]
    if most is None:  # V sees 8 features of each earlier column, and the head as many again
        live = [column + head, column + 8 * 8 + 2 * head, column + 2 * 8 * 8 + 2 * head]
    for number in range(3):
        whole = sum(live[: number + 1])
        # a last pass without a step notes the means of features
        assert spent[number + 1] - spent[number] == 2 * 32 * (whole + 2 * live[number]) + 32 * whole


def test_what_is_at_rest_says_what_the_network_says_of_all_tasks_but_the_last() -> None:
    for most in (None, 1, 2):
        network, x = grown(models.columns(mlp().recipe, most=most), 4), torch.randn(5, 12, generator=draws())
        assert torch.equal(network.at_rest(x), network(x)[:, :6]) and not network.at_rest(x).requires_grad
    assert grown(models.columns(mlp().recipe), 1).at_rest(x).shape == (5, 0)


def test_the_table_of_a_convnet_counts_what_the_formula_says() -> None:
    network = models.columns(models.convnet((3, 8, 8), (4, 6)).recipe, width=0.5)
    for columns in (2, 5):
        network.grow(columns, draws())
    first = 3 * 4 * 9 + 2 * 4 + 4 * 6 * 9 + 2 * 6 + (6 * 4 + 1) * 2
    column = 3 * 2 * 9 + 2 * 2 + 2 * 3 * 9 + 2 * 3 + (3 * 4 + 1) * 3
    adapters = 1 + (4 + 1) * 2 + 2 * 3 * 9 + 1 + (6 + 1) * 3 + 3 * 4 * 3
    assert network.table() == [
        {"task": 0, "column": first, "adapters": 0, "trained": first, "frozen": 0, "total": first},
        {
            "task": 1, "column": column, "adapters": adapters, "trained": column + adapters,
            "frozen": first, "total": first + column + adapters,
        },
    ]  # fmt: skip


def test_columns_grow_with_the_square_of_the_tasks_and_width_and_the_cap_hold_them() -> None:
    def trained(**settings: Any) -> list[int]:
        network = models.columns(models.mlp(20, (40, 40)).recipe, **settings)
        for task in range(6):
            network.grow(2 * task + 2, draws())
        return [row["trained"] for row in network.table()]

    full, narrow, capped = trained(), trained(width=0.5), trained(most=3)
    steps = [b - a for a, b in pairwise(full[1:])]
    assert len(set(steps)) == 1 and steps[0] > full[0]  # each column has as much more to see as the one before
    assert narrow[5] < full[5] / 3 and len(set(capped[3:])) == 1 and capped[3] < full[3] / 2
