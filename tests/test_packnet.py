"""PackNet: the paper's loop written out, who owns which weight, and answers that never change again."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import blobs, small_stream
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from trees import differences, snapshot

from perdure import Callback, Learner, Rows, Task, methods, models
from perdure.method import Method
from perdure.methods import packnet
from perdure.methods.shares import FREE, NOBODYS, Shares

OPTIMIZERS = {
    "adam": {"name": "adam", "lr": 0.01},
    "momentum": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    "adamw": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
}
in_every_optimizer = pytest.mark.parametrize("optimizer", OPTIMIZERS)


def made(method: Method | None = None, **settings: Any) -> Learner:
    model = settings.pop("model", None) or models.mlp(12, (16, 10), norm=True)
    defaults = {"scenario": "task", "epochs": 3, "batch_size": 16, "optimizer": OPTIMIZERS["adam"]}
    return Learner(model, method or methods.PackNet(), **(defaults | settings))


def x_of(rows: Rows) -> Tensor:
    return rows.read(torch.arange(len(rows)))


def weights(learner: Learner) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}


def shares(learner: Learner) -> Any:
    return learner.method.shares


# ---- the paper's loop ----


def paper(
    layers: list[tuple[Tensor, Tensor]], heads: list[tuple[Tensor, Tensor]], tasks: list[tuple[Tensor, Tensor]],
    steps: int, lr: float, prune: float, retrain: float,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """Mallya & Lazebnik 2018 with plain SGD on whole tasks; what it leaves in `layers` and `heads`, masks, answers.

    `layers` (weight, bias) with ReLU, `heads` one (weight, bias) a task; all changed in place.
    """
    masks = [torch.zeros_like(w, dtype=torch.int) for w, _ in layers]
    for number, (x, y) in enumerate(tasks, 1):
        train_from, pruned = math.ceil((1 - retrain) * steps), False
        for step in range(steps + 1):
            if not pruned and (step >= train_from or step == steps):
                pruned = True
                for (w, _), mask in zip(layers, masks, strict=True):
                    free = [(float(w[i, j].abs()), i, j) for i, j in (mask == 0).nonzero().tolist()]
                    free.sort()
                    left = int(prune * len(free))
                    for _, i, j in free[:left]:
                        w[i, j] = 0
                    for _, i, j in free[left:]:
                        mask[i, j] = number
            if step == steps:
                break
            leaves = [t.requires_grad_() for pair in (*layers, heads[number - 1]) for t in pair]
            h = x
            for w, b in layers:
                h = (h @ w.T + b).relu()
            loss = F.cross_entropy(h @ heads[number - 1][0].T + heads[number - 1][1], y)
            grads = torch.autograd.grad(loss, leaves)
            for leaf in leaves:
                leaf.requires_grad_(False)
            for k, (w, b) in enumerate(layers):
                live = masks[k] == number if pruned else masks[k] == 0
                w -= lr * grads[2 * k] * live
                b -= lr * grads[2 * k + 1] * (number == 1)
            for leaf, grad in zip(heads[number - 1], grads[-2:], strict=True):
                leaf -= lr * grad
    answers = []
    for number, (x, _) in enumerate(tasks, 1):
        h = x
        for (w, b), mask in zip(layers, masks, strict=True):
            h = (h @ (w * ((mask > 0) & (mask <= number))).T + b).relu()
        answers.append((h @ heads[number - 1][0].T + heads[number - 1][1]).softmax(1))
    return masks, answers


@pytest.mark.parametrize(("prune", "retrain"), [(0.5, 0.5), (0.75, 0.33), (0.6, 0.0)])
def test_it_is_the_papers_loop(prune: float, retrain: float) -> None:
    stream = small_stream(tasks=3, rows=32)
    learner = made(
        methods.PackNet(prune=prune, retrain=retrain), model=models.mlp(12, (7, 5)), steps=10, batch_size=32,
        optimizer={"name": "sgd", "lr": 0.2},
    )  # fmt: skip
    start = weights(learner)
    layers = [(start["body.1.weight"], start["body.1.bias"]), (start["body.3.weight"], start["body.3.bias"])]
    grown = made(model=models.mlp(12, (7, 5)))
    grown.open_ahead(stream)
    rows = weights(grown)
    heads = [(rows["head.weights.0"][2 * t : 2 * t + 2], rows["head.biases.0"][2 * t : 2 * t + 2]) for t in range(3)]
    tasks = [(x_of(task.train), task.train.positions(task.classes)) for task in stream]
    masks, answers = paper(layers, heads, tasks, 10, 0.2, prune, retrain)
    for task in stream:
        learner.learn(task)
    found = weights(learner)
    for place, layer in enumerate(("body.1", "body.3")):
        assert torch.equal(shares(learner).owner[f"{layer}.weight"].int(), masks[place])
        assert torch.equal(found[f"{layer}.weight"] == 0, layers[place][0] == 0)
        torch.testing.assert_close(found[f"{layer}.weight"], layers[place][0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found[f"{layer}.bias"], layers[place][1], atol=1e-5, rtol=1e-4)
    for t, (weight, bias) in enumerate(heads):
        torch.testing.assert_close(found["head.weights.0"][2 * t : 2 * t + 2], weight, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found["head.biases.0"][2 * t : 2 * t + 2], bias, atol=1e-5, rtol=1e-4)
    for task, answer in zip(stream, answers, strict=True):
        given = learner.predict_proba(x_of(task.train), task=task)
        torch.testing.assert_close(given, answer, atol=1e-5, rtol=1e-4)


# ---- who owns what ----


@pytest.mark.parametrize("prune", [0.75, 0.5, 0.31])
def test_after_every_task_the_floor_of_prune_times_the_free_weights_of_each_layer_is_free(prune: float) -> None:
    method = methods.PackNet(prune=prune)
    learner = made(method, epochs=1, model=models.mlp(12, (7, 5), norm=True))
    assert method.free == {}
    left = {"body.1.weight": 84, "body.4.weight": 35}
    for place, task in enumerate(small_stream(tasks=4, rows=32), 1):
        learner.learn(task)
        before, left = left, {name: int(prune * count) for name, count in left.items()}
        assert method.free == left
        found = weights(learner)
        for name, owner in method.shares.owner.items():
            assert int((owner == place).sum()) == before[name] - left[name]
            assert torch.equal(found[name] == 0, owner == FREE)
    assert method.shares.rows.tolist() == [1, 1, 2, 2, 3, 3, 4, 4] + [NOBODYS] * 8


def test_memory_is_a_byte_a_weight_and_the_values_that_are_owned() -> None:
    learner = made(model=models.mlp(12, (16,), norm=True))
    for owned, task in zip((192 - 144, 192 - 108), small_stream(tasks=2), strict=True):
        learner.learn(task)
        columns = learner.columns
        kept = 4 * (owned + 3 * 16 + columns * 17)
        statistics = 4 * (2 * 16) + 8
        assert learner.cost.memory_bytes == 192 + 16 + kept + statistics


class Sees(Callback):
    """Notes whether the method has pruned, and the weights, after each step."""

    def __init__(self) -> None:
        self.pruned: list[bool] = []
        self.weights: list[dict[str, Tensor]] = []

    def after_step(self, learner: Learner) -> None:
        self.pruned.append(learner.method.pruned)
        self.weights.append(weights(learner))


@pytest.mark.parametrize(
    ("retrain", "settings", "unpruned"),
    [(0.33, {"steps": 10}, 7), (0.5, {"steps": 10}, 5), (0.25, {"epochs": 2}, 6), (0.0, {"steps": 10}, 10)],
)
def test_the_last_share_of_the_steps_retrains_what_pruning_left(
    retrain: float, settings: dict[str, int], unpruned: int
) -> None:
    sees = Sees()
    learner = made(methods.PackNet(retrain=retrain), callbacks=[sees], **settings)
    for task in small_stream(tasks=2, rows=64):  # 4 batches
        learner.learn(task)
        assert sees.pruned == [False] * unpruned + [True] * (len(sees.pruned) - unpruned)
        assert learner.method.pruned
        owner = shares(learner).owner["body.1.weight"]
        own = owner == learner.clock.task
        for pruned, seen in zip(sees.pruned, sees.weights, strict=True):
            assert bool((seen["body.1.weight"][owner == FREE] == 0).all()) == pruned
        if 0 < unpruned < len(sees.pruned):
            before, after = sees.weights[unpruned]["body.1.weight"][own], sees.weights[-1]["body.1.weight"][own]
            assert (before != after).float().mean() > 0.9
        sees.pruned, sees.weights = [], []


@in_every_optimizer
def test_what_is_frozen_and_what_is_pruned_stays_to_the_bit_after_every_step(optimizer: str) -> None:
    sees = Sees()
    learner = made(callbacks=[sees], optimizer=OPTIMIZERS[optimizer], clip=1.0)
    stream = small_stream(tasks=4, rows=64)
    learner.open_ahead(stream)
    for number, task in enumerate(stream):
        before, free = weights(learner), {n: o == FREE for n, o in shares(learner).owner.items()}
        rows = torch.tensor([number * 2 <= row < number * 2 + 2 for row in range(16)])
        sees.pruned, sees.weights = [], []
        learner.learn(task)
        for pruned, seen in zip(sees.pruned, sees.weights, strict=True):
            for name, old in before.items():
                if name in free:
                    assert torch.equal(seen[name][~free[name]], old[~free[name]])
                    assert not pruned or not seen[name][shares(learner).owner[name] == FREE].any()
                elif name.startswith("head"):
                    assert torch.equal(seen[name][~rows], old[~rows])
                    assert not torch.equal(seen[name][rows], old[rows])
                else:
                    assert number == 0 or torch.equal(seen[name], old)
        assert len(learner.optimizer.state) == 0  # of frozen and pruned weights nothing is left to move them
        if number:
            moved = sees.weights[0]["body.1.weight"] != before["body.1.weight"]
            assert moved[free["body.1.weight"]].float().mean() > 0.5  # some units are dead


def test_clipping_counts_only_what_may_move() -> None:
    norms: list[tuple[float, float]] = []

    class Looks(Method):
        name = "looks"

        def project(self, host: Any, batch: Any) -> None:
            owner = method.shares.owner["body.1.weight"]
            grad = host.model.body[1].weight.grad
            norms.append((float(grad[owner != FREE].abs().sum()), float(host.model.body[1].bias.grad.abs().sum())))

    method = methods.PackNet(retrain=0)
    learner = made(method + Looks(), model=models.mlp(12, (8,)))
    learner.learn(small_stream()[0])
    assert all(bias > 0 for _, bias in norms)
    norms.clear()
    learner.learn(small_stream()[1])
    assert norms and all(pair == (0, 0) for pair in norms)


# ---- answers ----


def convolutional() -> nn.Module:
    return models.convnet((1, 8, 8), (4, 6))


def adapted() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        body = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(0.2))
        return models.adapt(nn.Sequential(body, nn.Linear(12, 3)), head="1")


def perceptron() -> nn.Module:
    return models.mlp(64, (20, 12), norm=True, dropout=0.1)


def images(tasks: int = 4, classes: int = 2, rows: int = 48) -> list[Task]:
    def part(task: int, seed: int) -> Rows:
        found = blobs(tuple(range(task * classes, (task + 1) * classes)), rows, seed + task, features=64)
        return Rows(x_of(found).view(-1, 1, 8, 8), found.labels)

    return [Task(part(t, 0), part(t, 50), name=f"task {t}") for t in range(tasks)]


@in_every_optimizer
@pytest.mark.parametrize("network", [perceptron, convolutional, adapted])
def test_outputs_of_a_task_are_the_same_bits_after_all_later_tasks(network: Any, optimizer: str) -> None:
    stream = images(tasks=5, classes=4)  # 20 columns: the head opens a second block
    learner = made(model=network(), optimizer=OPTIMIZERS[optimizer], epochs=2)
    outputs: list[tuple[Tensor, Tensor]] = []

    def answer(number: int) -> tuple[Tensor, Tensor]:
        x = x_of(stream[number].test)
        with torch.no_grad(), models.evaluating(learner.model):
            return learner.method.predict(learner, x, number), learner.method.features(learner, x, number)

    for number, task in enumerate(stream):
        learner.learn(task)
        with torch.no_grad(), models.evaluating(learner.model):
            live = learner.model(x_of(task.test))
        outputs.append(answer(number))
        torch.testing.assert_close(outputs[-1][0][:, 4 * number :], live[:, 4 * number :])
        for earlier, (scores, features) in enumerate(outputs):
            found, seen = answer(earlier)
            assert found.shape == (48, 4 * (number + 1)) and not found[:, 4 * (earlier + 1) :].any()
            assert torch.equal(found[:, : scores.shape[1]], scores)
            assert torch.equal(seen, features)
    assert learner.model.head.columns == 20
    grades = learner.evaluate(stream)
    assert sum(grades) / 5 > 0.5  # of four answers


def test_later_tasks_build_on_the_weights_of_earlier_ones_and_not_the_other_way_round() -> None:
    stream = small_stream(tasks=2)
    learner = made(model=models.mlp(12, (16,)))
    for task in stream:
        learner.learn(task)
    first, second = (learner.predict_proba(x_of(task.test), task=task) for task in stream)
    kept, owner = shares(learner).kept, shares(learner).owner["body.1.weight"]
    owned = owner[owner != FREE]
    assert kept["body.1.weight"].shape == owned.shape
    kept["body.1.weight"][owned == 2] += 1
    assert torch.equal(first, learner.predict_proba(x_of(stream[0].test), task=stream[0]))
    assert not torch.equal(second, learner.predict_proba(x_of(stream[1].test), task=stream[1]))
    kept["body.1.weight"][owned == 2] -= 1
    kept["body.1.weight"][owned == 1] += 1
    assert not torch.equal(second, learner.predict_proba(x_of(stream[1].test), task=stream[1]))


def test_batch_norm_learns_in_the_first_task_only_and_the_modes_are_given_back() -> None:
    modes: list[list[bool]] = []

    class Modes(Callback):
        def after_step(self, learner: Learner) -> None:
            modes.append([module.training for module in learner.model.modules()])

    norm_modes: list[bool] = []
    learner = made(model=models.mlp(12, (8,), norm=True, dropout=0.3), callbacks=[Modes()])
    norm, dropout = learner.model.body[2], learner.model.body[4]
    hooks = [m.register_forward_hook(lambda m, *_: norm_modes.append(m.training)) for m in (norm, dropout)]
    stream = small_stream(tasks=2, rows=32)
    learner.learn(stream[0])
    assert norm_modes.count(True) == 12 and norm.num_batches_tracked == 6
    before = {name: tensor.clone() for name, tensor in learner.model.named_buffers()}
    hooks.pop(0).remove()
    norm_modes.clear()
    hooks.append(norm.register_forward_hook(lambda m, *_: norm_modes.append("norm" if m.training else "still")))
    norm.eval()  # flags as a user may have set them
    learner.learn(stream[1])
    assert "norm" not in norm_modes and norm_modes.count("still") >= 6 and norm_modes.count(True) == 6
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.model.named_buffers())
    assert all(all(flags) for flags in modes)
    assert not norm.training and dropout.training


# ---- what may happen on the way ----


class Stop(RuntimeError):
    pass


class Stops(Callback):
    """Saves after a step, and raises there or in the middle of the next."""

    def __init__(self, at: int, path: Any) -> None:
        self.at, self.path = at, path

    def after_step(self, learner: Learner) -> None:
        if learner.clock.step == self.at:
            learner.save(self.path)
            raise Stop


@in_every_optimizer
@pytest.mark.parametrize("step", [5, 8, 10])  # 12 steps a task; pruned before the tenth
def test_stopped_before_and_after_pruning_and_resumed_equals_never_stopped(
    optimizer: str, step: int, tmp_path: Any
) -> None:
    stream = small_stream(tasks=3, rows=64)
    unbroken = made(optimizer=OPTIMIZERS[optimizer])
    broken = made(optimizer=OPTIMIZERS[optimizer], callbacks=[Stops(12 + step, tmp_path / "file")])
    for task in stream:
        unbroken.learn(task)
    broken.learn(stream[0])
    with pytest.raises(Stop):
        broken.learn(stream[1])
    resumed = Learner.load(tmp_path / "file")
    assert resumed.method.pruned == (step == 10)
    broken.callbacks.clear()
    for learner in (broken, resumed):
        learner.learn(stream[1])
        learner.learn(stream[2])
        assert differences(snapshot(unbroken), snapshot(learner)) == []


@pytest.mark.parametrize("place", ["forward", "optimizer"])
def test_an_exception_within_a_step_leaves_no_trace(place: str) -> None:
    stream = small_stream(tasks=2, rows=64)
    broken, unbroken = made(), made()
    for learner in (broken, unbroken):
        learner.learn(stream[0])
    before = snapshot(broken)

    def fail(*_: Any) -> None:
        if broken.clock.step == 21:
            raise Stop

    if place == "forward":
        hook = broken.model.head.register_forward_hook(fail)
    else:
        hook = broken.optimizer.register_step_post_hook(fail)
    with pytest.raises(Stop):
        broken.learn(stream[1])
    hook.remove()
    assert differences(before, snapshot(broken)) == []
    assert all(module.training for module in broken.model.modules())
    for learner in (broken, unbroken):
        learner.learn(stream[1])
    assert differences(snapshot(unbroken), snapshot(broken)) == []


@pytest.mark.parametrize("step", [5, 10])
def test_what_an_abandoned_task_took_is_free_again(step: int, tmp_path: Any) -> None:
    stream = small_stream(tasks=3, rows=64)
    learner = made(save_to=tmp_path / "file", save_every=0.0, callbacks=[Stops(12 + step, tmp_path / "other")])
    learner.learn(stream[0])
    answer, free = learner.predict_proba(x_of(stream[0].test), task=stream[0]), learner.method.free
    with pytest.raises(Stop):
        learner.learn(stream[1])
    learner.callbacks.clear()
    assert learner.clock.begun
    learner.abandon()
    learner.learn(stream[2])
    assert learner.method.free == {name: int(0.75 * count) for name, count in free.items()}
    assert shares(learner).rows.tolist()[:6] == [1, 1, NOBODYS, NOBODYS, 2, 2]
    assert list(shares(learner).tasks) == ["task 0", "task 2"]
    learner.learn(stream[1])  # it was not learnt, so it may come again
    assert shares(learner).rows.tolist()[:6] == [1, 1, 3, 3, 2, 2]
    assert torch.equal(answer, learner.predict_proba(x_of(stream[0].test), task=stream[0]))
    assert min(learner.evaluate(stream)) > 0.65


class Epochs(Callback):
    """Keeps the weights at the end of each epoch."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []

    def after_epoch(self, learner: Learner) -> None:
        self.weights.append(weights(learner))


