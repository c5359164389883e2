"""ER-ACE, DER and DER++: the losses written out from the papers, in our loop and in one of the user's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from conftest import small_stream
from torch import Tensor, nn

from perdure import Callback, Learner, Rows, Task, methods, models
from perdure.data import Batch
from perdure.method import Host, Method


@dataclass(eq=False)
class Witness(Method):
    """Keeps each batch, the gradient of its loss, and how to work out scores as the model was before the step."""

    name: ClassVar[str] = "witness"
    check: Callable[[Host, Batch, dict[str, Tensor]], None] | None = None
    batches: list[Batch] = field(default_factory=list)

    def project(self, host: Host, batch: Batch) -> None:
        self.batches.append(batch)
        if self.check is not None:
            self.check(host, batch, {name: p.grad.clone() for name, p in host.params().items() if p.grad is not None})


def learner(method: Method, scenario: str = "class", **settings: Any) -> Learner:
    """A network without dropout and batch norm, so that a forward pass can be made again."""
    defaults = {"batch_size": 8, "optimizer": {"name": "sgd", "lr": 0.05}, "seed": 1}
    return Learner(models.mlp(12, (9,)), method, scenario=scenario, **{**defaults, **settings})


def assert_gradient(host: Host, loss: Tensor, found: dict[str, Tensor]) -> None:
    names = list(found)
    expected = torch.autograd.grad(loss, [host.params()[name] for name in names])
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def surprise(scores: Tensor, among: list[int], label: int) -> Tensor:
    """-log softmax(s[among])[label], of one row, written out."""
    return torch.logsumexp(scores[torch.tensor(among)], 0) - scores[label]


# ---- ER-ACE ----


@pytest.mark.parametrize("rows", [None, 5])
@pytest.mark.parametrize(("batch_size", "accumulate"), [(8, 1), (4, 2)])
def test_new_rows_compete_among_the_labels_of_their_batch_and_replayed_rows_among_all(
    batch_size: int, accumulate: int, rows: int | None
) -> None:
    seen: list[tuple[int, int]] = []

    def check(host: Host, batch: Batch, found: dict[str, Tensor]) -> None:
        scores, labels = host.model(batch.x), batch.columns.tolist()
        new = [i for i in range(len(batch)) if batch.fresh[i]]
        present = sorted({labels[i] for i in new}) if host.clock.task else list(range(scores.shape[1]))
        everything = list(range(scores.shape[1]))
        each = [surprise(scores[i], present if i in new else everything, labels[i]) for i in range(len(batch))]
        assert_gradient(host, torch.stack(each).mean(), found)
        seen.append((len(present), len(batch) - len(new)))

    method = methods.ErACE(40, rows=rows)
    stream = small_stream(tasks=3, classes=6, rows=24)
    found = learner(method + Witness(check), batch_size=batch_size, accumulate=accumulate, epochs=2)
    for task in stream:
        found.learn(task)
    assert len(seen) == 18 and all(replayed == 0 for _, replayed in seen[:6])
    assert all(replayed == (rows or 8) for _, replayed in seen[6:])
    assert any(present < 6 for present, _ in seen)  # a batch's labels, not those of the task


def test_er_ace_replays_rows_of_the_open_task_too_but_nothing_in_the_first() -> None:
    witness = Witness()
    found = learner(methods.ErACE(1000) + witness, epochs=2)
    for task in small_stream(rows=24):
        found.learn(task)
    replayed = [set(batch.task[~batch.fresh].tolist()) for batch in witness.batches]
    assert replayed[:6] == [set()] * 6
    assert set().union(*replayed[6:12]) == {0, 1}
    assert set().union(*replayed[12:]) == {0, 1, 2}


def test_batches_of_one_label_teach() -> None:
    def check(host: Host, batch: Batch, found: dict[str, Tensor]) -> None:
        if host.columns > 1:
            assert any(gradient.any() for gradient in found.values())

    wide = learner(methods.ErACE(100) + Witness(check), batch_size=1)
    wide.learn(Task(Rows(torch.randn(16, 12), [0, 1] * 8)))  # nothing is replayed: all labels compete
    found = learner(methods.ErACE(100) + Witness(check), epochs=2)
    for label in range(3):
        found.learn(Task(Rows(torch.randn(16, 12), [label] * 16), name=str(label)))
    assert found.classes == [0, 1, 2]


# ---- DER and DER++ ----


@dataclass(eq=False)
class Diary(Callback):
    """What the model says of each row of a task when the task has ended, by the bytes of the row."""

    said: dict[bytes, Tensor] = field(default_factory=dict)

    def after_task(self, learner: Learner, task: Task) -> None:
        x = task.train.read(torch.arange(len(task.train)))
        with torch.no_grad():
            scores = learner.model.eval()(x)
        learner.model.train()
        self.said |= {one.numpy().tobytes(): s for one, s in zip(x, scores, strict=True)}


def dense_stream(scenario: str, tasks: int = 3) -> list[Task]:
    draws = torch.Generator().manual_seed(5)
    names = [["a", "b"]] * tasks if scenario == "domain" else [[f"{t}a", f"{t}b"] for t in range(tasks)]

    def rows(t: int) -> Rows:
        x = torch.randn(24, 12, generator=draws)
        return Rows(x, (x[:, t : t + 2] > 0).float(), classes=names[t])

    return [Task(rows(t), name=f"task {t}") for t in range(tasks)]


def dark(host: Host, batch: Batch, said: dict[bytes, Tensor], alpha: float, beta: float) -> Tensor:
    """mean CE(new) + alpha mean |s - z|^2 / columns over one draw + beta mean CE over another, row by row."""
    scores = host.model(batch.x)
    losses: dict[int, list[Tensor]] = {0: [], 1: [], 2: []}
    for i in range(len(batch)):
        origin = 0 if batch.origin is None else int(batch.origin[i])
        if origin == 1:
            kept = said[batch.x[i].numpy().tobytes()]
            answers = len(kept)
            if not host.objective.dense:  # columns opened since, which the row may answer with, scored 0
                answers = scores.shape[1] if batch.allowed is None else len(kept)
            kept = F.pad(kept, (0, answers - len(kept)))
            losses[1].append(
                sum(((scores[i, c] - kept[c]) ** 2 for c in range(answers)), scores.new_zeros(())) / answers
            )
        elif not host.objective.dense:
            among = range(scores.shape[1]) if batch.allowed is None else batch.allowed[i].nonzero()[:, 0].tolist()
            losses[origin].append(surprise(scores[i], list(among), int(batch.columns[i])))
        else:
            s = scores[i, batch.columns[i]]
            square = host.objective.name == "regression"
            each = (
                (s - batch.y[i]) ** 2 if square else F.binary_cross_entropy_with_logits(s, batch.y[i], reduction="none")
            )
            losses[origin].append(each.mean())
    new, scored, named = ([torch.stack(part).mean()] if part else [] for part in losses.values())
    return sum([*new, *(alpha * loss for loss in scored), *(beta * loss for loss in named)])


MADE = {
    "der": (lambda **settings: methods.DER(15, alpha=0.7, **settings), 0.7, 0.0),
    "derpp": (lambda **settings: methods.DERpp(15, alpha=0.7, beta=0.3, **settings), 0.7, 0.3),
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize(
    ("scenario", "objective"),
    [("class", "classification"), ("task", "classification"), ("domain", "classification"), ("class", "multi-label"),
     ("task", "regression"), ("domain", "multi-label"), ("domain", "regression")],
)  # fmt: skip
@pytest.mark.parametrize(("batch_size", "accumulate", "rows"), [(8, 1, None), (4, 2, 5)])
def test_the_gradient_is_that_of_the_formula(
    name: str, scenario: str, objective: str, batch_size: int, accumulate: int, rows: int | None
) -> None:
    diary, seen = Diary(), []
    make, alpha, beta = MADE[name]

    def check(host: Host, batch: Batch, found: dict[str, Tensor]) -> None:
        assert_gradient(host, dark(host, batch, diary.said, alpha, beta), found)
        seen.append([0 if batch.origin is None else int((batch.origin == part).sum()) for part in (1, 2)])

    found = learner(
        make(rows=rows) + Witness(check), scenario, objective=objective, batch_size=batch_size,
        accumulate=accumulate, epochs=2, callbacks=[diary],
    )  # fmt: skip
    for task in small_stream(rows=24) if objective == "classification" else dense_stream(scenario):
        found.learn(task)
    assert len(seen) == 18 and seen[:6] == [[0, 0]] * 6
    assert all(0 < scored <= (rows or 8) for scored, _ in seen[6:])  # of 15 rows, fewer and fewer are of earlier tasks
    assert all(named == (scored if name == "derpp" else 0) for scored, named in seen[6:])


def test_derpp_draws_twice() -> None:
    witness = Witness()
    found = learner(methods.DERpp(100) + witness)
    for task in small_stream(tasks=2, rows=48):
        found.learn(task)
    for batch in witness.batches[6:]:
        first, second = (sorted(batch.x[batch.origin == part].tolist()) for part in (1, 2))
        assert len(first) == len(second) == 8 and first != second


def test_rows_of_a_part_before_make_one_mean_with_the_new_rows() -> None:
    method, witness = methods.DERpp(100, rows=8), Witness()
    found = learner(methods.Replay(30, rows=4) + method + witness)
    for task in small_stream(tasks=2, rows=24):
        found.learn(task)
    batch = witness.batches[-1]
    assert torch.bincount(batch.origin).tolist() == [8, 4, 8, 8]
    share = {part: batch.weight[batch.origin == part] / len(batch) for part in range(4)}
    for part, expected in ((0, 1 / 12), (1, 1 / 12), (2, 0.0), (3, 0.5 / 8)):
        torch.testing.assert_close(share[part], torch.full_like(share[part], expected))


@pytest.mark.parametrize("norm", [False, True])
def test_stored_scores_are_those_of_the_end_of_the_task_in_eval_mode(norm: bool) -> None:
    method, diary = methods.DER(30), Diary()
    model = models.mlp(12, (9,), norm=norm, dropout=0.2)
    found = Learner(model, method, scenario="class", epochs=3, batch_size=8, callbacks=[diary])
    for number, task in enumerate(small_stream(rows=24)):
        found.learn(task)
        kept = method.store.all()
        assert kept["scores"].shape == (min(30, 24 * (number + 1)), 2 * (number + 1))
        for x, scores in zip(kept["x"], kept["scores"], strict=True):
            said = diary.said[x.numpy().tobytes()]
            torch.testing.assert_close(scores[: len(said)], said)
            assert scores[len(said) :].isnan().all()
    assert method.store.seen == 72  # each row was offered once


def test_the_forward_pass_over_the_stored_rows_is_counted() -> None:
    scored, plain = learner(methods.DER(10)), learner(methods.Finetune())
    for found in (scored, plain):
        found.learn(small_stream(rows=24)[0])
    assert scored.cost.multiply_adds - plain.cost.multiply_adds == 10 * (12 * 9 + 9 * 2)


def test_consolidation_without_training_keeps_scores_too() -> None:
    method = methods.DERpp(10)
    model = models.adapt(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2)), head="2", classes=[0, 1])
    found = Learner(model, method, scenario="class", batch_size=8)
    task, other = small_stream(tasks=2, rows=24)
    found.consolidate(task.train)
    kept = method.store.all()
    torch.testing.assert_close(kept["scores"], model.eval()(kept["x"]).detach())
    found.learn(other)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_store_whose_old_rows_have_all_given_way_replays_nothing() -> None:
    method, witness = methods.DERpp(1), Witness()
    found = learner(method + witness)
    few, many = small_stream(tasks=2, rows=8)[0], small_stream(tasks=2, rows=160)[1]
    found.learn(few)
    found.learn(many)
    replayed = [int((~batch.fresh).sum()) for batch in witness.batches]
    assert 2 in replayed and replayed[-1] == 0
    assert method.store.all()["task"].tolist() == [1]


@pytest.mark.parametrize("make", [methods.DER, methods.DERpp])
@pytest.mark.parametrize("setting", [{"alpha": -1.0}, {"alpha": math.nan}, {"rows": 0}, {"policy": "fifo"}])
def test_settings_that_mean_nothing_are_refused(make: Any, setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))}"):
        make(**setting)
    with pytest.raises(ValueError, match="beta is -1"):
        methods.DERpp(beta=-1)


# ---- augmentation ----


@pytest.mark.parametrize("make", [methods.Replay, methods.ErACE, methods.DER, methods.DERpp])
def test_a_stored_row_is_augmented_anew_whenever_it_is_drawn_and_stays_raw_in_the_store(make: Any) -> None:
    """Each row's first feature is its number, the second is moved by chance."""

    def jitter(x: Any, draws: torch.Generator) -> Any:
        moved = x.clone()
        moved[:, 1] += torch.rand(len(x), generator=draws)
        return moved

    def rows(first: int, labels: tuple[int, int]) -> Rows:
        x = torch.zeros(16, 12)
        x[:, 0] = torch.arange(first, first + 16)
        return Rows(x, [labels[i % 2] for i in range(16)])

    method, witness = make(16), Witness()
    found = learner(method + witness, epochs=4, augment=jitter)
    found.learn(Task(rows(0, (0, 1)), name="one"))
    found.learn(Task(rows(16, (2, 3)), name="two"))
    drawn: dict[int, list[float]] = {}
    for batch in witness.batches:
        for x, fresh in zip(batch.x.tolist(), batch.fresh.tolist(), strict=True):
            if not fresh:
                drawn.setdefault(int(x[0]), []).append(x[1])
    assert max(map(len, drawn.values())) > 1
    assert all(len(set(moves)) == len(moves) for moves in drawn.values())
    assert not method.store.all()["x"][:, 1].any()


