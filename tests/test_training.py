"""What people expect of a trainer: accumulation, schedules, clipping, bf16, patience, optimizers, augmentation."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from conftest import blobs, small_stream
from torch import nn
from trees import differences, snapshot

from perdure import Callback, Learner, Method, Rows, Task, answers, methods, models
from perdure.clock import Clock
from perdure.optim import OPTIMIZERS
from perdure.training import Finite, batches_of, hold_out

SGD = {"name": "sgd", "lr": 0.1}


def made(method: Method | None = None, **settings: Any) -> Learner:
    model = settings.pop("model", None) or models.mlp(12, (10,))
    return Learner(model, method or methods.Finetune(), **({"scenario": "class", "batch_size": 16} | settings))


def x_of(rows: Rows) -> torch.Tensor:
    return rows.read(torch.arange(len(rows)))


def numbered(count: int, validation: Rows | None = None) -> Task:
    """Rows whose first feature is their number."""
    return Task(
        (torch.arange(count).float()[:, None].repeat(1, 12) / 100, torch.arange(count) % 2), validation=validation
    )


@dataclass(eq=False)
class Watches(Method):
    """Fine-tuning that notes the numbers of the rows of each step, and of the task that it is given."""

    name: ClassVar[str] = "watches"
    steps: list = field(default_factory=list)
    given: list = field(default_factory=list)

    def after_step(self, host, batch, outputs):
        self.steps.append((batch.x[:, 0] * 100).round().long().tolist())

    def end(self, host, task):
        self.given = (x_of(task.train)[:, 0] * 100).round().long().tolist()


class Rates(Callback):
    def __init__(self):
        self.rates = []

    def after_step(self, learner):
        self.rates.append(learner.optimizer.param_groups[0]["lr"])


# ---- batches ----


def test_every_row_is_seen_once_an_epoch_in_an_order_of_its_own():
    method = Watches()
    made(method, epochs=2, batch_size=8).learn(numbered(36))
    first, second = ([row for step in method.steps[i : i + 5] for row in step] for i in (0, 5))
    assert sorted(first) == sorted(second) == list(range(36))
    assert first != second != list(range(36))
    assert [len(step) for step in method.steps] == [8, 8, 8, 8, 4] * 2


@pytest.mark.parametrize(("rows", "sizes"), [(33, [16, 17]), (17, [17]), (1, [1]), (32, [16, 16]), (34, [16, 16, 2])])
def test_a_last_batch_of_one_row_joins_the_one_before(rows, sizes):
    assert [len(batch) for batch in batches_of(torch.arange(rows), 16)] == sizes


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_batch_norm_never_sees_a_single_row(accumulate):
    for rows in range(15, 22):
        learner = made(model=models.mlp(12, (6,), norm=True), batch_size=4, accumulate=accumulate)
        learner.learn(numbered(rows))
        assert learner.clock.task == 1


def test_a_batch_size_above_the_data_means_one_batch_of_all_rows():
    method = Watches()
    made(method, batch_size=1000, epochs=3).learn(numbered(20))
    assert [len(step) for step in method.steps] == [20, 20, 20]


# ---- a number of steps ----


class Stopped(RuntimeError):
    pass


class StopsAt(Callback):
    """Saves after a step, and raises."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def after_step(self, learner):
        if learner.clock.step == self.step:
            learner.save(self.path)
            raise Stopped


@pytest.mark.parametrize("steps", [1, 3, 4, 11])  # 40 rows make 3 batches
@pytest.mark.parametrize("epochs", [1, 5])
def test_a_task_takes_just_so_many_steps_whatever_the_epochs(steps, epochs):
    method = Watches()
    learner = made(method, steps=steps, epochs=epochs)
    for number in range(1, 3):
        learner.learn(Task(numbered(40).train, name=str(number)))
        assert len(method.steps) == learner.clock.step == number * steps
        assert (learner.clock.task, learner.clock.begun) == (number, False)
    own = method.steps[:steps]
    for first in range(0, steps, 3):  # every pass is over all rows, but for the last
        rows = [row for step in own[first : first + 3] for row in step]
        assert len(set(rows)) == len(rows)
        assert first + 3 > steps or set(rows) == set(range(40))
    assert steps < 6 or own[:3] != own[3:6]


