"""The learner: tasks in, the user's own labels out, in every scenario; evaluation that changes nothing; a file."""

import contextlib
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from conftest import blobs, small_stream
from torch import nn
from trees import bits, differences, snapshot

from perdure import Callback, Learner, Method, Rows, Task, methods, models
from perdure.method import memory

ANIMALS = ["newt", "ant", "yak", "bee", "zebu", "cow", "owl", "dog"]
LABELS = {"ints": [70, 3, 55, -1, 8, 100, 2, 0], "strings": ANIMALS, "mixed": [9, 4, *ANIMALS[2:4], 1, 0, *ANIMALS[6:]]}
SCENARIOS = [("class", "separate"), ("domain", "separate"), ("task", "separate"), ("task", "shared")]


def made(method: Method | None = None, **settings: Any) -> Learner:
    model = settings.pop("model", None) or models.mlp(12, (24,))
    defaults = {"scenario": "class", "epochs": 4, "batch_size": 16, "optimizer": {"name": "adam", "lr": 0.01}}
    return Learner(model, method or methods.Finetune(), **(defaults | settings))


def named(classes: tuple[int, ...], names: list, seed: int, rows: int = 60) -> Rows:
    """Blobs under the user's own labels."""
    found = blobs(classes, rows, seed)
    return Rows(found.read(torch.arange(rows)), [names[label] for label in found.labels])


def stream_of(names: list, groups: tuple[tuple[int, ...], ...] = ((0, 1), (2, 3), (4, 5))) -> list[Task]:
    return [Task(named(g, names, i), named(g, names, 50 + i), name=f"task {i}") for i, g in enumerate(groups)]


def x_of(rows: Rows) -> torch.Tensor:
    return rows.read(torch.arange(len(rows)))


def accuracy(learner: Learner, task: Task, reveal: bool) -> float:
    """From the user's side: labels answered rightly."""
    answers = learner.predict(x_of(task.test), task=task if reveal else None)
    answers = answers.tolist() if isinstance(answers, torch.Tensor) else answers
    return sum(a == b for a, b in zip(answers, task.test.labels, strict=True)) / len(answers)


# ---- learning and answering ----


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize(("scenario", "heads"), SCENARIOS)
def test_all_tasks_are_answered_in_the_users_own_labels(scenario, heads, kind):
    stream = stream_of(LABELS[kind])
    learner = made(methods.Joint(), scenario=scenario, heads=heads, epochs=6)
    for task in stream:
        learner.learn(task)
    grades = learner.evaluate(stream)
    assert min(grades) > 0.9
    assert learner.classes == [label for task in stream for label in task.classes]
    assert learner.tasks == {task.name: list(task.classes) for task in stream}
    reveal = scenario != "class"  # in scenario "domain" a label can be named once the task is
    for task, grade in zip(stream, grades, strict=True):
        assert accuracy(learner, task, reveal) == pytest.approx(grade)
        p = learner.predict_proba(x_of(task.test), task=task.name if reveal else None)
        labels = list(task.classes) if reveal else learner.classes
        assert p.shape == (60, len(labels))
        assert torch.allclose(p.sum(1), torch.ones(60))
        right = torch.tensor([labels.index(label) for label in task.test.labels])
        assert (p.argmax(1) == right).float().mean().item() == pytest.approx(grade)


def test_predictions_are_a_tensor_of_ints_or_a_list():
    for kind, expected in (("ints", torch.Tensor), ("strings", list), ("mixed", list)):
        learner = made(epochs=1)
        for task in stream_of(LABELS[kind]):
            learner.learn(task)
        assert type(learner.predict(torch.zeros(3, 12))) is expected


def test_domain_answers_with_labels_where_all_tasks_share_them_and_with_numbers_otherwise():
    same = [Task(named((i, i + 1), ["no", "yes", "no", "yes", "no"], i), name=f"month {i}") for i in (0, 2)]
    learner = made(scenario="domain")
    for task in same:
        learner.learn(task)
    assert set(learner.predict(x_of(same[0].train))) <= {"no", "yes"}
    learner.learn(Task(named((4, 5), ANIMALS, 0), name="other"))
    assert learner.predict(torch.zeros(2, 12)).dtype == torch.int64
    assert set(learner.predict(torch.zeros(2, 12), task="other")) <= set(ANIMALS[4:6])