@pytest.mark.parametrize(("retrain", "patience", "best"), [(0.5, 1, 2), (0.5, 9, 2), (0.0, 9, 0), (0.0, 2, 0)])
def test_the_best_weights_are_those_of_the_epochs_that_retrain(
    retrain: float, patience: int, best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dense epochs grade higher: 0.9 is none of the pruned network's, and no reason to stop before it is pruned."""
    grades = iter([0.9, 0.2, 0.5, 0.3] * 2)
    monkeypatch.setattr("perdure.answers.grade", lambda *_: next(grades))
    epochs = Epochs()
    settings: dict[str, Any] = {"validation": 0.2, "patience": patience, "epochs": 4, "callbacks": [epochs]}
    learner = made(methods.PackNet(retrain=retrain), **settings)
    stream = small_stream(tasks=2)
    for task in stream:
        epochs.weights.clear()
        learner.learn(task)
        assert len(epochs.weights) == (3 if patience == 2 else 4)
        found = weights(learner)
        for name, owner in shares(learner).owner.items():
            assert torch.equal(found[name] == 0, owner == FREE)
            assert torch.equal(found[name], epochs.weights[best][name] * (owner != FREE))
        if patience == 2:
            next(grades)
        assert torch.equal(found["body.1.bias"], epochs.weights[best]["body.1.bias"])
    x = x_of(stream[1].test)
    with torch.no_grad(), models.evaluating(learner.model):
        torch.testing.assert_close(learner.method.predict(learner, x, 1), learner.model(x))


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("other", [methods.GDumb(60), methods.MAS(1.0, rows=16, pull="proximal")], ids=lambda m: m.name)
def test_beside_a_method_that_moves_weights_what_is_owned_stays(other: Method, first: bool) -> None:
    other, own = methods.build(other.settings()), methods.PackNet(prune=0.5)
    learner = made(own + other if first else other + own, epochs=8)
    stream, answers = small_stream(tasks=3), []
    for task in stream:
        learner.learn(task)
        answers.append(learner.predict_proba(x_of(task.test), task=task))
        for earlier, answer in zip(stream, answers, strict=False):
            assert torch.equal(answer, learner.predict_proba(x_of(earlier.test), task=earlier))
    assert min(learner.evaluate(stream)) > 0.9


def test_a_network_that_knows_something_is_shared_out_by_consolidating(tmp_path: Any) -> None:
    rows = blobs((0, 1), 120, 0)
    network = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(x_of(rows)), rows.positions((0, 1))).backward()
        optimizer.step()
    learner = made(methods.PackNet(prune=0.5), model=models.adapt(network, head="2", classes=[0, 1]))
    learner.consolidate(rows)
    known = Task(rows, rows, name="pretrained")
    answer = learner.predict_proba(x_of(rows), task="pretrained")
    assert learner.evaluate(known) > 0.8
    stream = small_stream(tasks=3)[1:]
    for task in stream:
        learner.learn(task)
    assert torch.equal(answer, learner.predict_proba(x_of(rows), task="pretrained"))
    assert learner.method.free == {"network.0.weight": 24}
    assert min(learner.evaluate(stream)) > 0.9