def test_steps_count_the_optimizers_and_not_micro_batches():
    learner = made(Watches(), steps=5, accumulate=2, batch_size=8)
    learner.learn(numbered(40))
    assert learner.clock.step == len(learner.method.steps) == 5
    assert max(len(step) for step in learner.method.steps) == 16


def test_with_all_rows_of_the_past_a_task_takes_no_more_steps():
    seen = Watches()
    learner = made(methods.Joint() + seen, steps=4)
    for number, task in enumerate(small_stream(rows=48)):  # 3, 6 and 9 batches a pass
        learner.learn(task)
        assert learner.clock.step == len(seen.steps) == 4 * (number + 1)


@pytest.mark.parametrize("method", [methods.Joint, lambda: methods.Replay(20)], ids=["joint", "replay"])
@pytest.mark.parametrize("cut", [8, 9, 10, 13])  # the second task takes steps 8 to 14; a pass has 3 batches, or 6
def test_stopped_within_its_steps_and_resumed_a_task_takes_the_rest(method, cut, tmp_path):
    stream = small_stream(rows=48)
    settings = {"steps": 7, "schedule": "cosine", "model": None}
    unbroken, broken = made(method(), **settings), made(method(), **settings)
    broken.callbacks.append(StopsAt(cut, tmp_path / "file"))
    for task in stream:
        unbroken.learn(task)
    broken.learn(stream[0])
    with pytest.raises(Stopped):
        broken.learn(stream[1])
    resumed = Learner.load(tmp_path / "file")
    assert resumed.settings.budget == {"steps": 7} and resumed.clock.begun
    for task in stream[1:]:
        resumed.learn(task)
    assert resumed.clock.step == 21
    assert differences(snapshot(unbroken), snapshot(resumed)) == []


@pytest.mark.parametrize("method", [methods.Finetune, methods.Joint])
def test_schedules_end_with_the_last_of_the_steps(method):
    watch = Rates()
    learner = made(method(), schedule="linear", steps=5, optimizer=SGD, callbacks=[watch], epochs=9)
    for task in small_stream(rows=32):
        learner.learn(task)
    assert [rate / 0.1 for rate in watch.rates] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2] * 3)


def test_patience_ends_a_task_before_its_steps(monkeypatch):
    scripted(monkeypatch, [0.9, 0.1, 0.1])
    learner = made(steps=100, validation=0.2, patience=2)
    learner.learn(small_stream(rows=40)[0])
    assert learner.clock.step == 6


@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_a_number_of_steps_that_means_nothing_is_refused(steps):
    with pytest.raises(ValueError, match=f"steps is {steps}; it must be a whole number, at least 1"):
        made(steps=steps)


# ---- accumulation ----