@pytest.mark.parametrize("name", MADE)
def test_augmented_rows_are_held_to_the_scores_of_the_rows_as_they_are(name: str) -> None:
    """The stored scores stay, whatever view of the row is drawn."""
    diary, (make, alpha, beta) = Diary(), MADE[name]
    seen = []

    def flip(x: Any, draws: torch.Generator) -> Any:
        signs = torch.randint(2, (len(x), 1), generator=draws) * 2 - 1
        return x * signs

    def check(host: Host, batch: Batch, found: dict[str, Tensor]) -> None:
        either_way = diary.said | {(-torch.frombuffer(bytearray(x), dtype=torch.float32)).numpy().tobytes(): said
                                   for x, said in diary.said.items()}  # fmt: skip
        assert_gradient(host, dark(host, batch, either_way, alpha, beta), found)
        seen.extend(one.numpy().tobytes() in diary.said for one in batch.x[~batch.fresh])

    found = learner(make() + Witness(check), epochs=2, augment=flip, callbacks=[diary])
    for task in small_stream(rows=24):
        found.learn(task)
    assert any(seen) and not all(seen)


# ---- a loop of the user's own ----


def own_loop(method: Method, tasks: list[Task], weigh: bool = True, check: Any = None) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    memory = methods.attach(method, model, optimizer)
    for number, task in enumerate(tasks):
        memory.begin()
        for index in torch.arange(len(task.train)).split(8):
            x = task.train.read(index)
            y = task.train.positions(range(6))[index]
            x, y = memory.replay(x, y)
            out = model(x)
            each = F.cross_entropy(out, y, reduction="none")
            loss = (each * memory.weight).mean() if weigh else each.mean()
            loss = loss + memory.penalty(out)
            if check is not None:
                check(number, model, x, y, loss)
            optimizer.zero_grad()
            loss.backward()
            memory.project()
            optimizer.step()
            memory.after_step(out)
        memory.consolidate(task.train)
        if check is not None:
            check.said |= {one.numpy().tobytes(): model(one[None])[0].detach()
                           for one in task.train.read(torch.arange(len(task.train)))}  # fmt: skip
    return model