def test_labels_keep_the_order_in_which_they_were_learnt():
    rows = named((0, 1, 2), ANIMALS, 0)
    learner = made(epochs=8)
    learner.learn(Task(rows, classes=["yak", "newt", "ant"]))
    learner.learn(Task(named((3, 1), ANIMALS, 1)))
    assert learner.classes == ["yak", "newt", "ant", "bee"]
    other = made(epochs=8)
    other.learn(Task(rows, rows, name="sorted"))
    assert other.classes == ["ant", "newt", "yak"]
    assert other.evaluate(Task(rows, rows, classes=["yak", "newt", "ant"])) == other.evaluate(Task(rows, rows)) > 0.9


@pytest.mark.parametrize(("scenario", "heads"), SCENARIOS)
def test_classes_come_back_and_a_task_may_hold_one_class(scenario, heads):
    stream = stream_of(ANIMALS, ((0, 1), (1,), (2, 1), (1, 0)))
    learner = made(methods.Replay(200), scenario=scenario, heads=heads, epochs=6)
    for task in stream:
        learner.learn(task)
    assert learner.classes == ["ant", "newt", "yak"]
    assert learner.columns == {"class": 3, "domain": 2, "task": 3 if heads == "shared" else 7}[scenario]
    assert min(learner.evaluate(stream)) > 0.9


def test_a_task_named_again_extends_its_head_and_keeps_its_columns():
    first, other, again = stream_of(ANIMALS, ((0, 1), (2, 3), (1, 4)))
    again = Task(again.train, again.test, name=first.name)
    learner = made(methods.Replay(300), scenario="task", epochs=8)
    learner.learn(first)
    learner.learn(other)
    learner.learn(again)
    assert learner.tasks == {"task 0": ["ant", "newt", "zebu"], "task 1": ["bee", "yak"]}
    assert learner.labels.answers("task 0")[0] == [0, 1, 4]
    assert min(learner.evaluate([first, other, again])) > 0.9
    assert set(learner.predict(x_of(again.test), task="task 0")) == {"ant", "zebu"}


@pytest.mark.parametrize("scenario", ["domain", "task"])
def test_regression_learns_values_and_gives_them_back(scenario):
    weights = torch.randn(12, 2, generator=torch.Generator().manual_seed(3))
    x = x_of(blobs((0, 1, 2), 120, 0))
    task = Task((x, x @ weights / 5), (x[:50], x[:50] @ weights / 5), name="line")
    learner = made(scenario=scenario, objective="regression", epochs=60)
    learner.learn(task)
    assert learner.evaluate(task) > 0.95
    values = learner.predict(x[:50], task="line")
    y = x[:50] @ weights / 5
    r2 = 1 - (values - y).square().sum(0) / (y - y.mean(0)).square().sum(0)
    assert r2.mean().item() == pytest.approx(learner.evaluate(task), abs=1e-4)


def test_multi_label_gives_back_lists_of_labels():
    x = x_of(blobs((0, 1, 2), 90, 0))
    y = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 1]]).repeat(30, 1)
    task = Task((x, y), (x, y), classes=["red", "round", "ripe"])
    learner = made(objective="multi-label", epochs=12)
    learner.learn(task)
    assert learner.predict(x[:3]) == [["red", "ripe"], [], ["round", "ripe"]]
    assert learner.evaluate(task) > 0.95


# ---- evaluate ----


def test_grades_are_none_where_a_task_brings_a_label_that_is_not_known():
    stream = stream_of(ANIMALS)
    half_known = Task(named((0, 4), ANIMALS, 9), named((0, 4), ANIMALS, 8), name="half known")
    new_name = Task(stream[0].train, stream[0].test, name="new name")
    expected = {  # before and after the first task
        ("class", "separate"): ([None] * 5, [1, None, None, None, 1]),
        ("domain", "separate"): ([None] * 5, [1, 1, 1, 1, 1]),
        ("task", "separate"): ([None] * 5, [1, None, None, None, None]),
    }
    for (scenario, heads), (before, after) in expected.items():
        learner = made(scenario=scenario, heads=heads, epochs=1)
        everything = [*stream, half_known, new_name]
        assert learner.evaluate(everything) == before
        learner.learn(stream[0])
        assert [grade if grade is None else 1 for grade in learner.evaluate(everything)] == after
        assert isinstance(learner.evaluate(stream[0]), float)
        assert learner.evaluate(stream[0]) == learner.evaluate(stream)[0]