def test_a_label_of_two_tasks_keeps_the_column_of_the_first_with_shared_heads() -> None:
    stream = [
        Task(blobs(group, 80, i), blobs(group, 80, 9 + i), name=str(i)) for i, group in enumerate([(0, 1), (1, 2)])
    ]
    learner = made(heads="shared", optimizer=OPTIMIZERS["adamw"], epochs=6)
    learner.learn(stream[0])
    before, answer = weights(learner), learner.predict_proba(x_of(stream[0].test), task=stream[0])
    learner.learn(stream[1])
    assert shares(learner).rows.tolist()[:4] == [1, 1, 2, NOBODYS]
    assert torch.equal(weights(learner)["head.weights.0"][:2], before["head.weights.0"][:2])
    assert torch.equal(answer, learner.predict_proba(x_of(stream[0].test), task=stream[0]))
    assert min(learner.evaluate(stream)) > 0.9


def test_a_task_still_to_come_is_answered_by_the_network_as_it_is() -> None:
    stream = small_stream(tasks=2, rows=48)
    learner = made()
    learner.open_ahead(stream)
    assert all(isinstance(grade, float) for grade in learner.evaluate(stream))
    learner.learn(stream[1])  # in any order
    learner.learn(stream[0])
    assert shares(learner).rows.tolist()[:4] == [2, 2, 1, 1]
    assert min(learner.evaluate(stream)) > 0.8


