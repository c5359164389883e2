"""SI and A-GEM against their papers' loops written out; who looks first in a composition; what a Keeper keeps."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from conftest import small_stream
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from perdure import Callback, Learner, Rows, Task, methods, models
from perdure.data import Batch, Columns
from perdure.method import Host, Method
from perdure.methods.agem import project_out
from perdure.methods.rehearsal import Keeper
from perdure.models import aside

Weights = dict[str, Tensor]


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(columns: int = 3) -> nn.Sequential:
    """In float64, with numbers of its own."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, columns)).double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.randn(p.shape, generator=draws(i), dtype=p.dtype))
    return model


def batches(task: int, count: int = 6, rows: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = draws(100 + task)
    x = torch.randn(count, rows, 4, generator=generator, dtype=torch.float64)
    return [(part + task, (part[:, task % 4] > 0).long() + (part[:, 3] > 0.5)) for part in x]


class no_wait(TorchDispatchMode):
    """Raises where a number is read off the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "the device was waited for"
        return func(*args, **(kwargs or {}))


def test_a_number_read_off_the_device_is_noticed() -> None:
    with no_wait(), pytest.raises(AssertionError, match="waited for"):
        float(torch.ones(()))


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.05),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1),
}


def step(host: Any, raw: tuple[Tensor, Tensor], clip: float | None = None) -> tuple[Tensor, Tensor]:
    """One in a loop of one's own; gives the rows that the model saw."""
    x, y = host.replay(*raw)
    outputs = host.model(x)
    host.optimizer.zero_grad()
    (F.cross_entropy(outputs, y) + host.penalty(outputs)).backward()
    with no_wait():
        host.project()
    if clip is not None:
        nn.utils.clip_grad_norm_(host.model.parameters(), clip)
    host.optimizer.step()
    host.after_step(outputs)
    return x, y


def learnt(host: Any, task: int, clip: float | None = None, consolidate: bool = True) -> None:
    """A task in a loop of one's own."""
    host.begin()
    for raw in batches(task):
        step(host, raw, clip)
    if consolidate:
        host.consolidate(batches(task))


def copied(model: nn.Module) -> Weights:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# ---- SI: the paper's path, step by step ----


@dataclass
class Book:
    """SI as the paper has it: every gradient and every weight noted, summed up afterwards."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    strength: float
    xi: float
    normalise: bool
    clip: float | None = None
    tasks: list[Weights] = field(default_factory=list)
    centre: Weights = field(default_factory=dict)
    omega: Weights = field(default_factory=dict)

    def importance(self) -> Weights:
        total = {name: sum(task[name] for task in self.tasks) for name in self.tasks[0]}
        return {name: value / len(self.tasks) if self.normalise else value for name, value in total.items()}

    def learn(self, task: int) -> None:
        path, theta = [], [copied(self.model)]
        for x, y in batches(task):
            params = dict(self.model.named_parameters())
            loss = F.cross_entropy(self.model(x), y)
            path.append(dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True)))
            penalty = torch.zeros((), dtype=torch.float64)
            if self.tasks:
                importance = self.importance()
                squares = [(importance[name] * (p - self.centre[name]) ** 2).sum() for name, p in params.items()]
                penalty = self.strength / 2 * torch.stack(squares).sum()
            self.optimizer.zero_grad()
            (F.cross_entropy(self.model(x), y) + penalty).backward()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            self.optimizer.step()
            theta.append(copied(self.model))
        found = {}
        for name in theta[0]:
            steps = range(len(path))
            self.omega[name] = sum(-path[t][name] * (theta[t + 1][name] - theta[t][name]) for t in steps)
            delta = theta[-1][name] - theta[0][name]
            found[name] = self.omega[name].clamp(min=0) / (delta**2 + self.xi)
        if self.normalise:
            mean = torch.cat([value.flatten() for value in found.values()]).mean()
            found = {name: value / mean for name, value in found.items()}
        self.tasks.append(found)
        self.centre = theta[-1]


def close(found: Weights, expected: Weights, rtol: float = 1e-9) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=rtol, atol=rtol * float(expected[name].abs().max()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("normalise", "strength", "clip"), [(True, 0.3, None), (False, 3.0, 0.5)])
def test_si_is_the_loop_of_the_paper(optimizer: str, normalise: bool, strength: float, clip: float | None) -> None:
    """With a pull small enough that the cap under SGD does not bite."""
    ours, theirs = network(), network()
    method = methods.SI(strength=strength, xi=0.02, normalise=normalise, pull="gradient")
    host = methods.attach(method, ours, OPTIMIZERS[optimizer](ours))
    book = Book(theirs, OPTIMIZERS[optimizer](theirs), strength, 0.02, normalise, clip)
    for task in range(3):
        learnt(host, task, clip, consolidate=False)
        book.learn(task)
        close(method.omega, book.omega)
        close(copied(ours), copied(theirs))
        host.consolidate(batches(task))
        close({name: value * (method.share / strength) for name, value in method.importance.items()}, book.importance())
        close(method.centre, book.centre)
    plain = network()
    other = methods.attach(methods.Finetune(), plain, OPTIMIZERS[optimizer](plain))
    for task in range(3):
        learnt(other, task, clip)
    assert all((plain.get_parameter(name) - p).abs().max() > 1e-3 for name, p in ours.named_parameters())


@pytest.mark.parametrize("pull", ["gradient", "proximal"])
def test_the_work_of_all_weights_adds_up_to_the_drop_of_the_loss(pull: str) -> None:
    """A line integral along the way really gone: our own pull, too, moves weights over the loss."""
    x, y = batches(1, count=1, rows=32)[0]

    def total(strength: float) -> tuple[float, float]:
        model = network()
        method = methods.SI(strength=strength, pull=pull)
        host = methods.attach(method, model, torch.optim.SGD(model.parameters(), lr=2e-3))
        learnt(host, 0)
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):  # away from the centre, so that the pull has something to do
                p += 0.5 * torch.randn(p.shape, generator=draws(50 + i), dtype=p.dtype)
        host.begin()
        before = float(F.cross_entropy(model(x), y).detach())
        for _ in range(100):
            step(host, (x, y))
        drop = before - float(F.cross_entropy(model(x), y).detach())
        return sum(float(value.sum()) for value in method.omega.values()), drop

    work, drop = total(strength=3.0)
    assert work == pytest.approx(drop, rel=0.03)
    assert abs(drop - total(strength=0.0)[1]) > 0.1 * abs(drop)  # the pull changed the way


def test_a_weight_whose_moves_raised_the_loss_has_no_importance() -> None:
    method = methods.SI(normalise=False, xi=0.5)
    model = nn.Linear(1, 1, bias=False)
    host = methods.attach(method, model, torch.optim.SGD(model.parameters(), lr=0.1))
    method.omega, method.start = {"weight": torch.tensor([[-2.0]])}, {"weight": model.weight.detach() - 1.5}
    assert method.measure(host, None)["weight"].item() == 0
    method.omega = {"weight": torch.tensor([[3.0]])}
    assert method.measure(host, None)["weight"].item() == pytest.approx(3 / (1.5**2 + 0.5))


def test_a_weight_that_no_step_trained_has_no_importance() -> None:
    method, model = methods.SI(), network()
    model.register_parameter("idle", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    host = methods.attach(method, model, OPTIMIZERS["adam"](model))
    learnt(host, 0)
    assert method.importance["idle"].tolist() == [0, 0]
    assert all(float(value.sum()) > 0 for name, value in method.importance.items() if name != "idle")


@dataclass(eq=False)
class Note(Method):
    """Keeps the weights as each step finds them."""

    name: ClassVar[str] = "note"
    weights: list[Weights] = field(default_factory=list)

    def replay(self, host: Host, batch: Batch) -> Batch:
        self.weights.append(copied(host.model))
        return batch


class Stop(RuntimeError):
    pass


def test_the_way_begins_where_the_first_step_of_a_task_finds_the_weights() -> None:
    """Rows of the head that open for the task are drawn after `begin`; a task that was given up leaves nothing."""
    note, method, starts = Note(), methods.SI(), []
    stop_at = [2, 0, 0]

    class Look(Callback):
        def after_step(self, learner: Learner) -> None:
            starts.append({name: value.clone() for name, value in method.start.items()})
            if len(starts) == stop_at[learner.labels.number(learner.clock.name)]:
                raise Stop

    learner = Learner(
        models.mlp(12, (8,)), note + method, scenario="class", batch_size=10, callbacks=[Look()], save_every=0.0
    )
    for task, steps in zip(small_stream(tasks=3, classes=3, rows=30), (2, 3, 3), strict=True):
        starts.clear()
        note.weights.clear()
        try:
            learner.learn(task)
            assert method.start == {} and method.omega == {}
        except Stop:
            assert float(method.omega["head.weights.0"].abs().sum()) > 0
            learner.abandon()
        assert len(starts) == steps
        for start in starts:
            close(start, note.weights[0])


def test_micro_batches_trace_the_same_path_as_one_batch() -> None:
    omegas = []
    for size, parts in ((12, 1), (3, 4)):
        method = methods.SI()
        learner = Learner(models.mlp(12, (8,)), method, scenario="class", batch_size=size, accumulate=parts)

        class Look(Callback):
            def after_step(self, learner: Learner) -> None:
                self.omega = {name: value.clone() for name, value in learner.method.omega.items()}

        look = Look()
        learner.callbacks.append(look)
        learner.learn(small_stream(rows=36)[0])
        omegas.append(look.omega)
    assert float(omegas[0]["head.weights.0"].abs().sum()) > 1e-4
    for name, value in omegas[0].items():
        torch.testing.assert_close(value, omegas[1][name], rtol=1e-3, atol=1e-6)


def test_a_widened_head_keeps_what_si_learnt() -> None:
    model = network(columns=3)
    method = methods.SI(strength=1.0, normalise=False)
    host = methods.attach(method, model, torch.optim.SGD(model.parameters(), lr=0.1))
    learnt(host, 0)
    old = method.importance["2.weight"].clone()
    narrow, model[2] = model[2], nn.Linear(5, 5).double()
    with torch.no_grad():
        model[2].weight[:3], model[2].bias[:3] = narrow.weight, narrow.bias
    host.optimizer.param_groups[0]["params"] = list(model.parameters())
    learnt(host, 1, consolidate=False)
    assert method.omega["2.weight"].shape == method.importance["2.weight"].shape == (5, 5)
    torch.testing.assert_close(method.importance["2.weight"][:3], old)
    assert (method.importance["2.weight"][3:] == 0).all()
    host.consolidate(batches(1))
    assert (method.importance["2.weight"][3:] > 0).any()


def test_without_a_path_si_says_that_it_protects_nothing() -> None:
    si, ewc = methods.SI(), methods.EWC()
    model = models.adapt(network().float(), head="2", classes=[0, 1, 2])
    learner = Learner(model, si + ewc, scenario="class", batch_size=8)
    x = torch.randn(30, 4, generator=draws(0))
    with pytest.warns(RuntimeWarning, match="si traces importances while a task is learnt"):
        learner.consolidate(Rows(x, torch.arange(30) % 3))
    assert si.importance == {} and si.count == 0 and all(float(f.sum()) > 0 for f in ewc.importance.values())


@pytest.mark.parametrize("setting", [{"xi": 0.0}, {"xi": -1.0}, {"xi": float("nan")}, {"strength": -1.0}])
def test_si_refuses_settings_that_mean_nothing(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is"):
        methods.SI(**setting)


# ---- who looks first ----


@dataclass(eq=False)
class Doubling(Method):
    """Edits the gradient, and moves weights after the step."""

    name: ClassVar[str] = "doubling"

    def project(self, host: Host, batch: Batch) -> None:
        for p in host.params().values():
            assert p.grad is not None
            p.grad *= 2

    @torch.no_grad()
    def after_step(self, host: Host, batch: Batch, outputs: Tensor) -> None:
        for p in host.params().values():
            p += 0.125


@pytest.mark.parametrize("first", [True, False])
def test_si_sees_the_losss_own_gradient_and_the_whole_step_wherever_it_stands(first: bool) -> None:
    model, si = network(), methods.SI()
    host = methods.attach(si + Doubling() if first else Doubling() + si, model, OPTIMIZERS["sgd"](model))
    x, y = batches(0)[0]
    found = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    gradient = dict(zip(copied(model), found, strict=True))
    host.begin()
    step(host, (x, y))
    # theta moved by -lr * 2 g by the optimizer and by 0.125 after it
    close(si.omega, {name: -g * (-0.1 * 2 * g + 0.125) for name, g in gradient.items()})


def test_parts_that_are_no_witnesses_speak_in_order() -> None:
    said: list[str] = []

    def part(name: str, witness: bool = False) -> Method:
        hooks = {
            hook: lambda self, *rest, hook=hook: said.append(f"{hook} {name}") for hook in ("project", "after_step")
        }
        return type(name, (Method,), {**hooks, "name": name, "witness": witness})()

    method = part("a") + part("b", witness=True) + part("c") + part("d", witness=True)
    method.project(None, None)
    method.after_step(None, None, None)
    assert " ".join(said) == (
        "project b project d project a project c after_step a after_step c after_step b after_step d"
    )


# ---- A-GEM: the projection ----


def by_hand(gradient: list[Tensor], reference: list[Tensor]) -> Tensor:
    g = torch.cat([part.flatten() for part in gradient])
    r = torch.cat([part.flatten() for part in reference])
    if float(g @ r) >= 0:
        return g
    return g - (g @ r) / (r @ r) * r


def flat(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("seed", range(12))
def test_the_projection_is_the_papers(seed: int) -> None:
    generator = draws(seed)
    shapes = [(3, 4), (4,), (2, 3, 1), (1,)]
    gradient = [torch.randn(shape, generator=generator) for shape in shapes]
    reference = [torch.randn(shape, generator=generator) for shape in shapes]
    before, expected = flat(gradient), by_hand(gradient, reference)
    project_out(gradient, reference)
    torch.testing.assert_close(flat(gradient), expected)
    assert float(flat(gradient) @ flat(reference)) >= -1e-5
    if float(before @ flat(reference)) >= 0:
        assert torch.equal(flat(gradient), before)
    else:
        assert float((flat(gradient) - before).abs().max()) > 1e-3


def test_the_seeds_above_have_conflicts_and_agreements() -> None:
    signs = set()
    for seed in range(12):
        generator = draws(seed)
        g, r = torch.randn(12 + 4 + 6 + 1, generator=generator), torch.randn(12 + 4 + 6 + 1, generator=generator)
        signs.add(bool(g @ r >= 0))
    assert signs == {True, False}


def test_a_reference_of_zeros_changes_nothing() -> None:
    gradient = [torch.tensor([1.0, -2.0])]
    project_out(gradient, [torch.zeros(2)])
    assert gradient[0].tolist() == [1.0, -2.0]


# ---- A-GEM: in a learner ----


@dataclass(eq=False)
class Watched(methods.AGEM):
    """Notes what was drawn, the gradient before and after, and the model's tensors before."""

    seen: list[dict[str, Any]] = field(default_factory=list)

    def draw(self, host: Host, count: int, origin: int = 1) -> Batch | None:
        self.drawn = super().draw(host, count, origin)
        self.asked = count
        return self.drawn

    def project(self, host: Host, batch: Batch) -> None:
        before = gradients(host)
        tensors = {name: t.clone() for name, t in host.model.state_dict().items()}
        model = copy.deepcopy(host.model)
        super().project(host, batch)
        assert all(torch.equal(t, tensors[name]) for name, t in host.model.state_dict().items())
        self.seen.append({
            "drawn": self.drawn, "asked": self.asked, "before": before, "after": gradients(host), "model": model,
            "ready": None if self.drawn is None else host.ready(self.drawn), "task": host.number,
            "loss": host.objective.loss,
        })  # fmt: skip


def gradients(host: Host) -> Weights:
    return {name: p.grad.clone() for name, p in host.params().items() if p.grad is not None}


def image_stream() -> list[Task]:
    """Bytes, two classes a task."""
    generator, tasks = draws(3), []
    for number in range(3):
        y = torch.arange(24) % 2
        x = torch.randint(0, 120, (24, 1, 3, 4), generator=generator, dtype=torch.uint8)
        x[:, 0, number] += (120 * y).to(torch.uint8)[:, None]
        tasks.append(Task(Rows(x, y + 2 * number), name=str(number), classes=[2 * number, 2 * number + 1]))
    return tasks


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_agem_in_a_learner_is_the_loop_of_the_paper(scenario: str) -> None:
    """With batch norm in the model and bytes as inputs: the reference is the loss's gradient in train mode."""
    method = Watched(30)
    learner = Learner(models.mlp(12, (8,), norm=True), method, scenario=scenario, epochs=2, batch_size=8, seed=1)
    for task in image_stream():
        learner.learn(task)
    assert [step["drawn"] is None for step in method.seen] == [True] * 6 + [False] * 12
    conflicts = 0
    for step in method.seen[6:]:
        drawn, ready, model = step["drawn"], step["ready"], step["model"]
        assert step["asked"] == len(drawn) == 8 and drawn.x.dtype == torch.uint8
        assert (drawn.task < step["task"]).all()
        loss = step["loss"](model(drawn.x.float().div(255).flatten(1)), ready)
        params = dict(model.named_parameters())
        reference = dict(zip(params, torch.autograd.grad(loss, list(params.values()), allow_unused=True), strict=True))
        names = list(step["before"])
        assert names == list(params)
        before = [step["before"][name].double() for name in names]
        expected = by_hand(before, [reference[name].double() for name in names])
        after = flat([step["after"][name].double() for name in names])
        torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-6)
        assert float(after @ flat([reference[name].double() for name in names])) >= -1e-6
        conflicts += not torch.equal(after, flat(before))
    assert conflicts > 0


