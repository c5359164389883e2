"""NCM, SLDA and RanPAC against loops over the rows; sums that are the same bits in any order and any cut."""

import copy
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conftest import blobs, small_stream
from torch import Tensor, nn
from trees import differences, snapshot

from perdure import Learner, Rows, Task, methods, models
from perdure.method import Host, Method
from perdure.methods.frozen import CHUNK, Frozen
from perdure.methods.ranpac import RIDGES
from perdure.methods.sums import SQUARES

KINDS: dict[str, Any] = {
    "ncm": methods.NCM,
    "slda": methods.SLDA,
    "ranpac": lambda **settings: methods.RanPAC(projection=24, **settings),
    "ranpac-fixed": lambda **settings: methods.RanPAC(projection=24, ridge=0.1, **settings),
}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())
every_scenario = pytest.mark.parametrize("scenario", ["task", "domain", "class"])


def frozen_learner(method: Method, scenario: str = "class", seed: int = 0, **settings: Any) -> Learner:
    """With batch norm whose running statistics say something."""
    body = models.mlp(12, (16,), norm=True, dropout=0.2)
    return Learner(body, method, scenario=scenario, batch_size=8, seed=seed, **settings)


def stream() -> list[Task]:
    """Labels out of order, of unequal numbers, one that comes back, one of a single row, and a task of one label."""
    return [
        Task(blobs((4, 1), 61, seed=1), blobs((4, 1), 40, seed=11), name="one", classes=(4, 1)),
        Task(blobs((1, 0, 3), 200, seed=2), blobs((1, 0, 3), 40, seed=12), name="two", classes=(3, 1, 0)),
        Task(blobs((2,), 1, seed=3), blobs((2,), 20, seed=13), name="three"),
    ]


def learnt(method: Method, scenario: str = "class", tasks: list[Task] | None = None, **settings: Any) -> Learner:
    learner = frozen_learner(method, scenario, **settings)
    for task in stream() if tasks is None else tasks:
        learner.learn(task)
    return learner


def in_numpy(learner: Learner, rows: Rows) -> Any:
    """Features in eval mode, float64. Always in batches of one size: another may change a float32's last bit."""
    body, x = copy.deepcopy(learner.model).eval(), rows.read(torch.arange(len(rows)))
    with torch.no_grad():
        parts = [body.features(part.repeat(CHUNK, 1)[:CHUNK])[: len(part)] for part in x.split(CHUNK)]
    return torch.cat(parts).double().numpy()


def column_of(learner: Learner, task: Task, label: Any) -> int:
    columns, labels = learner.labels.answers(task.name)
    return columns[labels.index(label)]


def rows_by_column(learner: Learner) -> tuple[Any, Any]:
    """The features of all rows of the stream, and their columns."""
    seen = [in_numpy(learner, task.train) for task in stream()]
    columns = [column_of(learner, task, label) for task in stream() for label in task.train.labels]
    return np.concatenate(seen), np.array(columns)


def close(found: Tensor, expected: Any, rtol: float = 1e-6) -> None:
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=rtol, atol=rtol * np.abs(expected).max())


# ---- the formulas of the papers ----


@every_scenario
def test_ncm_says_the_class_whose_mean_is_nearest(scenario: str) -> None:
    method = methods.NCM(bits=30)
    learner = learnt(method, scenario)
    features, columns = rows_by_column(learner)
    means = np.stack([features[columns == c].mean(0) for c in range(columns.max() + 1)])
    close(method.mean, means)
    task = stream()[1]
    seen = in_numpy(learner, task.test)
    halved = np.array([[-((row - mean) ** 2).sum() / 2 for mean in means] for row in seen])
    with torch.no_grad():
        learner.model.eval()
        scores = method.predict(learner, task.test.read(torch.arange(40)), None).numpy()
    for group in (group.tolist() for group in learner.column_groups(learner.width)):
        assert (scores[:, group].max(1) == 0).all()
        np.testing.assert_allclose(
            scores[:, group], halved[:, group] - halved[:, group].max(1, keepdims=True), atol=1e-4
        )
    home, labels = learner.labels.answers("two" if scenario != "class" else None)
    nearest = [labels[place] for place in halved[:, home].argmax(1)]
    assert learner.predict(task.test.read(torch.arange(40)), task if scenario != "class" else None).tolist() == nearest


