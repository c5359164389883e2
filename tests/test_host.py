"""A method in somebody else's loop."""

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import small_stream
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from perdure import Learner, Rows, Task, methods, models
from perdure.method import Method

Batches = list[tuple[Tensor, Tensor]]
criterion = nn.CrossEntropyLoss()


def rows_of(task: Task) -> tuple[Tensor, Tensor]:
    return task.train.read(torch.arange(len(task.train))), torch.tensor(task.train.labels)


def batches_of(task: Task, seed: int = 0, size: int = 10) -> Batches:
    x, y = rows_of(task)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).split(size)
    return [(x[index], y[index]) for index in order]


def network(seed: int = 0, columns: int = 6, norm: bool = False) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        middle = [nn.BatchNorm1d(16)] if norm else []
        return nn.Sequential(nn.Linear(12, 16), *middle, nn.ReLU(), nn.Linear(16, columns))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.02)


def printed(memory: Any, model: nn.Module, optimizer: torch.optim.Optimizer, loader: Any) -> None:
    """The loop as the README prints it."""
    memory.begin()
    for x, y in loader:
        x, y = memory.replay(x, y)
        out = model(x)
        loss = criterion(out, y) + memory.penalty(out)
        optimizer.zero_grad()
        loss.backward()
        memory.project()
        optimizer.step()
        memory.after_step(out)
    memory.consolidate(loader)


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, loader: Any) -> None:
    """The same loop without it."""
    for x, y in loader:
        out = model(x)
        loss = criterion(out, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def trained(make: Callable[[], Method] | None, seed: int, norm: bool = False) -> tuple[nn.Module, Any]:
    """Three tasks of two new classes each."""
    model = network(seed, norm=norm)
    optimizer = adam(model)
    memory = methods.attach(make(), model, optimizer, seed=seed) if make else None
    for task in small_stream(rows=240, seed=100 * seed):
        loader = batches_of(task, seed)
        if memory:
            printed(memory, model, optimizer, loader)
        else:
            plain(model, optimizer, loader)
    return model, memory


@torch.no_grad()
def average_accuracy(model: nn.Module, seed: int) -> float:
    model.eval()
    grades = []
    for task in small_stream(rows=240, seed=100 * seed):
        assert task.test is not None
        scores = model(task.test.read(torch.arange(240)))
        grades.append(float((scores.argmax(1) == torch.tensor(task.test.labels)).float().mean()))
    return sum(grades) / len(grades)


@functools.cache
def without(seed: int) -> float:
    return average_accuracy(trained(None, seed)[0], seed)


# ---- it works ----


@pytest.mark.parametrize(
    ("make", "wins"),
    [
        (lambda: methods.LwF() + methods.Replay(2000), True),
        (lambda: methods.Replay(30, policy="balanced"), True),
        (lambda: methods.Replay(30) + methods.EWC(rows=64), True),
        (lambda: methods.LwF(strength=0.0) + methods.EWC(strength=0.0), False),
    ],
    ids=["lwf+replay", "balanced", "replay+ewc", "mutant"],
)
def test_the_printed_loop_beats_the_same_loop_without_it(make: Callable[[], Method], wins: bool) -> None:
    lead = torch.tensor([average_accuracy(trained(make, s)[0], s) - without(s) for s in range(5)])
    assert (float(lead.mean()) > 3 * float(lead.std()) / 5**0.5) == wins


@pytest.mark.parametrize(("known", "columns"), [(False, [0, 1]), (True, [0, 1, 2, 3, 4, 5])])
def test_lwf_is_taught_the_known_columns_by_the_model_as_it_stood_at_begin(known: bool, columns: list[int]) -> None:
    model = network(norm=True)
    optimizer = adam(model)
    memory = methods.attach(methods.LwF(temperature=1.0), model, optimizer, trained=known)
    first, second, _ = (batches_of(task) for task in small_stream(rows=40))
    if not known:
        memory.begin()
        x, y = memory.replay(*first[0])
        assert memory.penalty(model(x)) == 0.0  # nothing is known yet
        memory.project()
        memory.after_step(model(x))
        memory.consolidate(first)  # labels 0 and 1 have come
    memory.begin()
    teacher = copy.deepcopy(model).eval()
    for x, y in second:
        x, y = memory.replay(x, y)
        out = model(x)
        found = memory.penalty(out)
        target = teacher(x).detach()[:, columns].softmax(1)
        torch.testing.assert_close(found, F.cross_entropy(out[:, columns], target))
        optimizer.zero_grad()
        (criterion(out, y) + found).backward()
        memory.project()
        optimizer.step()
        memory.after_step(out)
    assert not torch.allclose(model(x), teacher(x), atol=0.01)  # they have parted


def test_the_teacher_sees_what_the_model_saw() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    memory = methods.attach(methods.LwF(temperature=1.0), model, adam(model), trained=True)
    memory.begin()
    x, _ = memory.replay(torch.randint(256, (5, 2, 2), dtype=torch.uint8), torch.arange(5) % 3)
    seen = x.flip(2).float() / 255
    out = model(seen)
    torch.testing.assert_close(memory.penalty(out, seen), F.cross_entropy(out, out.softmax(1)))


def test_a_learner_and_a_plain_loop_find_the_same_importances() -> None:
    task = small_stream(rows=40)[0]
    for make in (lambda: methods.EWC(normalise=False), lambda: methods.MAS(normalise=False), methods.EWC):
        inside, outside = make(), make()
        learner = Learner(models.mlp(12, (8,)), inside, scenario="class", batch_size=8)
        learner.learn(task)
        memory = methods.attach(outside, learner.model, adam(learner.model), trained=True)
        memory.begin()
        memory.consolidate(rows_of(task))
        assert inside.importance.keys() == outside.importance.keys()
        for name, found in inside.importance.items():
            torch.testing.assert_close(outside.importance[name], found)
            torch.testing.assert_close(outside.centre[name], inside.centre[name])


# ---- what may be consolidated on ----


def test_a_loader_and_the_rows_themselves_give_the_same_importances_and_memory() -> None:
    x, y = rows_of(small_stream(rows=40)[0])
    sources = [(x, y), Rows(x, y), TensorDataset(x, y), [(x[:15], y[:15]), (x[15:], y[15:])],
               DataLoader(TensorDataset(x, y), batch_size=8)]  # fmt: skip
    found = []
    for source in sources:
        method = methods.MAS() + methods.Replay(1000)
        model = network()
        memory = methods.attach(method, model, adam(model), trained=True)
        memory.begin()
        memory.consolidate(source)
        mas, replay = method.parts
        kept = replay.store.all()
        order = kept["x"][:, 0].argsort()
        torch.testing.assert_close(kept["x"][order], x[x[:, 0].argsort()])
        torch.testing.assert_close(kept["y"][order], y[x[:, 0].argsort()])
        found.append(mas.importance)
    for other in found[1:]:
        for name, importance in found[0].items():
            torch.testing.assert_close(other[name], importance)


def test_so_many_random_rows_of_a_loader_are_used() -> None:
    x, y = rows_of(small_stream(rows=100)[0])
    method, model = methods.Replay(1000), network()
    memory = methods.attach(method, model, adam(model))
    memory.begin()
    memory.consolidate(DataLoader(TensorDataset(x, y), batch_size=8), count=30)
    kept = method.store.all()["x"]
    assert len(kept) == 30 and all((x == row).all(1).any() for row in kept)
    assert not torch.equal(kept, x[:30])


def test_mas_consolidates_on_a_loader_without_labels() -> None:
    x, y = rows_of(small_stream(rows=40)[0])
    found = []
    for source in (x, (x, y), [x[:20], x[20:]], DataLoader(TensorDataset(x), batch_size=8)):
        method, model = methods.MAS(), network()
        memory = methods.attach(method, model, adam(model))
        memory.begin()
        memory.consolidate(source)
        found.append(method.importance["0.weight"])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_an_empty_loader_is_refused() -> None:
    model = network()
    memory = methods.attach(methods.MAS(), model, adam(model))
    memory.begin()
    with pytest.raises(ValueError, match="the loader gave no rows"):
        memory.consolidate([])


# ---- rows are offered once ----


def test_rows_are_offered_in_the_first_pass_only() -> None:
    model, method = network(), methods.Replay(1000)
    optimizer = adam(model)
    memory = methods.attach(method, model, optimizer)
    for data_set, task in enumerate(small_stream(rows=40), start=1):
        memory.begin()
        for epoch in range(3):
            for x, y in batches_of(task, epoch):
                x, y = memory.replay(x, y)
                assert len(x) == (10 if data_set == 1 else 20)
                out = model(x)
                memory.penalty(out)
                memory.project()
                memory.after_step(out)
            memory.next_epoch()
        memory.consolidate(batches_of(task))
        kept = method.store.all()["x"]
        assert method.store.seen == len(kept) == len(kept.unique(dim=0)) == 40 * data_set


def test_inputs_may_have_names() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.embedding = nn.Linear(3, 4), nn.Embedding(7, 4)

        def forward(self, x: dict[str, Tensor]) -> Tensor:
            return self.wide(x["numbers"]) + self.embedding(x["word"])

    torch.manual_seed(0)
    model = Named()
    optimizer = adam(model)
    method = methods.Replay(50) + methods.LwF() + methods.EWC(rows=20)
    memory = methods.attach(method, model, optimizer)
    draws = torch.Generator().manual_seed(1)
    x = {"numbers": torch.randn(24, 3, generator=draws), "word": torch.randint(7, (24,), generator=draws)}
    y = torch.arange(24) % 4
    loader = [({name: column[part] for name, column in x.items()}, y[part]) for part in torch.arange(24).split(8)]
    for _ in range(2):
        printed(memory, model, optimizer, loader)
    kept = method.parts[0].store.all()["x"]
    assert kept["numbers"].shape == (48, 3) and kept["word"].dtype == torch.int64
    by_row = {tuple(row.tolist()): int(word) for row, word in zip(x["numbers"], x["word"], strict=True)}
    assert all(by_row[tuple(row.tolist())] == word for row, word in zip(kept["numbers"], kept["word"], strict=True))
    assert float(method.parts[2].importance["embedding.weight"].sum()) > 0


# ---- a head that its owner widened ----


@pytest.mark.parametrize("anchor", ["latest", "mean", "each"])
def test_a_widened_head_keeps_its_importances(anchor: str) -> None:
    model = network(columns=4)
    method = methods.EWC(strength=1.0, anchor=anchor, pull="gradient", normalise=False)
    memory = methods.attach(method + methods.LwF(), model, torch.optim.SGD(model.parameters(), lr=0.1))
    first, second, third = small_stream(rows=40)
    printed(memory, model, memory.optimizer, batches_of(first))
    printed(memory, model, memory.optimizer, batches_of(second))
    before = [({n: t.clone() for n, t in f.items()}, dict(c)) for f, c in method.quadratics()]
    narrow, wide = model[2], nn.Linear(16, 6)
    with torch.no_grad():
        wide.weight[:4], wide.bias[:4] = narrow.weight, narrow.bias
    model[2] = wide
    memory.optimizer.param_groups[0]["params"] = list(model.parameters())
    memory.begin()
    assert len(before) == len(method.quadratics()) == (2 if anchor == "each" else 1)
    for (importance, centre), (old, old_centre) in zip(method.quadratics(), before, strict=True):
        for name in ("2.weight", "2.bias"):
            assert importance[name].shape == centre[name].shape == dict(model.named_parameters())[name].shape
            torch.testing.assert_close(importance[name][:4], old[name])
            torch.testing.assert_close(centre[name][:4], old_centre[name])
            assert (importance[name][4:] == 0).all()
    x, y = memory.replay(*batches_of(third)[0])
    assert float(memory.penalty(model(x)).detach()) > 0  # of the four columns that the teacher has
    memory.optimizer.zero_grad()
    criterion(model(x), y).backward()
    assert model[2].weight.grad is not None
    free = model[2].weight.grad[4:].clone()
    memory.project()
    assert torch.equal(model[2].weight.grad[4:], free)
    memory.optimizer.step()
    memory.after_step(model(x))
    memory.consolidate(rows_of(third))
    newest = method.quadratics()[-1][0]
    assert newest["2.weight"].shape == (6, 16) and float(newest["2.weight"][4:].sum()) > 0


def test_a_head_that_shrank_is_refused() -> None:
    model = network(columns=4)
    memory = methods.attach(methods.MAS(), model, adam(model))
    printed(memory, model, memory.optimizer, batches_of(small_stream(rows=20)[0]))
    model[2] = nn.Linear(16, 3)
    memory.optimizer.param_groups[0]["params"] = list(model.parameters())
    with pytest.raises(ValueError, match=r"a parameter of shape \[4, 16\] now has shape \[3, 16\]"):
        memory.begin()
