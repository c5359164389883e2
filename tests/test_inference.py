"""Who is asked where nobody reveals the task, and outputs that are open before their task."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from conftest import blobs, small_stream
from torch import Tensor, nn
from trees import differences, snapshot

from perdure import Callback, Learner, Rows, Task, methods, models
from perdure.data import Batch
from perdure.inference import HOW
from perdure.method import Host, Method

every_way = pytest.mark.parametrize("how", HOW)


def made(method: Method | None = None, **settings: Any) -> Learner:
    model = settings.pop("model", None) or models.mlp(12, (16,), norm=True, dropout=0.1)
    defaults = {"scenario": "task", "epochs": 2, "batch_size": 16, "optimizer": {"name": "adam", "lr": 0.01}}
    return Learner(model, method or methods.PackNet(), **(defaults | settings))


def learnt(stream: list[Task], method: Method | None = None, **settings: Any) -> Learner:
    learner = made(method, **settings)
    for task in stream:
        learner.learn(task)
    return learner


def x_of(rows: Rows) -> Tensor:
    return rows.read(torch.arange(len(rows)))


def of_groups(*groups: tuple[int, ...], names: dict[int, Any] | None = None, rows: int = 60) -> list[Task]:
    """A task a group of classes, under the user's own labels."""

    def part(group: tuple[int, ...], seed: int) -> Rows:
        found = blobs(group, rows, seed, spread=2.5)
        return Rows(x_of(found), [names[label] if names else label for label in found.labels])

    return [Task(part(g, i), part(g, 50 + i), name=f"task {i}") for i, g in enumerate(groups)]


def all_rows(stream: list[Task]) -> Tensor:
    return torch.cat([x_of(task.test) for task in stream])


def entropies(learner: Learner, x: Tensor, normalised: bool = True) -> Tensor:
    """[n, tasks], term by term."""
    found = []
    for name, labels in learner.tasks.items():
        unit = math.log(len(labels)) if normalised else 1.0
        rows = learner.predict_proba(x, task=name).tolist()
        found.append([-sum(q * math.log(q) for q in p if q > 0) / unit for p in rows])
    return torch.tensor(found).T


def distances(learner: Learner, x: Tensor, stream: list[Task]) -> Tensor:
    """[n, tasks]: to the nearest mean of a label, over the mean of this distance on the task's train rows."""
    found = []
    for number, task in enumerate(stream):
        with torch.no_grad(), models.evaluating(learner.model):
            seen, features = (learner.method.features(learner, part, number) for part in (x_of(task.train), x))
        labels = task.train.labels
        means = [
            torch.stack([row for row, known in zip(seen, labels, strict=True) if known == label]).mean(0)
            for label in task.classes
        ]
        spread = sum(min(float((row - mean).norm()) for mean in means) for row in seen) / len(seen)
        found.append([min(float((row - mean).norm()) for mean in means) / spread for row in features])
    return torch.tensor(found).T


GROUPS = {
    "own labels": ((0, 1), (2, 3, 4), (5, 6, 7, 8)),
    "shared labels": ((0, 1, 2), (1, 2), (0, 1, 2)),
}


@every_way
@pytest.mark.parametrize("kind", ["ints", "strings"])
@pytest.mark.parametrize("groups", GROUPS)
def test_the_task_of_a_row_is_the_least_strange_and_answers_alone(how: str, kind: str, groups: str) -> None:
    names = None if kind == "ints" else {i: chr(ord("z") - i) for i in range(9)}
    stream = of_groups(*GROUPS[groups], names=names)
    learner = learnt(stream)
    x = all_rows(stream)
    strange = entropies(learner, x) if how == "entropy" else distances(learner, x, stream)
    number = strange.argmin(1)
    assert number.unique().tolist() == [0, 1, 2]
    p = learner.predict_proba(x, task=how)
    classes = learner.classes
    assert p.shape == (len(x), len(classes))
    torch.testing.assert_close(p.sum(1), torch.ones(len(x)))
    surely = strange.sort(1).values
    surely = surely[:, 1] - surely[:, 0] > 1e-5
    assert surely.float().mean() > 0.9
    expected, own = torch.zeros_like(p), {name: learner.predict_proba(x, name) for name in learner.tasks}
    for i, chosen in enumerate(number.tolist()):
        name = f"task {chosen}"
        expected[i, [classes.index(label) for label in learner.tasks[name]]] = own[name][i]
    torch.testing.assert_close(p[surely], expected[surely], atol=1e-5, rtol=1e-4)
    assert torch.equal(p[surely] == 0, expected[surely] == 0)
    said = learner.predict(x, task=how)
    assert list(map(str, said if kind == "strings" else said.tolist())) == [str(classes[i]) for i in p.argmax(1)]