@every_scenario
@pytest.mark.parametrize("shrinkage", [1e-4, 0.3])
def test_slda_is_the_linear_discriminant_of_the_pooled_covariance(scenario: str, shrinkage: float) -> None:
    method = methods.SLDA(bits=30, shrinkage=shrinkage)
    features, columns = rows_by_column(learnt(method, scenario))
    means = np.stack([features[columns == c].mean(0) for c in range(columns.max() + 1)])
    pooled = np.zeros((16, 16))
    for row, column in zip(features, columns, strict=True):
        pooled += np.outer(row - means[column], row - means[column]) / len(features)
    close(method.covariance(method.mean), pooled)
    precision = np.linalg.inv((1 - shrinkage) * pooled + shrinkage * np.eye(16))
    weights, bias = method.classifier()
    close(weights, np.stack([precision @ mean for mean in means]), rtol=1e-5)
    close(bias, np.array([-mean @ precision @ mean / 2 for mean in means]), rtol=1e-5)


def test_the_papers_streaming_covariance_comes_to_the_pooled_one_as_rows_come() -> None:
    """Row by row as Hayes & Kanan write it, beside the exact sum: near, and not the same."""
    method = methods.SLDA(bits=30)
    learner = learnt(method, tasks=[Task(blobs((0, 1, 2), 900, seed=4))])
    features, labels = in_numpy(learner, blobs((0, 1, 2), 900, seed=4)), blobs((0, 1, 2), 900, seed=4).labels
    mean, count, streamed = np.zeros((3, 16)), np.zeros(3), np.zeros((16, 16))
    for t, (row, label) in enumerate(zip(features, labels, strict=True)):
        away = row - mean[label]
        streamed = (t * streamed + t / (t + 1) * np.outer(away, away)) / (t + 1)
        mean[label] += away / (count[label] + 1)
        count[label] += 1
    pooled = method.covariance(method.mean).numpy()
    assert 1e-4 < np.abs(streamed - pooled).max() / np.abs(pooled).max() < 0.05


def projected(method: Any, features: Any) -> Any:
    """relu(P f), row by row, in steps of 2^-bits."""
    steps = 2.0**method.bits
    rows = [[max(0.0, float(p @ row)) for p in method.matrix.double().numpy()] for row in features]
    return np.round(np.array(rows) * steps) / steps


@every_scenario
def test_ranpac_is_the_ridge_regression_whose_ridge_is_best_on_the_rows_held_out(scenario: str) -> None:
    method = methods.RanPAC(projection=24, bits=20)
    learner = learnt(method, scenario)
    features, columns = rows_by_column(learner)
    h = projected(method, features)
    target = np.eye(columns.max() + 1)[columns]
    close(method.sums["sum"], target.T @ h)
    held = np.array([round(sum(row) * 2.0**20) % 5 == 0 for row in h])
    assert 30 < held.sum() < 75 and len(held) == 262  # a fifth
    kept, errors = ~held, {}
    for ridge in RIDGES:
        weights = np.linalg.solve(h[kept].T @ h[kept] + ridge * np.eye(24), h[kept].T @ target[kept])
        errors[ridge] = ((h[held] @ weights - target[held]) ** 2).sum()
    best = min(errors, key=errors.__getitem__)
    assert method.chosen() == best
    assert 1e-8 < best < 1e8
    weights, bias = method.classifier()
    close(weights, np.linalg.solve(h.T @ h + best * np.eye(24), h.T @ target).T, rtol=1e-5)
    assert not bias.any()


def test_a_ridge_of_ones_own_is_used_and_holds_nothing_out() -> None:
    method = methods.RanPAC(projection=24, bits=20, ridge=3.0)
    features, columns = rows_by_column(learnt(method))
    h, target = projected(method, features), np.eye(5)[columns]
    assert method.sums.keys() == {"count", "sum", "gram"}
    weights, _ = method.classifier()
    close(weights, np.linalg.solve(h.T @ h + 3.0 * np.eye(24), h.T @ target).T, rtol=1e-5)


def test_a_ridge_that_float64_cannot_solve_with_is_raised_until_it_can() -> None:
    method = methods.RanPAC(projection=24, bits=20, ridge=1e-30)
    task = Task(blobs((0, 1), 4, seed=1))  # four rows in 24 directions
    learner = learnt(method, tasks=[task])
    weights, _ = method.classifier()
    answers = projected(method, in_numpy(learner, task.train)) @ weights.T.numpy()
    np.testing.assert_allclose(answers, np.eye(2)[task.train.labels], atol=1e-3)