# ---- what is refused ----


def test_what_cannot_be_learnt_is_refused_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = small_stream(tasks=4, rows=32)
    learner = made(methods.PackNet(prune=0.05), model=models.mlp(12, (2,)), epochs=1)
    learner.learn(stream[0])
    with pytest.raises(ValueError, match="'task 0' cannot come back: packnet has frozen"):
        learner.learn(Task(stream[1].train, name="task 0", classes=stream[1].classes))
    learner.learn(stream[1])
    assert learner.method.free == {"body.1.weight": 0}
    before = snapshot(learner)
    with pytest.raises(ValueError, match=r"no weight is free for task 'task 2', the 2 before it have taken all: raise"):
        learner.learn(stream[2])
    assert differences(before, snapshot(learner)) == []
    monkeypatch.setattr(packnet, "MOST_TASKS", 2)
    with pytest.raises(ValueError, match="at most 2 tasks apart, and 'task 2' would be one more"):
        learner.learn(stream[2])


class OwnHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 8), nn.Linear(8, 30)

    def grow(self, columns: int, generator: torch.Generator) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.last(self.first(x).relu())
        return scores


def test_a_network_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(ValueError, match=r"wrap the network by models\.adapt"):
        made(model=OwnHead())
    with pytest.raises(ValueError, match="this network trains none"):
        made(model=models.mlp(12, ()))
    frozen = models.mlp(12, (4,))
    frozen.body.requires_grad_(False)
    with pytest.raises(ValueError, match="this network trains none"):
        made(model=frozen)
    assert not frozen.grown and made(model=models.adapt(OwnHead(), head="last")).model is not None