def test_entropies_are_told_in_units_of_the_largest_that_is_possible() -> None:
    stream = of_groups(*GROUPS["own labels"])
    learner = learnt(stream)
    x = all_rows(stream)
    plain = entropies(learner, x, normalised=False).argmin(1)
    assert (plain != entropies(learner, x).argmin(1)).any()


@every_way
def test_the_grade_is_the_accuracy_of_predict(how: str) -> None:
    stream = of_groups(*GROUPS["own labels"])
    learner = learnt(stream)
    unknown = of_groups((0, 1), (2, 40))
    unknown = [Task(task.train, task.test, name=f"new {i}") for i, task in enumerate(unknown)]
    grades = learner.evaluate([*stream, *unknown], infer=how)
    assert grades[3:] == [None, None]
    for task, grade in zip(stream, grades, strict=False):
        said = learner.predict(x_of(task.test), task=how).tolist()
        right = sum(a == b for a, b in zip(said, task.test.labels, strict=True))
        assert grade == right / len(said) == learner.evaluate(task, infer=how)
        assert grade <= learner.evaluate(task)
    assert sum(grades[:3]) / 3 > (0.5 if how == "nearest-mean" else 0.3)


def test_a_label_is_right_whichever_of_its_tasks_was_found() -> None:
    learner = learnt(of_groups((0, 1), (0, 1), (1, 0)), epochs=8)
    grades = learner.evaluate(of_groups((0, 1), (0, 1), (1, 0)), infer="nearest-mean")
    assert min(grades) > 0.8


@every_way
def test_answering_changes_nothing_and_the_file_keeps_what_it_needs(how: str, tmp_path: Any) -> None:
    stream = of_groups(*GROUPS["own labels"])
    learner = learnt(stream[:2])
    before, x = snapshot(learner), all_rows(stream)
    answer = learner.predict_proba(x, task=how)
    learner.evaluate(stream[:2], infer=how)
    assert differences(before, snapshot(learner)) == []
    assert all(module.training for module in learner.model.modules())
    learner.save(tmp_path / "file")
    again = Learner.load(tmp_path / "file")
    assert torch.equal(answer, again.predict_proba(x, task=how))
    for either in (learner, again):
        either.learn(stream[2])
    assert torch.equal(learner.predict_proba(x, task=how), again.predict_proba(x, task=how))
    assert len(again.means.means) == 3


class Fails(Callback):
    def after_task(self, learner: Learner, task: Task) -> None:
        if learner.clock.task == 1:
            raise RuntimeError("too late")


def test_a_task_that_failed_leaves_no_means() -> None:
    stream = of_groups((0, 1), (2, 3))
    learner = made(callbacks=[Fails()])
    learner.learn(stream[0])
    with pytest.raises(RuntimeError, match="too late"):
        learner.learn(stream[1])
    assert list(learner.means.means) == ["task 0"]
    assert len(learner.evaluate(stream, infer="nearest-mean")) == 2


# ---- the means ----


def test_means_are_those_of_the_rows_that_are_trained_on_and_the_labels_that_they_have() -> None:
    rows = blobs((0, 2), 80, 0)
    task = Task(rows, rows, name="gap", classes=[2, 1, 0])
    learner = made(methods.Finetune(), model=models.mlp(12, (6,)), validation=0.25)
    given: list[Task] = []

    class Keeps(Method):
        name = "keeps"

        def end(self, host: Host, task: Task) -> None:
            given.append(task)

    learner.method = Keeps()
    learner.learn(task)
    train = given[0].train
    assert len(train) == 60
    features = learner.model.body(x_of(train)).detach()
    positions = torch.tensor([[2, 1, 0].index(label) for label in train.labels])
    means = torch.stack([features[positions == position].mean(0) for position in (0, 2)])
    torch.testing.assert_close(learner.means.means["gap"], means)
    assert learner.means.positions["gap"].tolist() == [0, 2]
    nearest = torch.stack([(features - mean).norm(dim=1) for mean in means]).min(0).values.mean()
    torch.testing.assert_close(learner.means.spread["gap"], nearest)