@pytest.mark.parametrize("size", [0.03, 1.0, 30.0])
@pytest.mark.parametrize("counts", [[1] * 10, [2] * 10, [6, 1]])
def test_where_few_rows_can_judge_a_ridge_it_is_a_tenth_of_a_rows_squared_length(
    counts: list[int], size: float
) -> None:
    grades = []
    for seed in range(8):
        rows = [blobs((label,), count, 100 * seed + label) for label, count in enumerate(counts)]
        x = size * torch.cat([part.read(torch.arange(len(part))) for part in rows])
        test = blobs(tuple(range(len(counts))), 200, 7)
        task = Task(
            Rows(x, [label for part in rows for label in part.labels]),
            Rows(size * test.read(torch.arange(200)), test.labels),
        )
        method = methods.RanPAC(projection=100)
        learner = Learner(models.mlp(12, ()), method, scenario="class", seed=seed)  # its features are the inputs
        learner.learn(task)
        held = int(method.sums["held_count"].sum())
        if min(held, len(x) - held) < 2 * len(counts):
            h = projected(method, x.double().numpy())
            assert method.chosen() == pytest.approx((h**2).sum() / len(x) / 10, rel=1e-6)
        grades.append(learner.evaluate(task))
    assert sum(grades) / 8 > 0.93  # with the largest ridge of all: 0.77 of the first


def test_the_projection_is_normal_with_variance_one_over_the_features() -> None:
    method = methods.RanPAC(projection=400, ridge=1.0)
    frozen_learner(method).learn(stream()[0])
    assert method.matrix.shape == (400, 16)
    assert float(method.matrix.mean()) == pytest.approx(0, abs=4 * 0.25 / 6400**0.5)
    assert float(method.matrix.var()) == pytest.approx(1 / 16, rel=0.07)


# ---- exact in any order, and any number of processes ----


@every_kind
def test_sums_are_whole_numbers_of_steps_added_without_rounding(make: Any) -> None:
    method = make()
    learner = learnt(method, tasks=stream()[:1])
    seen = method.expanded(torch.tensor(in_numpy(learner, stream()[0].train))).tolist()
    steps = [[round(Fraction(value) * 4096) for value in row] for row in seen]
    assert method.sums["sum"].sum(0).tolist() == [Fraction(sum(column), 4096) for column in zip(*steps, strict=True)]
    gram = method.sums.get("gram")
    if gram is not None:
        gram = gram + method.sums.get("held_gram", 0)
        for i in range(0, len(steps[0]), 5):
            for j in range(len(steps[0])):
                assert gram[i, j].item() == Fraction(sum(row[i] * row[j] for row in steps), 4096**2)


def in_order_of_labels(learner: Learner, method: Any) -> dict[str, Tensor]:
    """The sums with the columns of the labels in ascending order."""
    order = torch.tensor([learner.classes.index(label) for label in sorted(learner.classes)])
    by_column = ("count", "sum", "held_count", "held_sum")
    return {name: part[order] if name in by_column else part for name, part in method.sums.items()}


@every_kind
def test_the_order_of_rows_and_tasks_and_how_they_are_cut_change_no_bit(make: Any) -> None:
    first = make()
    expected = in_order_of_labels(learnt(first), first)
    draws = torch.Generator().manual_seed(3)
    for _ in range(3):
        tasks = []
        for task in stream():
            order = torch.randperm(len(task.train), generator=draws)
            cut = int(torch.randint(1, len(order) + 1, (), generator=draws))
            pieces = [piece for piece in (order[:cut], order[cut:]) if len(piece)]
            tasks += [Task(task.train.select(piece), name=f"{task.name} {i}") for i, piece in enumerate(pieces)]
        other = make()
        mixed = [tasks[i] for i in torch.randperm(len(tasks), generator=draws).tolist()]
        learner = learnt(other, tasks=mixed, epochs=3)
        assert differences(expected, in_order_of_labels(learner, other)) == []


