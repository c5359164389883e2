"""LwF, Replay and Joint: what the teacher says, which rows are kept, which rows come back."""

import copy
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from conftest import blobs, small_stream
from torch import Tensor

from perdure import Callback, Learner, Rows, Task, methods, models
from perdure.data import Batch
from perdure.method import Host, Method


@dataclass(eq=False)
class Spy(Method):
    """Keeps the batches as the model saw them."""

    name: ClassVar[str] = "spy"
    batches: list[Batch] = field(default_factory=list)

    def project(self, host: Host, batch: Batch) -> None:
        self.batches.append(batch)


def mlp_learner(method: Method, scenario: str = "class", **settings: Any) -> Learner:
    return Learner(models.mlp(12, (8,), norm=True), method, scenario=scenario, **{"batch_size": 8, **settings})


# ---- which rows are of the past ----


@pytest.mark.parametrize("method", [methods.Replay, methods.DER, methods.DERpp, methods.ErACE, methods.AGEM])
def test_rows_of_a_task_of_the_same_name_are_of_the_past_when_it_comes_back(method: type[Method]) -> None:
    spy, keeper = Spy(), method(200)
    learner = mlp_learner(keeper + spy, epochs=8, optimizer={"name": "adam", "lr": 0.02})
    for labels in ((0, 1), (2, 3)):
        learner.learn(Task(blobs(labels, 48, 1), name="shop"))
    assert keeper.store.past == 48
    assert method is methods.AGEM or spy.batches[-1].origin is not None
    if method is not methods.AGEM:  # it only vetoes
        assert learner.evaluate(Task(blobs((0, 1), 48, 1), blobs((0, 1), 48, 1), name="shop")) > 0.8


@pytest.mark.parametrize("policy", ["reservoir", "balanced", "ring"])
@pytest.mark.parametrize("scenario", ["domain", "task"])
def test_where_labels_recur_every_policy_keeps_rows_of_every_task(scenario: str, policy: str) -> None:
    method, spy = methods.Replay(30, policy=policy), Spy()
    learner = mlp_learner(method + spy, scenario=scenario)
    for number in range(3):
        learner.learn(Task(blobs((0, 1), 60, number), name=str(number)))
    counts = Counter(method.store.all()["task"].tolist())
    assert set(counts) == {0, 1, 2} and min(counts.values()) >= (8 if policy == "ring" else 4)
    replayed = [batch.task[~batch.fresh] for batch in spy.batches[16:]]
    assert {len(task) for task in replayed} == {8, 4} and all((task < 2).all() for task in replayed)


def test_with_a_head_a_task_a_small_task_keeps_its_share() -> None:
    method = methods.Replay(60, policy="balanced")
    learner = mlp_learner(method, scenario="task")
    for name, rows in (("small", 24), ("large", 400), ("larger", 800)):
        learner.learn(Task(blobs((0, 1), rows, rows), name=name))
    assert Counter(method.store.all()["task"].tolist()) == {0: 20, 1: 20, 2: 20}


def test_parts_of_a_composition_draw_rows_of_their_own() -> None:
    one, other, twin = methods.Replay(20), methods.AGEM(20), methods.Replay(20)
    learner = mlp_learner(one + other + twin)
    for task in small_stream(rows=48):
        learner.learn(task)
    kept = [{tuple(row) for row in part.store.all()["x"].tolist()} for part in (one, other, twin)]
    assert all(len(a & b) < 20 for a, b in ((kept[0], kept[1]), (kept[0], kept[2]), (kept[1], kept[2])))


def test_as_many_rows_are_drawn_as_the_stream_brings_whatever_parts_before_have_added() -> None:
    for method in (methods.Replay(40) + methods.DER(40), methods.DER(40) + methods.Replay(40)):
        spy = Spy()
        learner = mlp_learner(method + spy)
        for task in small_stream(tasks=2, rows=32):
            learner.learn(task)
        assert [len(batch) for batch in spy.batches] == [8] * 4 + [24] * 4


@pytest.mark.parametrize("rows", [8.0, 0, True, "8"])
def test_rows_is_a_whole_number(rows: Any) -> None:
    for method in (methods.Replay, methods.AGEM, methods.DER, methods.GenerativeReplay):
        with pytest.raises(ValueError, match="whole number"):
            method(rows=rows)