def test_a_task_that_comes_back_keeps_the_means_of_labels_that_do_not() -> None:
    first, again = of_groups((0, 1), (1, 4))
    learner = made(methods.Finetune(), model=models.mlp(12, (6,)))
    learner.learn(first)
    old = learner.means.means["task 0"]
    learner.learn(Task(again.train, again.test, name="task 0"))
    assert learner.tasks == {"task 0": [0, 1, 4]}
    assert learner.means.positions["task 0"].tolist() == [0, 1, 2]
    new = learner.means.means["task 0"]
    assert torch.equal(new[0], old[0]) and not torch.equal(new[1], old[1])


def test_a_network_that_knows_something_is_found_once_consolidated() -> None:
    rows = blobs((0, 1), 60, 0)
    network = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 2))
    learner = made(methods.Finetune(), model=models.adapt(network, head="2", classes=[0, 1]))
    learner.learn(small_stream(tasks=2, rows=60)[1])
    with pytest.raises(ValueError, match="no mean features are known of task 'pretrained'"):
        learner.predict(x_of(rows), task="nearest-mean")
    assert len(learner.predict(x_of(rows), task="entropy")) == 60
    learner.consolidate(rows)
    assert set(learner.means.means) == {"pretrained", "task 1"}
    assert len(learner.predict(x_of(rows), task="nearest-mean")) == 60


def test_near_rows_are_told_apart_however_far_all_are_from_zero() -> None:
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(0)) * 0.001 + 100
    stream = [
        Task((x + 0.02 * t, torch.arange(64) % 2), (x + 0.02 * t, torch.arange(64) % 2), name=str(t)) for t in (0, 1)
    ]

    class Raw(Method):
        name = "raw"

        def features(self, learner: Any, x: Any, task: int | None) -> Tensor:
            return x

    learner = learnt(stream, Raw(), model=models.mlp(12, (4,)))
    with torch.no_grad():
        learner.model.head.weights[0].zero_()
        learner.model.head.biases[0][:4] = torch.tensor([9.0, 0.0, 0.0, 9.0])
    for t, answer in ((0, 0), (1, 1)):  # each task's head always says the same
        assert set(learner.predict(x + 0.02 * t, task="nearest-mean").tolist()) == {answer}


# ---- what is refused ----


def test_a_task_of_one_label_has_no_entropy_and_a_mean() -> None:
    stream = of_groups((0, 1), (2,))
    learner = learnt(stream)
    for call in (lambda: learner.predict(all_rows(stream), "entropy"), lambda: learner.evaluate(stream, "entropy")):
        with pytest.raises(
            ValueError, match="'task 1' has one label, of which it is always sure: use \"nearest-mean\""
        ):
            call()
    assert learner.evaluate(stream, infer="nearest-mean")[1] > 0.5


def test_an_unknown_way_is_refused_with_a_hint() -> None:
    stream = of_groups((0, 1), (2, 3))
    for learner in (made(), learnt(stream)):  # before anything is learnt, too
        with pytest.raises(ValueError, match="infer is 'entrpy'; did you mean 'entropy'"):
            learner.evaluate(stream, infer="entrpy")
    with pytest.raises(ValueError, match=r"'nearest mean' is not known; .*task 1\. Did you mean 'nearest-mean'\?"):
        learner.predict(all_rows(stream), task="nearest mean")


@every_way
def test_before_anything_is_learnt_nothing_can_be_inferred(how: str) -> None:
    learner, stream = made(), of_groups((0, 1), (2, 3))
    assert learner.evaluate(stream, infer=how) == [None, None]
    with pytest.raises(ValueError, match="learnt nothing yet"):
        learner.predict(all_rows(stream), task=how)
    learner.open_ahead(stream)
    with pytest.raises(ValueError, match="learnt nothing yet"):
        learner.predict(all_rows(stream), task=how)


@every_way
@pytest.mark.parametrize("scenario", ["class", "domain"])
def test_scenarios_that_hide_the_task_do_not_infer_it(scenario: str, how: str) -> None:
    stream = of_groups((0, 1), (2, 3))
    learner = learnt(stream[:1], methods.Finetune(), scenario=scenario)
    for call in (lambda: learner.predict(all_rows(stream), how), lambda: learner.evaluate(stream, infer=how)):
        with pytest.raises(ValueError, match=f'{how!r} infers the task, which needs scenario "task" and classif'):
            call()
    assert learner.means.means == {}