@every_kind
def test_merged_sums_are_bit_for_bit_those_of_one(make: Any) -> None:
    whole = make()
    one = learnt(whole)
    halves = [make(), make()]
    learners = [frozen_learner(half) for half in halves]
    for task in stream():
        for place, learner in enumerate(learners):
            rows = torch.arange(place, len(task.train), 2)
            if len(rows):
                learner.learn(Task(task.train.select(rows), name=task.name, classes=task.classes))
    assert halves[1].sums["sum"].shape[0] == 4 and halves[0].sums["sum"].shape[0] == 5  # one never saw a label
    test = stream()[1].test.read(torch.arange(40))
    before = learners[0].predict_proba(test)
    other = {name: part.clone() for name, part in halves[1].sums.items()}
    halves[0].merge(halves[1])
    assert differences(whole.sums, halves[0].sums) == []
    assert torch.equal(one.predict_proba(test), learners[0].predict_proba(test))
    assert not torch.equal(before, learners[0].predict_proba(test))
    assert differences(other, halves[1].sums) == []
    empty = make()
    empty.merge(whole)
    assert differences(whole.state(), empty.state()) == []
    halves[1].merge(make())
    assert differences(other, halves[1].sums) == []


def half(labels: tuple[int, ...], seed: int) -> Task:
    return Task(blobs(labels, 60, seed), blobs(labels, 60, seed + 50), name=f"of {sorted(labels)}", classes=labels)


@every_kind
@pytest.mark.parametrize("scenario", ["class", "task"])
def test_columns_are_merged_by_what_they_stand_for(make: Any, scenario: str) -> None:
    tasks = [half((0, 1), 1), half((2, 3), 2)]
    one, first, second = make(), make(), make()
    whole = learnt(one, scenario, tasks)
    merged = learnt(first, scenario, tasks[::-1])
    again = [half((1, 0), 3), half((3, 2), 4)]
    for task in again:
        whole.learn(task)
    learnt(second, scenario, again)  # tasks and labels in another order than in `first`
    first.merge(second)
    assert merged.evaluate(tasks) == whole.evaluate(tasks) and min(whole.evaluate(tasks)) > 0.9
    both = {repr(meaning): [part[place] for name, part in first.sums.items() if name not in SQUARES]
            for place, meaning in enumerate(first.meanings)}  # fmt: skip
    for place, meaning in enumerate(one.meanings):
        expected = [part[place] for name, part in one.sums.items() if name not in SQUARES]
        assert all(torch.equal(a, b) for a, b in zip(expected, both[repr(meaning)], strict=True))
    assert all(torch.equal(part, first.sums[name]) for name, part in one.sums.items() if name in SQUARES)


@every_kind
def test_processes_of_different_labels_are_merged_to_one_that_knows_all(make: Any, tmp_path: Any) -> None:
    tasks = [half((0, 1), 1), half((2, 3), 2)]
    whole, parts = learnt(make(), "class", tasks), [make(), make()]
    learners = [frozen_learner(part) for part in parts]
    for learner, task in zip(learners, tasks, strict=True):
        learner.open_ahead(tasks)
        learner.learn(task)
    learners[0].save(tmp_path / "one")
    learners[0] = Learner.load(tmp_path / "one")
    learners[0].method.merge(parts[1])
    assert learners[0].method.meanings == whole.method.meanings == [0, 1, 2, 3]
    assert differences(whole.method.sums, learners[0].method.sums) == []
    x = tasks[1].test.read(torch.arange(60))
    assert torch.equal(whole.predict_proba(x), learners[0].predict_proba(x))
    assert min(learners[0].evaluate(tasks)) > 0.9


@every_kind
def test_a_label_that_was_merged_is_answered_once_its_learner_knows_it(make: Any) -> None:
    tasks = [half((0, 1), 1), half((2, 3), 2), half((5, 3, 4), 3)]
    first, second = make(), make()
    learner = learnt(first, tasks=tasks[:1])
    learnt(second, tasks=tasks[1:2])
    first.merge(second)
    assert first.meanings == [0, 1, 2, 3]
    x = tasks[1].test.read(torch.arange(60))
    assert set(learner.predict(x).tolist()) <= {0, 1} and learner.predict_proba(x).shape == (60, 2)
    learner.learn(tasks[2])  # label 5 has column 2, where the sums have label 2
    assert (learner.classes, first.meanings) == ([0, 1, 5, 3, 4], [0, 1, 2, 3, 5, 4])
    assert learner.evaluate(tasks[0]) > 0.9 and learner.evaluate(tasks[2]) > 0.9
    of_3 = torch.tensor(tasks[1].test.labels) == 3
    assert (learner.predict(x)[of_3] == 3).double().mean() > 0.9