def test_new_and_stored_rows_share_the_micro_batches() -> None:
    """Batch norm in a part of stored rows alone would see another distribution than in the whole batch."""
    parts: list[Batch] = []

    class Parts(Spy):
        def penalty(self, host: Host, batch: Batch, outputs: Tensor) -> float:
            parts.append(batch)
            return 0.0

    learner = mlp_learner(methods.Replay(50) + Parts(), accumulate=2)
    for task in small_stream(tasks=2, rows=32):
        learner.learn(task)
    mixed = parts[4:]
    assert len(mixed) == 4 and all(int(part.fresh.sum()) == len(part) // 2 == 8 for part in mixed)


def test_scores_of_micro_batches_come_back_in_the_order_of_the_rows() -> None:
    found = []

    class Scores(Spy):
        def after_step(self, host: Host, batch: Batch, outputs: Tensor) -> None:
            found.append((batch.x, outputs))

    learner = Learner(
        models.mlp(12, (8,)), Scores(), scenario="class", batch_size=5, accumulate=3,
        optimizer={"name": "sgd", "lr": 1e-12},
    )  # fmt: skip
    learner.learn(small_stream(rows=23)[0])
    for x, outputs in found:
        assert torch.allclose(outputs, learner.model(x), atol=1e-5)


# ---- LwF ----


def cross_entropy(scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 sum_c q_c (-log p_c), a mean over the rows, written out."""
    q = (teacher / temperature).exp() / (teacher / temperature).exp().sum(1, keepdim=True)
    p = (scores / temperature).exp() / (scores / temperature).exp().sum(1, keepdim=True)
    return temperature**2 * -(q * p.log()).sum(1).mean()


@pytest.mark.parametrize(
    ("scenario", "groups"),
    [("task", [[0, 1], [2, 3]]), ("class", [[0, 1, 2, 3]]), ("domain", [[0, 1]])],
)
@pytest.mark.parametrize(("strength", "temperature"), [(1.0, 2.0), (0.3, 1.0)])
def test_lwf_is_the_cross_entropy_to_the_model_before_the_task_in_eval_mode(
    scenario: str, groups: list[list[int]], strength: float, temperature: float
) -> None:
    method = methods.LwF(strength=strength, temperature=temperature)
    learner = mlp_learner(method, scenario)
    first, second, third = small_stream(tasks=3, rows=24)
    learner.learn(first)
    learner.learn(second)
    before = copy.deepcopy(learner.model).eval()
    checked = []

    class Check(Callback):
        def after_step(self, learner: Learner) -> None:
            x = third.train.read(torch.arange(10))
            outputs = learner.model(x)
            statistics = {name: t.clone() for name, t in learner.model.named_buffers()}
            batch = Batch(x=x, y=None, task=torch.full((10,), 2))
            found = method.penalty(learner, batch, outputs)
            teacher = before(x).detach()
            by_hand = sum(cross_entropy(outputs[:, g], teacher[:, g], temperature) for g in groups)
            torch.testing.assert_close(found, strength * by_hand, rtol=1e-5, atol=1e-6)
            assert all(torch.equal(statistics[name], t) for name, t in learner.model.named_buffers())
            assert all(module.training for module in learner.model.modules())
            assert torch.autograd.grad(found, learner.model.head.weights[0])[0].abs().sum() > 0
            checked.append(found)

    learner.callbacks.append(Check())
    learner.learn(third)
    assert len(checked) == 3
    assert learner.model.head.columns == (2 if scenario == "domain" else 6)


def test_lwf_has_no_teacher_before_anything_is_known() -> None:
    method = methods.LwF()
    learner = mlp_learner(method)
    learner.learn(small_stream()[0])
    assert method.teacher == {}


@pytest.mark.parametrize("setting", [{"strength": -1.0}, {"temperature": 0.0}])
def test_lwf_refuses_settings_that_mean_nothing(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is"):
        methods.LwF(**setting)


# ---- Replay ----


def telling(labels: list[str], task: int, rows: int) -> Rows:
    """Rows whose first feature tells their label, the second their task, the third their own number."""
    own = [labels[i % len(labels)] for i in range(rows)]
    numbers = [[float(ord(label)), float(task), float(task * 1000 + i)] for i, label in enumerate(own)]
    return Rows(torch.tensor(numbers), own)


@pytest.mark.parametrize("policy", ["reservoir", "balanced", "ring"])
def test_images_are_stored_as_they_came(policy: str) -> None:
    images = torch.randint(256, (40, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    method = methods.Replay(1000, policy=policy)
    learner = Learner(models.mlp(16, (8,)), method, scenario="class", epochs=3, batch_size=8)
    learner.learn(Task(Rows(images, torch.arange(40) % 2), name="images"))
    kept = method.store.all()
    assert kept["x"].dtype == torch.uint8
    order = [int((images == image).all(dim=(1, 2, 3)).nonzero()) for image in kept["x"]]
    assert sorted(order) == list(range(40))  # each row once, though it was seen three times
    assert kept["y"].tolist() == [i % 2 for i in order]
    assert method.store.seen == 40


@pytest.mark.parametrize("policy", ["reservoir", "balanced", "ring"])
@pytest.mark.parametrize("capacity", [7, 25, "600 B"])
def test_a_memory_is_never_larger_than_its_size(policy: str, capacity: int | str) -> None:
    method = methods.Replay(capacity, policy=policy)
    sizes = []

    class Watch(Callback):
        def after_step(self, learner: Learner) -> None:
            sizes.append((len(method.store), method.store.bytes))

    learner = mlp_learner(method, callbacks=[Watch()])
    for task in small_stream(rows=48):
        learner.learn(task)
    if isinstance(capacity, int):
        assert max(rows for rows, _ in sizes) == capacity
    else:
        row = 12 * 4 + 8 + 8 + 1 + (0 if policy == "reservoir" else 16)  # x, y, task; new; key and priority
        assert max(held for _, held in sizes) == 600 // row * row


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
@pytest.mark.parametrize("policy", ["reservoir", "balanced", "ring"])
def test_labels_come_in_any_order_and_come_back_and_every_stored_row_keeps_its_own(scenario: str, policy: str) -> None:
    spy, method = Spy(), methods.Replay(1000, policy=policy)
    learner = Learner(models.mlp(3, (4,)), method + spy, scenario=scenario, epochs=2, batch_size=6)
    orders = [["d", "b"], ["a", "c"], ["b", "a", "e"], ["z"], ["e", "b", "d"]]
    names = ["one", "two", "three", "four", "one"]  # the last comes back, with another label
    for number, (name, labels) in enumerate(zip(names, orders, strict=True)):
        learner.learn(Task(telling(labels, number, 12), name=name, classes=labels))
    assert learner.classes == ["d", "b", "a", "c", "e", "z"]
    assert learner.tasks["one"] == ["d", "b", "e"]
    kept = method.store.all()
    tasks = list(learner.tasks)
    assert len(kept["y"]) == 60
    for x, y, task in zip(kept["x"], kept["y"].tolist(), kept["task"].tolist(), strict=True):
        assert learner.tasks[tasks[task]][y] == chr(int(x[0]))
        assert tasks[task] == names[int(x[1])]
    # and the column that it is trained on is that of its label
    for batch in (batch for batch in spy.batches if not batch.fresh.all()):
        for x, task, column in zip(batch.x, batch.task.tolist(), batch.columns.tolist(), strict=True):
            label, position = chr(int(x[0])), learner.tasks[tasks[task]].index(chr(int(x[0])))
            assert scenario != "class" or learner.classes[column] == label
            assert scenario != "domain" or column == position
            if scenario == "task":
                columns, labels = learner.labels.answers(tasks[task])
                assert labels[columns.index(column)] == label


def test_every_batch_of_a_later_task_is_joined_by_as_many_rows_as_asked() -> None:
    for rows, expected in ((None, 8), (3, 3)):
        spy = Spy()
        learner = mlp_learner(methods.Replay(20, rows=rows) + spy)
        first, second, _ = small_stream(rows=24)
        learner.learn(first)
        assert [len(batch) for batch in spy.batches] == [8, 8, 8]
        learner.learn(second)
        later = spy.batches[3:]
        assert [(int(b.fresh.sum()), int((~b.fresh).sum())) for b in later] == [(8, expected)] * 3
        assert {int(task) for b in later for task in b.task[b.fresh]} == {1}
        assert {int(task) for b in later for task in b.task[~b.fresh]} == {0}
        assert all(b.weight is None for b in later)  # all rows weigh alike


def test_a_part_after_replay_stores_the_streams_rows_only() -> None:
    first, second = methods.Replay(500), methods.Replay(500)
    learner = mlp_learner(first + second, epochs=2)
    for task in small_stream(rows=24):
        learner.learn(task)
    for method in (first, second):
        rows = method.store.all()["x"]
        assert len(rows) == method.store.seen == len(rows.unique(dim=0)) == 72


@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_consolidation_without_training_fills_the_memory(policy: str) -> None:
    method = methods.Replay(15, policy=policy)
    model = models.adapt(torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)), head="2",
                         classes=[0, 1, 2])  # fmt: skip
    learner = Learner(model, method, scenario="class", batch_size=8)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    learner.consolidate(blobs((2, 0, 1), 60, seed=1))
    assert len(method.store) == 15 and method.store.seen == 60
    assert set(method.store.all()["y"].tolist()) == {0, 1, 2}
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("setting", [{"policy": "fifo"}, {"rows": 0}, {"capacity": 0}, {"capacity": "ten"}])
def test_replay_refuses_settings_that_mean_nothing(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))}"):
        methods.Replay(**setting)


# ---- Joint ----


def test_joint_passes_over_every_row_so_far_once_an_epoch_mixed() -> None:
    spy, method = Spy(), methods.Joint()
    learner = Learner(models.mlp(3, (4,)), method + spy, scenario="class", epochs=2, batch_size=6)
    for number, labels in enumerate((["a", "b"], ["c"], ["d", "a"])):
        before = len(spy.batches)
        learner.learn(Task(telling(labels, number, 12), name=f"task {number}"))
        own = spy.batches[before:]
        assert len(own) == 2 * 2 * (number + 1)
        for epoch in (own[: len(own) // 2], own[len(own) // 2 :]):
            seen = Counter(int(row) for batch in epoch for row in batch.x[:, 2])
            assert seen == Counter(task * 1000 + i for task in range(number + 1) for i in range(12))
            assert number == 0 or any(len(set(batch.task.tolist())) > 1 for batch in epoch)
        for batch in own:
            labels_of = [learner.classes[column] for column in batch.columns.tolist()]
            assert labels_of == [chr(int(x[0])) for x in batch.x]
    assert method.store.seen == 36


def test_each_seed_has_an_order_of_its_own_and_so_has_each_epoch() -> None:
    orders = []
    for seed in (0, 0, 1):
        spy = Spy()
        learner = Learner(models.mlp(3, (4,)), spy, scenario="class", epochs=2, batch_size=6, seed=seed)
        learner.learn(Task(telling(["a", "b"], 0, 12)))
        orders.append([int(row) for batch in spy.batches for row in batch.x[:, 2]])
    assert orders[0] == orders[1] != orders[2]
    assert orders[0][:12] != orders[0][12:]


def test_the_distillation_oracle_is_torchs_cross_entropy() -> None:
    scores, teacher = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    expected = F.cross_entropy(scores / 2, (teacher / 2).softmax(1)) * 4
    torch.testing.assert_close(cross_entropy(scores, teacher, 2.0), expected)


class OneByOne(torch.utils.data.Dataset[Any]):
    """Rows that are read one at a time."""

    def __init__(self, label: int, rows: int) -> None:
        self.label, self.rows = label, rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return torch.full((12,), float(self.label)), self.label


def test_a_batch_of_stored_rows_alone_is_learnt_from_a_dataset_too() -> None:
    spy = Spy()
    learner = mlp_learner(methods.Joint() + spy, epochs=2)
    learner.learn(Task(OneByOne(0, 64)))
    learner.learn(Task(OneByOne(1, 3)))
    assert any(bool((batch.task == 0).all()) for batch in spy.batches[16:])
    assert learner.classes == [0, 1]


class Mean(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(3, 2)

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        scores: Tensor = self.fc(x["frames"].sum(1))
        return scores


@pytest.mark.parametrize("method", [methods.Replay(20), methods.Joint()], ids=["replay", "joint"])
def test_stored_float_inputs_of_other_lengths_are_padded_with_zeros(method: Method) -> None:
    spy = Spy()
    learner = Learner(models.adapt(Mean()), method + spy, scenario="class", batch_size=8)
    for number, length in enumerate((4, 6, 2)):
        learner.learn(Task(({"frames": torch.ones(16, length, 3)}, [number] * 16), name=str(number)))
    lengths = (4, 6, 2)
    for batch in spy.batches:
        assert isinstance(batch.x, dict)
        assert batch.x["frames"].sum((1, 2)).tolist() == [3 * lengths[number] for number in batch.task.tolist()]