def test_objectives_without_one_label_a_row_do_not_infer_the_task() -> None:
    x = x_of(blobs((0, 1), 40, 0))
    task = Task((x, x[:, :2]), (x, x[:, :2]), name="line")
    learner = learnt([task], methods.Finetune(), objective="regression")
    with pytest.raises(ValueError, match='needs scenario "task" and classification'):
        learner.evaluate(task, infer="entropy")


class Own(nn.Module):
    """A network of the user's own: grow and forward only."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.body, self.head = nn.Linear(12, 8), models.Head(8)

    def grow(self, columns: int, generator: torch.Generator) -> None:
        self.head.grow(columns, generator)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x).relu())
        return scores


class Counts(Own):
    """`features` is something else."""

    features = 8


class Twice(nn.Module):
    """Calls its head twice, so that it has no one thing that the head sees."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(12, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.fc(self.body(x)) + self.fc(self.body(-x))
        return scores


@pytest.mark.parametrize("network", [Own, Counts, lambda: models.adapt(Twice())], ids=["none", "number", "twice"])
def test_a_network_without_features_learns_and_only_nearest_mean_is_refused(network: Any) -> None:
    stream = of_groups((0, 1), (2, 3))
    learner = learnt(stream, methods.Finetune(), model=network())
    assert len(learner.evaluate(stream, infer="entropy")) == 2
    with pytest.raises(ValueError, match=r"no mean features are known of task 'task 0'; .*: use \"entropy\""):
        learner.evaluate(stream, infer="nearest-mean")


@every_way
def test_a_task_that_is_called_like_a_way_stays_a_task(how: str) -> None:
    first, second = of_groups((0, 1), (2, 3))
    first = Task(first.train, first.test, name=how)
    learner = learnt([first, second])
    assert set(learner.predict(x_of(second.test), task=how).tolist()) <= {0, 1}
    assert isinstance(learner.evaluate(second, infer=how), float)
    fresh = learnt([second])
    with pytest.raises(ValueError, match=f"task {how!r} is not known"):
        fresh.predict(x_of(second.test), task=first)  # a task, not a way


# ---- outputs opened ahead ----


@dataclass(eq=False)
class Spy(Method):
    """Keeps what the loss was made of."""

    name: ClassVar[str] = "spy"
    seen: list[tuple[Batch, Tensor, Tensor]] = field(default_factory=list)

    def after_step(self, host: Host, batch: Batch, outputs: Tensor) -> None:
        self.seen.append((batch, outputs, host.loss))  # type: ignore[attr-defined]


@pytest.mark.parametrize(("scenario", "columns"), [("class", 6), ("domain", 2), ("task", 6)])
def test_with_outputs_opened_ahead_the_loss_is_over_all_of_them_from_the_first_step(
    scenario: str, columns: int
) -> None:
    stream = small_stream(rows=32)
    spy = Spy()
    learner = made(spy, scenario=scenario)
    learner.open_ahead(task for task in stream)
    assert learner.classes == [0, 1, 2, 3, 4, 5] and learner.columns == 0
    learner.learn(stream[0])
    assert learner.columns == 2
    batch, outputs, loss = spy.seen[0]
    assert outputs.shape == (16, columns)
    over = 2 if scenario == "task" else columns
    torch.testing.assert_close(loss, F.cross_entropy(outputs[:, :over], batch.columns))
    assert learner.model.head.columns == columns


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_outputs_are_drawn_alike_whether_they_are_opened_ahead_or_not(scenario: str) -> None:
    stream = small_stream(rows=32)
    ahead, plain = (made(methods.Finetune(), scenario=scenario, optimizer={"name": "sgd", "lr": 0.1}) for _ in "ab")
    ahead.open_ahead(stream)
    for learner in (ahead, plain):
        for task in stream:
            learner.learn(task)
    pairs = zip(ahead.model.parameters(), plain.model.parameters(), strict=True)
    gap = max(float((a - b).detach().abs().max()) for a, b in pairs)
    assert gap < 1e-4 if scenario == "task" else gap > 1e-2  # a task that answers with its own columns: no other loss