def test_what_stands_for_something_else_in_every_learner_is_not_merged() -> None:
    kinds = {name: methods.NCM() for name in ("domain", "other order", "class", "task")}
    learnt(kinds["domain"], "domain", [half((0, 1), 1)])
    learnt(kinds["other order"], "domain", [half((1, 0), 2)])
    for scenario in ("class", "task"):
        learnt(kinds[scenario], scenario, [half((0, 1), 1)])
    before = kinds["domain"].state()
    with pytest.raises(ValueError, match=r"in two orders, \[{'of \[0, 1\]': 0}, .* and \[{'of \[0, 1\]': 1}"):
        kinds["domain"].merge(kinds["other order"])
    for one, other in (("domain", "class"), ("class", "task"), ("task", "domain")):
        with pytest.raises(ValueError, match="merge what learners of one scenario have counted"):
            kinds[one].merge(kinds[other])
    assert differences(before, kinds["domain"].state()) == []
    shared, whole = methods.NCM(), methods.NCM()
    learnt(shared, "domain", [half((4, 3, 2), 5)])
    learnt(whole, "domain", [half((0, 1), 1), half((4, 3, 2), 5)])
    kinds["domain"].merge(shared)
    assert differences(whole.state(), kinds["domain"].state()) == []


def test_row_by_row_in_processes_of_their_own_is_the_same_too() -> None:
    whole, merged = methods.SLDA(), methods.SLDA()
    learnt(whole, tasks=stream()[:1])
    rows = stream()[0].train
    for i in range(len(rows)):
        one = methods.SLDA()
        learnt(one, tasks=[Task(rows.select(torch.tensor([i])), classes=(4, 1))])
        merged.merge(one)
    assert differences(whole.sums, merged.sums) == []


def test_rows_always_go_through_the_network_in_batches_of_one_size() -> None:
    """In a batch of another size a row's features may differ in their last bit, and then be rounded elsewhere."""
    sizes = set()
    learner = frozen_learner(methods.NCM())
    learner.model.body.register_forward_pre_hook(lambda _, inputs: sizes.add(len(inputs[0])))
    rows = stream()[1].train
    learner.learn(Task(rows, name="all"))
    learner.learn(Task(rows.select(torch.arange(3)), name="three"))
    assert sizes == {1, CHUNK}  # one row, to measure the network before each task


def test_what_was_counted_differently_is_not_merged() -> None:
    ranpac = [methods.RanPAC(projection=24) for _ in range(2)]
    for seed, method in enumerate(ranpac):
        learnt(method, tasks=stream()[:1], seed=seed)
    with pytest.raises(ValueError, match="project differently: give their learners the same seed"):
        ranpac[0].merge(ranpac[1])
    with pytest.raises(ValueError, match="merge methods with the same settings"):
        methods.SLDA().merge(methods.SLDA(bits=13))
    with pytest.raises(ValueError, match="merge methods with the same settings"):
        methods.SLDA().merge(methods.NCM())  # type: ignore[arg-type]
    narrow, wide = methods.NCM(), methods.NCM()
    learnt(wide, tasks=stream()[:1])
    Learner(models.mlp(12, (5,)), narrow, scenario="class").learn(stream()[0])
    with pytest.raises(ValueError, match="counted by 16 features, and now have 5"):
        wide.merge(narrow)


@every_kind
def test_bf16_epochs_and_steps_change_nothing_that_is_counted(make: Any) -> None:
    plain = make()
    learnt(plain)
    for settings in ({"precision": "bf16"}, {"epochs": 3}, {"steps": 7}, {"optimizer": {"name": "sgd", "lr": 9.0}}):
        other = make()
        learner = learnt(other, **settings)
        assert differences(plain.sums, other.sums) == []
        assert learner.clock.step == 0


# ---- the body ----


@every_kind
@every_scenario
def test_the_body_and_its_statistics_stay_as_they_are(make: Any, scenario: str) -> None:
    learner = frozen_learner(make(), scenario)
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items() if "head" not in name}
    for task in stream():
        learner.learn(task)
        learner.evaluate(task)
    assert all(torch.equal(tensor, learner.model.state_dict()[name]) for name, tensor in before.items())
    assert all(module.training for module in learner.model.modules())
    assert not learner.optimizer.state