def test_rows_says_how_many_are_drawn_and_replays_rows_do_not_count() -> None:
    for rows, expected in ((None, 8), (5, 5)):
        method = Watched(30, rows=rows)
        learner = Learner(models.mlp(12, (8,)), methods.Replay(30, rows=3) + method, scenario="class", batch_size=8)
        for task in small_stream(tasks=2, rows=24):
            learner.learn(task)
        assert [step["asked"] for step in method.seen] == [expected] * 6


def test_micro_batches_are_projected_as_one_batch() -> None:
    ends = []
    for size, parts in ((12, 1), (3, 4)):
        method = Watched(30)
        learner = Learner(models.mlp(12, (8,)), method, scenario="class", batch_size=size, accumulate=parts,
                          optimizer={"name": "sgd", "lr": 0.05})  # fmt: skip
        for task in small_stream(tasks=2, rows=36):
            learner.learn(task)
        assert any(not torch.equal(flat([*s["before"].values()]), flat([*s["after"].values()])) for s in method.seen)
        ends.append(copied(learner.model))
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=1e-4, atol=1e-6)


def test_a_single_stored_row_is_enough_with_batch_norm() -> None:
    learner = Learner(models.mlp(12, (8,), norm=True), methods.AGEM(1), scenario="class", batch_size=8)
    for task in small_stream(tasks=2, rows=24):
        learner.learn(task)
    assert all(tensor.isfinite().all() for tensor in learner.model.state_dict().values())
    assert all(module.training for module in learner.model.modules())