@pytest.mark.parametrize(
    "method",
    [
        methods.Finetune,
        lambda: methods.EWC(1.0),
        lambda: methods.LwF(2.0),
        lambda: methods.Replay(50),
        lambda: methods.LwF() + methods.MAS() + methods.Replay(30, rows=7),
    ],
    ids=["none", "ewc", "lwf", "replay", "all"],
)
@pytest.mark.parametrize("scenario", ["class", "task"])
def test_accumulated_micro_batches_equal_one_batch(method, scenario):
    stream = small_stream(tasks=2, rows=70)  # the last batch has 6 rows: parts of unequal size
    settings = {"scenario": scenario, "optimizer": SGD | {"momentum": 0.9}, "clip": 1.0}
    learners = [made(method(), batch_size=32 // k, accumulate=k, **settings) for k in (1, 4)]
    for learner in learners:
        for task in stream:
            learner.learn(task)
    whole, parts = ([p.detach() for p in learner.model.parameters()] for learner in learners)
    assert max((a - b).abs().max().item() for a, b in zip(whole, parts, strict=True)) < 1e-6
    assert learners[0].clock.step == learners[1].clock.step == 6
    assert learners[1].loss.item() == pytest.approx(learners[0].loss.item(), abs=1e-6)


# ---- schedules ----


def rates(schedule: Any, tasks: int = 2, epochs: int = 2) -> list[float]:
    """Learning rates of all steps, in units of the first; 2 batches an epoch."""
    watch = Rates()
    learner = made(schedule=schedule, epochs=epochs, optimizer={"name": "sgd", "lr": 0.2}, callbacks=[watch])
    for task in small_stream(tasks=tasks, rows=32):
        learner.learn(task)
    return [rate / 0.2 for rate in watch.rates]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (None, [1] * 8),
        ("linear", [1, 0.75, 0.5, 0.25] * 2),
        ("cosine", [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2] * 2),
        ({"name": "linear", "floor": 0.2}, [1, 0.8, 0.6, 0.4] * 2),
        ({"name": "exponential", "decay": 0.5}, [1, 0.5, 0.25, 0.125] * 2),
        ({"name": "exponential", "decay": 0.5, "restart": False, "floor": 0.1}, [1, 0.5, 0.25, 0.125] + [0.1] * 4),
        ({"name": "constant", "warmup": 3}, [0.25, 0.5, 0.75, 1] * 2),
        ({"name": "constant", "warmup": 3, "restart": False}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ({"name": "linear", "warmup": 2}, [1 / 3, 2 / 3, 1, 0.5] * 2),
    ],
    ids=str,
)  # fmt: skip
def test_the_learning_rate_of_every_step(schedule, expected):
    assert rates(schedule) == pytest.approx(expected)


# ---- clipping, precision ----


class Pushes(Method):
    name = "pushes"

    def project(self, host, batch):
        for p in host.params().values():
            p.grad.add_(100 * (-1) ** host.clock.step)


@pytest.mark.parametrize("method", [methods.Finetune, Pushes], ids=["plain", "after the method has spoken"])
def test_clip_bounds_the_length_of_a_step(method):
    clip, moved = 0.01, []
    last: list[torch.Tensor] = []

    class Moves(Callback):
        def after_step(self, learner):
            now = nn.utils.parameters_to_vector(learner.model.parameters()).detach().clone()
            if last:
                moved.append((now - last[-1]).norm().item())
            last.append(now)

        def before_task(self, learner, task):
            last.clear()

    learner = made(method(), clip=clip, optimizer={"name": "sgd", "lr": 1.0}, epochs=2, callbacks=[Moves()])
    for task in small_stream(tasks=2, rows=64):
        learner.learn(task)
    assert len(moved) == 14
    assert max(moved) == pytest.approx(clip, rel=1e-3)
    loose = made(clip=1e9, optimizer=SGD)
    plain = made(optimizer=SGD)
    for learner in (loose, plain):
        learner.learn(small_stream(rows=64)[0])
    assert differences(snapshot(loose)["weights"], snapshot(plain)["weights"]) == []


def test_bf16_computes_coarsely_and_keeps_weights_in_float32():
    task = small_stream(rows=64)[0]
    exact, coarse = made(optimizer=SGD, epochs=2), made(optimizer=SGD, epochs=2, precision="bf16")
    for learner in (exact, coarse):
        learner.learn(task)
    pairs = list(zip(exact.model.parameters(), coarse.model.parameters(), strict=True))
    assert all(b.dtype == torch.float32 for _, b in pairs)
    gap = max((a - b).abs().max().item() for a, b in pairs)
    assert 1e-6 < gap < 0.02
    assert coarse.evaluate(task) == pytest.approx(exact.evaluate(task), abs=0.05)
    assert coarse.predict_proba(x_of(task.test)).dtype == torch.float32


# ---- validation and patience ----


def test_validation_rows_are_never_trained_on_nor_seen_by_the_method_and_are_the_same_everywhere():
    task, method = numbered(40), Watches()
    held = sorted((x_of(hold_out(task, 0.25, seed=3)[1][0])[:, 0] * 100).round().long().tolist())
    assert len(held) == 10
    made(method, validation=0.25, seed=3, epochs=3).learn(task)
    trained = {row for step in method.steps for row in step}
    assert trained == set(range(40)) - set(held) == set(method.given)
    torch.manual_seed(99)
    again = hold_out(numbered(40), 0.25, seed=3)[1][0]
    assert sorted((x_of(again)[:, 0] * 100).round().long().tolist()) == held
    assert held != sorted((x_of(hold_out(task, 0.25, seed=4)[1][0])[:, 0] * 100).round().long().tolist())


def test_memories_and_importances_do_not_hold_validation_rows():
    task = numbered(40)
    held = {tuple(row) for row in x_of(hold_out(task, 0.5, seed=0)[1][0]).tolist()}
    learner = made(methods.Replay(100) + methods.Joint(), validation=0.5)
    learner.learn(task)
    for part in learner.method.parts:
        kept = {tuple(row) for row in part.store.all()["x"].tolist()}
        assert len(kept) == 20
        assert kept.isdisjoint(held)


def test_a_tasks_own_validation_rows_are_used_as_they_are():
    method = Watches()
    own = Rows(torch.full((5, 12), 9.99), [0, 1, 0, 1, 0])
    learner = made(method, validation=0.5)
    learner.learn(numbered(20, validation=own))
    assert {row for step in method.steps for row in step} == set(range(20))


def scripted(monkeypatch: pytest.MonkeyPatch, grades: list[float]) -> None:
    left = iter(grades)
    monkeypatch.setattr(answers, "grade", lambda learner, rows, task: next(left))


class Keeps(Callback):
    def __init__(self):
        self.weights = []

    def after_epoch(self, learner):
        self.weights.append(snapshot(learner)["weights"])


def test_patience_stops_a_task_early_and_brings_the_best_weights_back(monkeypatch):
    scripted(monkeypatch, [0.5, 0.7, 0.7, 0.6, 0.9])
    keeps = Keeps()
    model = models.mlp(12, (6,), norm=True)
    learner = made(model=model, validation=0.2, patience=2, epochs=50, callbacks=[keeps])
    learner.learn(small_stream(rows=40)[0])
    assert len(keeps.weights) == 4
    assert differences(keeps.weights[1], snapshot(learner)["weights"]) == []
    assert differences(keeps.weights[3], snapshot(learner)["weights"]) != []
    assert learner.stopper.weights == {}
    scripted(monkeypatch, [0.3, 0.4, 0.1, 0.2])  # worse than the task before, which does not count
    learner.learn(small_stream(rows=40)[1])
    assert len(keeps.weights) == 8
    assert differences(keeps.weights[5], snapshot(learner)["weights"]) == []


def test_without_patience_validation_only_watches(monkeypatch):
    scripted(monkeypatch, [0.9, 0.1, 0.0])
    keeps = Keeps()
    learner = made(validation=0.2, epochs=3, callbacks=[keeps])
    learner.learn(small_stream(rows=40)[0])
    assert len(keeps.weights) == 3
    assert differences(keeps.weights[2], snapshot(learner)["weights"]) == []


# ---- optimizers ----


@pytest.mark.parametrize(
    ("spec", "kind", "settings"),
    [
        ("adam", "adam", {"lr": 1e-3}),
        ("sgd", "sgd", {"lr": 1e-3, "momentum": 0}),
        ({"name": "adamw", "betas": [0.5, 0.9]}, "adamw", {"betas": (0.5, 0.9), "lr": 1e-3}),
        ({"name": "sgd", "lr": 0.3, "momentum": 0.8}, "sgd", {"lr": 0.3, "momentum": 0.8}),
        (lambda params: torch.optim.SGD(params, lr=0.7), "sgd", {"lr": 0.7}),
    ],
    ids=["adam", "sgd", "adamw", "momentum", "function"],
)  # fmt: skip
def test_an_optimizer_by_name_settings_or_function(spec, kind, settings):
    optimizer = made(optimizer=spec).optimizer
    assert type(optimizer) is OPTIMIZERS[kind]
    assert {name: optimizer.defaults[name] for name in settings} == settings


def test_an_optimizer_already_made_is_used_itself():
    model = models.mlp(12, (10,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    learner = made(model=model, optimizer=optimizer)
    learner.learn(small_stream(rows=32)[0])
    by_name = made(optimizer=SGD)
    by_name.learn(small_stream(rows=32)[0])
    assert learner.optimizer is optimizer
    assert all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(model.parameters(), by_name.model.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("adma", "no optimizer 'adma'; did you mean 'adam'"),
        ({"name": "sgd", "momentun": 0.9}, "'sgd' has no setting 'momentun'; did you mean 'momentum'"),
        (torch.optim.SGD(models.mlp(12, (10,)).parameters()), "4 of the optimizer's parameters are not the model's"),
        (lambda params: torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1), "2 of the optimizer's parameters"),
    ],
    ids=["name", "setting", "instance", "function"],
)  # fmt: skip
def test_a_wrong_optimizer_is_refused_and_model_and_method_can_be_used_again(spec, words):
    model, method = models.mlp(12, (10,)), methods.Replay(10)
    weights = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=words):
        made(method, model=model, optimizer=spec, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    made(method, model=model, seed=1)


def test_new_blocks_of_the_head_join_its_group_and_moments_are_kept():
    model = models.mlp(12, (10,))
    groups = [{"params": model.head.parameters(), "lr": 0.02}, {"params": model.body.parameters(), "lr": 0.01}]
    optimizer = torch.optim.Adam(groups)
    learner = made(model=model, optimizer=optimizer, batch_size=32)
    learner.learn(Task(blobs(tuple(range(10)), 64, 0)))
    before = {p: {k: v.clone() for k, v in state.items()} for p, state in optimizer.state.items()}
    assert len(before) == 4
    seen = {}

    class Look(Callback):
        def before_task(self, learner, task):
            seen.update({p: {k: v.clone() for k, v in state.items()} for p, state in optimizer.state.items()})
            assert [len(group["params"]) for group in optimizer.param_groups] == [4, 2]

    learner.callbacks.append(Look())
    learner.learn(Task(blobs(tuple(range(8, 20)), 64, 1)))
    assert seen.keys() == before.keys()
    assert all(torch.equal(seen[p][k], before[p][k]) for p in before for k in before[p])
    assert model.head.capacity == 32
    new = model.head.weights[1]
    assert learner.lr(new) == 0.02
    assert learner.lr(model.body[1].weight) == 0.01
    assert new[:4].abs().min() > 0
    assert optimizer.state[new]["step"] == 2
    assert optimizer.state[model.head.weights[0]]["step"] == 4


def test_frozen_layers_stay_as_they_are_and_a_new_block_is_learnt():
    model = models.mlp(12, (10,))
    model.body.requires_grad_(False)
    learner = made(model=model)
    before = model.body[1].weight.clone()
    learner.learn(Task(blobs(tuple(range(20)), 60, 0)))
    assert torch.equal(before, model.body[1].weight)
    assert set(learner.params()) == {f"head.{kind}.{i}" for kind in ("weights", "biases") for i in (0, 1)}
    assert len(learner.optimizer.state) == 4


# ---- augmentation ----


def test_replayed_rows_are_augmented_too_and_memory_keeps_them_raw():
    sizes = []

    def shift(x, draws):
        sizes.append(len(x))
        return x + 1000

    method = Watches() + methods.Replay(100)
    learner = made(method, augment=shift)
    for task in small_stream(tasks=2, rows=32):
        learner.learn(task)
    assert sizes == [16, 16, 32, 32]
    seen = torch.tensor([row for step in method.parts[0].steps for row in step])
    assert seen.min() > 90_000
    assert method.parts[1].store.all()["x"].max() < 100


def test_augmentation_draws_from_a_generator_of_the_learner_that_goes_on():
    def noise(x, draws):
        assert draws is not torch.default_generator
        found.append(torch.rand((), generator=draws).item())
        return x + 0.01 * torch.randn(x.shape, generator=draws)

    runs = []
    for seed, outside in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(outside)
        found: list[float] = []
        learner = made(augment=noise, seed=seed)
        for task in small_stream(tasks=2, rows=32):
            learner.learn(task)
        runs.append(found)
    assert runs[0] == runs[1] != runs[2]
    assert len(set(runs[0])) == 4


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_whatever_is_not_finite_is_noticed_and_large_numbers_are_not(value):
    for bad in (torch.tensor(value), torch.tensor([1.0, value])):
        finite = Finite(torch.device("cpu"))
        for large in (3e38, 3e38, -3e38):
            finite.note(torch.tensor(large), torch.tensor([large, large]))
        finite.refuse(Clock())
        finite.note(bad)
        finite.note(torch.tensor(1.0))
        with pytest.raises(FloatingPointError):
            finite.refuse(Clock())
        finite.reset()
        finite.refuse(Clock())