@pytest.mark.parametrize("patience", [None, 1])
def test_warm_start_learns_the_first_task_as_plain_descent_does_and_counts_what_it_made(patience: int | None) -> None:
    settings: dict[str, Any] = {
        "epochs": 6,
        "validation": 0.3,
        "patience": patience,
        "optimizer": {"name": "sgd", "lr": 2},
    }
    method = methods.SLDA(warm_start=True, bits=30)
    learner = learnt(method, tasks=stream()[:1], **settings)
    plain = learnt(methods.Finetune(), tasks=stream()[:1], **settings)
    weights = plain.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in learner.model.state_dict().items())
    assert learner.clock.step == plain.clock.step > 0
    direct = methods.SLDA(bits=30)
    again = frozen_learner(direct, validation=0.3)
    again.model.grow(2, torch.Generator())
    again.model.load_state_dict(weights)
    again.learn(stream()[0])
    assert differences(direct.sums, method.sums) == []
    learner.learn(stream()[1])
    assert learner.clock.step == plain.clock.step
    frozen = {name: tensor for name, tensor in learner.model.state_dict().items() if "head" not in name}
    assert all(torch.equal(tensor, weights[name]) for name, tensor in frozen.items())


class Pretrained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(12, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.fc(self.body(x).relu())
        return scores


@every_kind
def test_a_pretrained_network_with_classes_is_consolidated_first(make: Any) -> None:
    known, new = blobs((0, 1), 60, seed=5), Task(blobs((2, 3), 60, seed=6), blobs((2, 3), 60, seed=7), name="new")
    torch.manual_seed(0)
    network = Pretrained()
    unasked = Learner(models.adapt(copy.deepcopy(network), classes=[0, 1]), make(), scenario="class")
    before = snapshot(unasked)
    with pytest.raises(ValueError, match=r"knows 2 classes .* counted no row .*: learner\.consolidate"):
        unasked.learn(new)
    assert differences(before, snapshot(unasked)) == []
    method = make()
    learner = Learner(models.adapt(network, classes=[0, 1]), method, scenario="class")
    learner.consolidate(known)
    assert method.sums["count"].tolist() == [30, 30]
    learner.learn(new)
    assert method.sums["count"].tolist() == [30, 30, 30, 30]
    right = learner.predict(known.read(torch.arange(60))) == torch.tensor(known.labels)
    assert right.double().mean() > 0.9
    assert learner.evaluate(new) > 0.9


def test_before_anything_is_counted_the_network_itself_answers() -> None:
    method = methods.SLDA()
    learner = Learner(models.adapt(Pretrained(), classes=[0, 1]), method, scenario="class")
    x = torch.randn(5, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(learner.predict_proba(x), learner.model(x).softmax(1))


def test_a_network_without_features_is_refused() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = models.Head(12)

        def grow(self, columns: int, generator: torch.Generator) -> None:
            self.head.grow(columns, generator)

    with pytest.raises(ValueError, match=r"Bare has no features\(x\): write it, or use models.adapt"):
        Learner(Bare(), methods.NCM(), scenario="class")


@every_kind
def test_features_too_small_for_the_steps_are_refused_and_nothing_is_kept(make: Any) -> None:
    tiny = Task((1e-5 * torch.randn(40, 12), [0, 1] * 20))
    learner = Learner(models.mlp(12, (16,)), make(), scenario="class")
    with torch.no_grad():
        for p in learner.model.body.parameters():
            p.mul_(1e-4)
    before = snapshot(learner)
    with pytest.raises(ValueError, match=r"in size, too small for steps of 2\^-12: set bits higher"):
        learner.learn(tiny)
    assert differences(before, snapshot(learner)) == []


@pytest.mark.parametrize(("size", "bits", "enough"), [(0.003, 12, False), (0.005, 12, True), (0.003, 13, True)])
def test_the_root_mean_square_of_features_is_16_steps_at_least(size: float, bits: int, enough: bool) -> None:
    x = size * torch.randn(2000, 12, generator=torch.Generator().manual_seed(0)).sign()
    learner = Learner(models.mlp(12, ()), methods.NCM(bits=bits), scenario="class")  # its features are the inputs
    if enough:
        learner.learn(Task((x, [0, 1] * 1000)))
        return
    with pytest.raises(ValueError, match=r"about 0\.003 in size"):
        learner.learn(Task((x, [0, 1] * 1000)))


@every_kind
def test_a_body_that_is_broken_is_refused(make: Any) -> None:
    learner = learnt(make(), tasks=stream()[:1])
    with torch.no_grad():
        next(learner.model.body.parameters())[0, 0] = torch.nan
    with pytest.raises(ValueError, match="features that are NaN or infinite: the body is broken"):
        learner.learn(stream()[1])


@pytest.mark.parametrize("name", ["ncm", "ranpac"])
def test_a_body_that_grows_is_refused(name: str) -> None:
    method = KINDS[name]()
    learner = learnt(method, tasks=stream()[:1])
    learner.model.body.append(nn.Linear(16, 5))
    learner.clock.open("one", "")
    with pytest.raises(ValueError, match="counted by 16 features, and now have 5: the body must stay as it was"):
        method.end(learner, stream()[0])


# ---- answers ----


@every_kind
def test_a_label_without_rows_is_never_answered_and_its_score_is_finite(make: Any) -> None:
    method = make()
    learner = frozen_learner(method)
    ahead, last = (Task(blobs(pair, 20, seed=5), blobs(pair, 20, seed=6)) for pair in ((7, 8), (3, 4)))
    one = Task(blobs((0, 1), 40, seed=1), name="one", classes=(9, 0, 1))
    learner.open_ahead([ahead, one, last])
    learner.learn(one)
    x = blobs((0, 1), 40, seed=9).read(torch.arange(40))
    with torch.no_grad():
        learner.model.eval()
        scores = method.predict(learner, x, None)
    assert scores.dtype == torch.float32 and scores.shape == (40, 7) and scores.isfinite().all()
    assert learner.classes == [7, 8, 9, 0, 1, 3, 4]
    assert scores[:, [0, 1, 2, 5, 6]].amax() < scores[:, [3, 4]].amin()
    assert set(learner.predict(x).tolist()) == {0, 1}
    learner.learn(ahead)
    assert learner.evaluate(ahead) > 0.5


@pytest.mark.parametrize("name", ["ncm", "slda"])
@pytest.mark.parametrize("scenario", ["task", "class"])
def test_what_all_columns_have_in_common_costs_no_answer(name: str, scenario: str) -> None:
    """Scores are about 5e7 here, of which float32 keeps steps of 4."""

    def far(labels: tuple[int, ...], seed: int) -> Rows:
        rows = blobs(labels, 200, seed)
        return Rows(rows.read(torch.arange(200)) + 10_000 * torch.eye(12)[0], rows.labels)

    tasks = [Task(far(labels, 1), far(labels, 2), name=str(labels)) for labels in ((0, 1), (2, 3))]
    tasks.append(Task(blobs((4, 5), 200, 1), blobs((4, 5), 200, 2), name="near"))
    learner = Learner(models.mlp(12, ()), KINDS[name](), scenario=scenario)  # its features are the inputs
    for task in tasks:
        learner.learn(task)
    assert min(learner.evaluate(tasks)) > 0.98
    weights, bias = learner.method.classifier()
    learner.model.eval()
    for number, task in enumerate(tasks):
        x = task.test.read(torch.arange(200))
        exact = x.flatten(1).double() @ weights.T + bias
        scores = learner.method.predict(learner, x, number)
        for group in learner.column_groups(6):
            expected = exact[:, group] - exact[:, group].amax(1, keepdim=True)
            torch.testing.assert_close(scores[:, group].double(), expected, rtol=1e-6, atol=1e-6)


def test_in_scenario_domain_later_tasks_add_to_the_same_columns_and_in_task_to_their_own() -> None:
    for scenario, counts in (("domain", [31 + 66, 30 + 67, 67]), ("task", [31, 30, 66, 67, 67])):
        method = methods.NCM()
        learnt(method, scenario, tasks=stream()[:2])
        assert method.sums["count"].tolist() == counts


def test_one_solve_serves_until_rows_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    solved = []
    own = methods.SLDA.classifier
    monkeypatch.setattr(methods.SLDA, "classifier", lambda self: solved.append(1) or own(self))
    method = methods.SLDA()
    learner = learnt(method, tasks=stream()[:1])
    for _ in range(3):
        learner.evaluate(stream()[0])
    assert len(solved) == 1
    learner.learn(stream()[1])
    learner.evaluate(stream()[0])
    assert len(solved) == 2
    method.load_state(method.state())
    learner.evaluate(stream()[0])
    assert len(solved) == 2  # the same sums
    method.load_state(method.state() | {"sums": {name: part.clone() for name, part in method.sums.items()}})
    learner.evaluate(stream()[0])
    assert len(solved) == 3


COSTS = {
    # a row's products (projection, the sums of rows and of products), and solving; d = 16 features, 2 columns
    "ncm": (2 * 16, 0),
    "slda": (2 * 16 + 16**2, 16**3 // 3 + 2 * 16**2 + 2 * 16),
    "ranpac-fixed": (16 * 24 + 2 * 24 + 24**2, 24**3 // 3 + 2 * 24**2),
}


@pytest.mark.parametrize("name", COSTS)
def test_the_pass_and_the_solution_are_counted_as_the_products_that_they_are(name: str) -> None:
    learner = learnt(KINDS[name](), tasks=[small_stream(rows=300)[0]])
    a_row, solving = COSTS[name]
    forward = 3 * CHUNK * (12 * 16 + 16 * 2)
    assert learner.cost.multiply_adds == pytest.approx(forward + 300 * a_row + solving, abs=16**2 * 2)


def test_every_ridge_that_is_tried_is_counted() -> None:
    costs = []
    for ridge in (None, 0.1):
        method = methods.RanPAC(projection=24, ridge=ridge)
        costs.append(learnt(method, tasks=[small_stream(rows=300)[0]]).cost.multiply_adds)
        costs[-1] -= learnt(methods.NCM(), tasks=[small_stream(rows=300)[0]]).cost.multiply_adds
    solve = 24**3 // 3 + 2 * 24**2
    held_apart = 2 * 300 * 24  # their sums
    assert len(RIDGES) * solve < costs[0] - costs[1] - held_apart < 2 * len(RIDGES) * solve


# ---- broken off ----


class Failing(torch.utils.data.Dataset[Any]):
    """Rows of which the last cannot be read while `broken`."""

    def __init__(self) -> None:
        self.rows, self.broken = blobs((5, 6), 300, seed=8), False

    def __len__(self) -> int:
        return 300

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        if self.broken and row == 299:
            raise OSError("the disk is gone")
        return self.rows.read(torch.tensor([row]))[0], int(self.rows.labels[row])


@every_kind
def test_a_pass_broken_off_in_the_middle_leaves_nothing_behind(make: Any) -> None:
    data = Failing()
    task = Task(data, name="failing")
    task.train.check()
    method = make()
    learner = learnt(method)
    before = snapshot(learner)
    data.broken = True
    with pytest.raises(OSError, match="the disk is gone"):
        learner.learn(task)
    assert differences(before, snapshot(learner)) == []
    data.broken = False
    learner.learn(task)
    unbroken = make()
    expected = learnt(unbroken)
    expected.learn(task)
    assert differences(unbroken.state(), method.state()) == []


# ---- company ----


@dataclass(eq=False)
class Watcher(Method):
    name: ClassVar[str] = "watcher"

    def begin(self, host: Host, task: Task | None) -> None:
        self.seen = host.columns


@dataclass(eq=False)
class Architect(Method):
    name: ClassVar[str] = "architect"

    def remodel(self, model: nn.Module) -> nn.Module:
        return model


PARTS = [methods.Replay, methods.EWC, methods.LwF, methods.SI, methods.AGEM, Architect]


@every_kind
@pytest.mark.parametrize("part", PARTS)
def test_parts_that_act_in_training_are_refused_where_nothing_is_trained(make: Any, part: Any) -> None:
    name = make().name
    for pair in ((make(), part()), (part(), make())):
        with pytest.raises(ValueError, match=f"{name} trains nothing, so {part().name} could do nothing"):
            pair[0] + pair[1]


def test_other_parts_and_a_warm_start_are_not() -> None:
    watcher = Watcher()
    learnt(methods.NCM() + watcher)
    assert watcher.seen == 4
    both = methods.NCM(warm_start=True) + methods.Replay(20) + methods.EWC()
    learnt(both, tasks=stream()[:2])
    assert len(both.parts[1].store) == 20


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: methods.NCM(bits=-1), "bits is -1"),
        (lambda: methods.NCM(bits=41), "bits is 41"),
        (lambda: methods.SLDA(shrinkage=0.0), "shrinkage is 0.0"),
        (lambda: methods.SLDA(shrinkage=1.5), "shrinkage is 1.5"),
        (lambda: methods.SLDA(bits=99), "bits is 99"),
        (lambda: methods.RanPAC(projection=0), "projection is 0"),
        (lambda: methods.RanPAC(ridge=0.0), "ridge is 0.0"),
        (lambda: methods.RanPAC(bits=99), "bits is 99"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


def test_unlabelled_rows_are_refused() -> None:
    learner = Learner(models.adapt(Pretrained(), classes=[0, 1]), methods.NCM(), scenario="class")
    with pytest.raises(ValueError, match="ncm counts labelled rows, and these have no labels"):
        learner.consolidate(torch.randn(8, 12))


def test_the_table_knows_them_by_name() -> None:
    for name in ("ncm", "slda", "ranpac"):
        assert isinstance(methods.build({"name": name}), Frozen)