class TwoHeads(nn.Module):
    """An owner's own multi-head network: a step trains one head."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.heads = nn.Linear(4, 3).double(), nn.ModuleList(nn.Linear(3, 3).double() for _ in range(2))
        self.active = 0

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.heads[self.active](self.body(x).tanh())
        return scores


def test_agem_in_a_loop_of_ones_own_leaves_weights_that_a_step_does_not_train_alone() -> None:
    model, method = TwoHeads(), Watched(30)
    host = methods.attach(method, model, OPTIMIZERS["sgd"](model))
    learnt(host, 0)
    idle = copied(model.heads[0])
    model.active = 1
    model.heads[0].zero_grad()
    learnt(host, 1)
    later = method.seen[6:]
    assert len(later) == 6 and all(set(step["after"]) == {"body.weight", "body.bias", "heads.1.weight", "heads.1.bias"}
                                   for step in later)  # fmt: skip
    assert all(torch.equal(value, idle[name]) for name, value in copied(model.heads[0]).items())
    for step in later:
        copy_of = step["model"]
        loss = F.cross_entropy(copy_of(step["drawn"].x), step["drawn"].y)
        params = {name: p for name, p in copy_of.named_parameters() if name in step["after"]}
        reference = torch.autograd.grad(loss, list(params.values()))
        expected = by_hand([step["before"][name] for name in params], list(reference))
        torch.testing.assert_close(flat([step["after"][name] for name in params]), expected)


@dataclass(eq=False)
class Idle(Method):
    """A loss on a parameter that the rows say nothing about."""

    name: ClassVar[str] = "idle"

    def penalty(self, host: Host, batch: Batch, outputs: Tensor) -> Tensor | float:
        return 2 * host.params()["idle"].sum()


def test_a_parameter_that_stored_rows_say_nothing_about_keeps_its_gradient() -> None:
    model, method = network(), Watched(30)
    model.register_parameter("idle", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    host = methods.attach(Idle() + method, model, OPTIMIZERS["sgd"](model))
    for task in range(2):
        learnt(host, task)
    assert all(step["after"]["idle"].tolist() == [2, 2] for step in method.seen)
    assert any(not torch.equal(step["after"]["0.weight"], step["before"]["0.weight"]) for step in method.seen)


@pytest.mark.parametrize("make", [methods.AGEM, methods.Replay])
def test_each_seed_keeps_rows_of_its_own(make: Callable[..., Any]) -> None:
    kept = []
    for seed in (0, 0, 1):
        method, model = make(10), network()
        host = methods.attach(method, model, OPTIMIZERS["sgd"](model), seed=seed)
        learnt(host, 0)
        kept.append(method.store.all()["x"].clone())
    assert torch.equal(kept[0], kept[1]) and not torch.equal(kept[0], kept[2])


# ---- a look that leaves no trace ----


class Counting(nn.Module):
    """Writes in a buffer in place, and puts a new tensor in another's place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.last = x.detach().mean(0)
        return x * self.calls