def test_answering_changes_nothing():
    stream = small_stream(rows=40)
    learner = made(model=models.mlp(12, (8, 8), dropout=0.5, norm=True), epochs=1)
    learner.learn(stream[0])
    assert all(module.training for module in learner.model.modules())
    learner.model.body[2].eval()  # flags as a user may have set them
    flags = [module.training for module in learner.model.modules()]
    before, chance = snapshot(learner), torch.get_rng_state()
    gradients = [None if p.grad is None else p.grad.clone() for p in learner.model.parameters()]
    for _ in range(2):
        learner.evaluate(stream)
        learner.predict(x_of(stream[1].test))
        learner.predict_proba(x_of(stream[2].test))
    assert differences(before, snapshot(learner)) == []
    assert [module.training for module in learner.model.modules()] == flags
    assert torch.equal(chance, torch.get_rng_state())
    for p, gradient in zip(learner.model.parameters(), gradients, strict=True):
        assert (p.grad is None) is (gradient is None)
        assert gradient is None or torch.equal(p.grad, gradient)


class EvaluatesEachStep(Callback):
    def __init__(self, stream):
        self.stream = stream

    def after_step(self, learner):
        learner.evaluate(self.stream)
        learner.predict(torch.zeros(2, 12))


def test_evaluating_after_every_step_does_not_change_what_is_learnt():
    stream = small_stream(rows=40)
    states = []
    for callbacks in ([], [EvaluatesEachStep(stream)]):
        model = models.mlp(12, (8,), dropout=0.3, norm=True)
        learner = made(methods.EWC() + methods.Replay(20), model=model, epochs=2, callbacks=callbacks)
        for task in stream[:2]:
            learner.learn(task)
        states.append(snapshot(learner))
    assert differences(*states) == []


def test_predict_says_what_it_needs():
    learner = made(scenario="task", epochs=1)
    with pytest.raises(ValueError, match="learnt nothing yet"):
        learner.predict(torch.zeros(1, 12))
    learner.learn(small_stream()[0])
    with pytest.raises(ValueError, match="pass task=, one of 'task 0'"):
        learner.predict(torch.zeros(1, 12))
    with pytest.raises(ValueError, match="'task 7' is not known; learnt so far: task 0"):
        learner.predict_proba(torch.zeros(1, 12), task="task 7")
    with pytest.raises(ValueError, match="'task 0' has no test rows"):
        learner.evaluate(Task(blobs((0, 1), 8, 0), name="task 0"))


def test_chance_is_the_learners_own_and_torchs_generator_is_given_back():
    weights = []
    for outside in (1, 2):
        torch.manual_seed(outside)
        before = torch.get_rng_state()
        learner = made(methods.Replay(20), model=models.mlp(12, (8,), dropout=0.5), epochs=1)
        for task in small_stream(rows=40):
            learner.learn(task)
            assert torch.equal(before, torch.get_rng_state())
            torch.rand(outside)
            before = torch.get_rng_state()
        weights.append(snapshot(learner)["weights"])
    assert differences(*weights) == []
    other = made(methods.Replay(20), model=models.mlp(12, (8,), dropout=0.5), epochs=1, seed=1)
    other.learn(small_stream(rows=40)[0])
    assert not torch.equal(other.model.head.weights[0], weights[0]["head.weights.0"])


# ---- the file ----