@pytest.mark.parametrize("scenario", ["class", "domain", "task"])
def test_outputs_opened_ahead_come_back_from_the_file_before_and_after_a_task(scenario: str, tmp_path: Any) -> None:
    stream = small_stream(rows=32)
    learner = made(methods.LwF(), scenario=scenario)
    learner.open_ahead(stream)
    for task in stream[:2]:
        learner.save(tmp_path / "file")
        again = Learner.load(tmp_path / "file")
        assert differences(snapshot(learner), snapshot(again)) == []
        assert (again.columns, again.labels.begun, again.classes) == (
            learner.columns, learner.labels.begun, learner.classes,
        )  # fmt: skip
        for either in (learner, again):
            either.learn(task)
        assert differences(snapshot(learner), snapshot(again)) == []


class Breaks(Callback):
    def after_step(self, learner: Learner) -> None:
        if learner.clock.step == 1:
            raise RuntimeError("broken")


def test_outputs_opened_ahead_stay_open_when_learning_fails() -> None:
    stream = small_stream(rows=32)
    learner = made(methods.Finetune(), scenario="class", callbacks=[Breaks()])
    learner.open_ahead(stream)
    before = snapshot(learner)
    with pytest.raises(RuntimeError, match="broken"):
        learner.learn(stream[0])
    assert differences(before, snapshot(learner)) == []
    assert (learner.columns, learner.labels.begun) == (0, [])
    learner.callbacks.clear()
    learner.learn(stream[0])
    assert learner.columns == 2


def test_outputs_are_not_opened_ahead_once_learning_has_begun() -> None:
    stream = small_stream(rows=32)
    refused: list[bool] = []

    class Tries(Callback):
        def after_step(self, learner: Learner) -> None:
            with pytest.raises(RuntimeError, match="before the first task is learnt"):
                learner.open_ahead(stream)
            refused.append(True)

    learner = made(methods.Finetune(), scenario="class", callbacks=[Tries()])
    learner.learn(stream[0])
    assert len(refused) == 4
    with pytest.raises(RuntimeError, match="before the first task is learnt"):
        learner.open_ahead(stream)
    assert learner.classes == [0, 1]
    fresh = made(methods.Finetune(), scenario="class")
    with pytest.raises(TypeError, match="takes the tasks of a stream"):
        fresh.open_ahead([stream[0], "task 1"])
    assert fresh.classes == []


@pytest.mark.parametrize("scenario", ["class", "domain", "task"])
def test_lwf_does_not_distil_from_outputs_that_nothing_was_learnt_for(scenario: str) -> None:
    stream = small_stream(rows=32)
    method = methods.LwF()
    plain, taught = made(methods.Finetune(), scenario=scenario), made(method, scenario=scenario)
    for learner in (plain, taught):
        learner.open_ahead(stream)
        learner.learn(stream[0])
    assert method.teacher == {}
    assert differences(snapshot(plain)["weights"], snapshot(taught)["weights"]) == []
    for learner in (plain, taught):
        learner.learn(stream[1])
    assert method.columns == 2
    assert differences(snapshot(plain)["weights"], snapshot(taught)["weights"]) != []


@pytest.mark.parametrize("scenario", ["class", "domain", "task"])
def test_a_task_still_to_come_has_a_grade_and_is_never_inferred(scenario: str) -> None:
    stream = small_stream(rows=32)
    learner = made(methods.Finetune(), scenario=scenario)
    learner.open_ahead(stream)
    assert all(isinstance(grade, float) for grade in learner.evaluate(stream))
    learner.learn(stream[1])
    assert all(isinstance(grade, float) for grade in learner.evaluate(stream))
    if scenario != "task":
        return
    assert learner.labels.begun == ["task 1"]
    for how in HOW:
        assert set(learner.predict(all_rows(stream), task=how).tolist()) <= {2, 3}
        grades = learner.evaluate(stream, infer=how)
        assert grades[0] == grades[2] == 0 and grades[1] == learner.evaluate(stream[1])
    learner.learn(stream[0])
    assert learner.labels.begun == ["task 0", "task 1"]
    ahead = made(methods.Finetune())
    ahead.open_ahead([*stream, Task(blobs((40,), 8, 0), name="alone")])  # it has one label, and is not learnt
    ahead.learn(stream[0])
    assert ahead.evaluate(stream[0], infer="entropy") == ahead.evaluate(stream[0])
    assert learner.evaluate(stream, infer="nearest-mean")[0] > 0