@pytest.mark.parametrize("setting", [{"prune": 0.0}, {"prune": 1.0}, {"retrain": -0.1}, {"retrain": 1.0}])
def test_settings_that_mean_nothing_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is"):
        methods.PackNet(**setting)


@pytest.mark.parametrize("later", [False, True])
def test_layers_that_the_first_task_does_not_train_are_left_alone(later: bool) -> None:
    model = models.mlp(12, (16, 10), norm=True)
    model.body[1].requires_grad_(False)
    learner = made(model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1))
    before = weights(learner)["body.1.weight"]
    stream = small_stream(tasks=2)
    learner.learn(stream[0])
    answer = learner.predict_proba(x_of(stream[0].test), task=stream[0])
    model.body[1].requires_grad_(later)
    learner.learn(stream[1])
    assert torch.equal(weights(learner)["body.1.weight"], before)
    assert list(learner.method.free) == ["body.4.weight"]
    assert torch.equal(answer, learner.predict_proba(x_of(stream[0].test), task=stream[0]))


def test_what_is_frozen_is_worked_out_once_before_and_once_after_pruning(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    values = Shares.values
    monkeypatch.setattr(Shares, "values", lambda *given: found.append(given[2]) or values(*given))
    learner = made()
    learner.learn(small_stream()[0])
    assert found[:2] == [0, 0]
    assert set(found[2:]) == {1}  # the means of features
    assert (learner.method.guarded, learner.method.guarded_for) == ([], None)


class Waits(TorchDispatchMode):
    """Notes what a step does that would wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_step_does_not_wait_for_the_device() -> None:
    method, waited = methods.PackNet(retrain=0.5), []
    learner = made(method, epochs=2)
    for hook in ("replay", "project", "after_step"):
        own = getattr(method, hook)

        def watched(*given: Any, own: Any = own) -> Any:
            with Waits() as waits:
                found = own(*given)
            waited.append(len(waits.found))
            return found

        setattr(method, hook, watched)
    for task in small_stream(tasks=2, rows=64):
        waited.clear()
        learner.learn(task)
        first, prunes = 0, 3 * 4
        assert len(waited) == 3 * 8
        assert [place for place, count in enumerate(waited) if count] == [first, prunes]


def test_a_layer_that_somebody_keeps_in_eval_mode_stays_there() -> None:
    learner = made(model=models.mlp(12, (8,), norm=True))
    norm, modes = learner.model.body[2], []

    class Holds(Callback):
        def before_task(self, learner: Learner, task: Task) -> None:
            norm.training = False

        def after_step(self, learner: Learner) -> None:
            modes.append(norm.training)

    learner.callbacks.append(Holds())
    for task in small_stream(tasks=2, rows=32):
        learner.learn(task)
    assert len(modes) == 12 and not any(modes)