@pytest.mark.parametrize("name", MADE)
def test_in_a_loop_of_the_users_own_the_loss_is_the_formula_too(name: str) -> None:
    make, alpha, beta = MADE[name]

    class Check:
        said: ClassVar[dict[bytes, Tensor]] = {}
        steps = 0

        def __call__(self, number: int, model: nn.Module, x: Tensor, y: Tensor, loss: Tensor) -> None:
            new, past = (x[:8], y[:8]), x[8:]
            expected = F.cross_entropy(model(new[0]), new[1])
            assert (len(past) > 0) == (number > 0)
            if number:
                draw = len(past) if name == "der" else len(past) // 2
                kept = torch.stack([self.said[one.numpy().tobytes()] for one in past[:draw]])
                expected = expected + alpha * F.mse_loss(model(past[:draw]), kept)
                if name == "derpp":
                    expected = expected + beta * F.cross_entropy(model(past[draw:]), y[8 + draw :])
            torch.testing.assert_close(loss, expected)
            self.steps += 1

    check = Check()
    check.said.clear()
    own_loop(make(), small_stream(rows=24), check=check)
    assert check.steps == 9


@pytest.mark.parametrize("method", [methods.DERpp(10), methods.Replay(10) + methods.DER(10)], ids=["alone", "composed"])
def test_a_loop_that_forgets_the_weights_is_stopped_at_its_first_step(method: Method) -> None:
    with pytest.raises(RuntimeError, match=r"weighs rows.*memory\.weight"):
        own_loop(method, small_stream(rows=24), weigh=False)


def test_a_method_that_weighs_nothing_needs_no_weights_and_says_that_all_are_one() -> None:
    own_loop(methods.Replay(10), small_stream(rows=24), weigh=False)
    with_weights = own_loop(methods.Replay(10), small_stream(rows=24))
    without = own_loop(methods.Replay(10), small_stream(rows=24), weigh=False)
    for a, b in zip(with_weights.parameters(), without.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_er_ace_owns_its_loss_and_needs_our_loop() -> None:
    with pytest.raises(ValueError, match="er-ace owns `task_loss`, so it needs our loop"):
        own_loop(methods.ErACE(10), small_stream(rows=24))