def test_a_look_aside_is_a_forward_pass_that_leaves_the_buffers_as_they_are() -> None:
    model = nn.Sequential(
        nn.BatchNorm1d(6), nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten(),
        nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3)), Counting(),
    )  # fmt: skip
    x = 3 + torch.randn(10, 6, generator=draws(0))
    model(x)
    twin = copy.deepcopy(model)
    buffers = dict(model.named_buffers())
    before = {name: (buffer, buffer.clone()) for name, buffer in buffers.items()}
    found, expected = aside(model, x), twin(x)
    assert torch.equal(found, expected)
    assert any(not torch.equal(buffer, before[name][1]) for name, buffer in twin.named_buffers())
    for name, buffer in model.named_buffers():
        assert buffer is before[name][0] and torch.equal(buffer, before[name][1]), name
    ours = torch.autograd.grad(found.square().mean(), list(model.parameters()))
    theirs = torch.autograd.grad(expected.square().mean(), list(twin.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


# ---- what a Keeper keeps ----


@dataclass(eq=False)
class ScoreKeeper(Keeper):
    """Keeps the scores that rows had when they were stored, beside them."""

    name: ClassVar[str] = "scores"
    pairs: list[Any] = field(default_factory=list)

    def columns(self, host: Host, batch: Batch, outputs: Tensor | None) -> dict[str, Any]:
        assert outputs is not None
        return {**super().columns(host, batch, outputs), "scores": outputs}

    def replay(self, host: Host, batch: Batch) -> Batch:
        past = self.draw(host, 5, origin=3)
        if past is not None:
            self.pairs.append((past, host.number))
        return super().replay(host, batch)


class FirstFeatures(nn.Module):
    """Whose scores are the first features, so that rows can be told by their scores."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()), requires_grad=True)

    def forward(self, x: Columns) -> Tensor:
        assert isinstance(x, Tensor)
        return x[:, :6] + 0 * self.one


@pytest.mark.parametrize("replay_first", [True, False])
def test_a_keeper_stores_each_row_with_its_own_scores(replay_first: bool) -> None:
    keeper, replay = ScoreKeeper(500), methods.Replay(50)
    model = FirstFeatures()
    host = methods.attach(replay + keeper if replay_first else keeper + replay, model, OPTIMIZERS["sgd"](model))
    for task in range(3):
        host.begin()
        for seed in range(4):
            x = torch.randn(7, 12, generator=draws(10 * task + seed))
            rows = step(host, (x, torch.full((7,), task)))
        host.consolidate([rows])
    kept = keeper.store.all()
    assert keeper.store.seen == len(kept["x"]) == 3 * 4 * 7
    assert torch.equal(kept["x"][:, :6], kept["scores"])
    assert len(keeper.pairs) == 8
    for past, number in keeper.pairs:
        assert len(past) == 5 and (past.task < number).all() and (past.origin == 3).all()
        assert torch.equal(past.extra["scores"], past.x[:, :6]) and set(past.extra) == {"scores"}


def test_a_keeper_says_who_needs_labels() -> None:
    keeper, model = ScoreKeeper(5), FirstFeatures()
    host = methods.attach(keeper, model, OPTIMIZERS["sgd"](model))
    host.begin()
    unlabelled = Batch(x=torch.zeros(2, 12), y=None, task=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="scores stores labelled rows"):
        Keeper.columns(keeper, host, unlabelled, None)