OF_BUILT_INS = {
    "adam": (lambda: methods.LwF(2.0, temperature=3.0) + methods.Replay("4 kB", policy="balanced"), {}),
    "sgd": (lambda: methods.EWC(3.0, anchor="each"), {"optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}}),
    "rest": (
        methods.MAS,
        {"scenario": "task", "clip": 1.0, "accumulate": 2, "schedule": "cosine", "validation": 0.1, "patience": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OF_BUILT_INS)
def test_a_learner_of_built_ins_comes_back_from_its_file_alone(case, tmp_path):
    method, settings = OF_BUILT_INS[case]
    stream = small_stream(rows=40)
    learner = made(method(), model=models.mlp(12, (7, 5), norm=True, dropout=0.1), epochs=1, **settings)
    learner.learn(stream[0])
    learner.learn(stream[1])
    learner.save(tmp_path / "file")
    again = Learner.load(tmp_path / "file")
    assert repr(again.method) == repr(learner.method)
    assert again.settings == learner.settings
    assert again.optimizer.defaults == learner.optimizer.defaults
    assert (again.classes, again.tasks) == (learner.classes, learner.tasks)
    assert differences(snapshot(learner), snapshot(again)) == []
    assert again.evaluate(stream) == learner.evaluate(stream)
    learner.learn(stream[2])
    again.learn(stream[2])
    assert differences(snapshot(learner), snapshot(again)) == []


class Plain(Method):
    name = "plain"


def own_network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def own_optimizer(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05, momentum=0.9)


def test_parts_of_the_users_own_are_passed_to_load_and_the_error_lists_what_is_missing(tmp_path):
    stream = small_stream(rows=40)
    learner = made(Plain(), model=models.adapt(own_network(), head="3"), optimizer=own_optimizer, epochs=1)
    for task in stream[:2]:
        learner.learn(task)
    learner.save(tmp_path / "file")
    with pytest.raises(ValueError, match=r"pass model= .*, method= .*, optimizer= ") as error:
        Learner.load(tmp_path / "file")
    assert "not built in" in str(error.value)
    network = models.adapt(own_network(), head="3")
    with pytest.raises(ValueError, match=r"pass method= ") as error:
        Learner.load(tmp_path / "file", model=network, optimizer=own_optimizer)
    assert "model=" not in str(error.value)
    again = Learner.load(tmp_path / "file", model=network, method=Plain(), optimizer=own_optimizer)
    assert differences(snapshot(learner), snapshot(again)) == []
    learner.learn(stream[2])
    again.learn(stream[2])
    assert differences(snapshot(learner), snapshot(again)) == []


def test_a_network_with_classes_of_its_own_comes_back(tmp_path):
    learner = made(model=models.adapt(own_network(), head="3", classes=["x", "y"]), epochs=1)
    learner.learn(small_stream(rows=40)[1])
    learner.save(tmp_path / "file")
    again = Learner.load(tmp_path / "file", model=models.adapt(own_network(), head="3", classes=["x", "y"]))
    assert again.classes == ["x", "y", 2, 3]
    assert differences(snapshot(learner), snapshot(again)) == []


@dataclass
class Counts(Callback):
    steps: int = memory(int)
    losses: list = memory(list)

    def after_step(self, learner):
        self.steps += 1
        self.losses.append(float(learner.loss))


def test_what_a_callback_remembers_travels_with_the_learner(tmp_path):
    learner = made(epochs=1, callbacks=[Counts()])
    learner.learn(small_stream(rows=40)[0])
    learner.save(tmp_path / "file")
    counts = Counts()
    again = Learner.load(tmp_path / "file", callbacks=[Callback(), counts])
    assert counts.steps == 3 == len(counts.losses)
    assert counts.losses == learner.callbacks[0].losses
    again.learn(small_stream(rows=40)[1])
    assert counts.steps == 6
    assert bits(again.model.head.weights[0]).numel() == 16 * 24 * 4


# ---- what belongs to the user stays the user's ----


def test_the_rates_of_a_users_own_scheduler_are_left_alone():
    class Halve(Callback):
        def after_step(self, learner):
            for group in learner.optimizer.param_groups:
                group["lr"] *= 0.5
            rates.append(learner.optimizer.param_groups[0]["lr"])

    rates: list[float] = []
    learner = Learner(
        models.mlp(12, (8,)), methods.Finetune(), scenario="class", batch_size=40, callbacks=[Halve()],
        optimizer={"name": "sgd", "lr": 0.8},
    )  # fmt: skip
    learner.learn(small_stream(tasks=1)[0])
    assert rates == [0.4, 0.2, 0.1]


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_given_in_eval_mode_learns_in_train_mode_and_gets_its_mode_back(fails):
    class Look(Callback):
        def after_step(self, learner):
            seen.append(all(module.training for module in learner.model.modules()))
            if fails and len(seen) == 2:
                raise KeyboardInterrupt

    seen: list[bool] = []
    learner = Learner(
        models.mlp(12, (8,), dropout=0.5), methods.Finetune(), scenario="class", batch_size=40, callbacks=[Look()],
        save_every=0.0,
    )  # fmt: skip
    learner.model.eval()
    with pytest.raises(KeyboardInterrupt) if fails else contextlib.nullcontext():
        learner.learn(small_stream(tasks=1)[0])
    assert seen and all(seen)
    assert not any(module.training for module in learner.model.modules())
