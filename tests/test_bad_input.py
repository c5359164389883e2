"""What a learner is given and cannot use: a sentence, before anything is trained, and the learner as it was."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import blobs, small_stream
from torch import nn
from trees import differences, snapshot

from perdure import Callback, Learner, Method, Rows, Task, methods, models

FIRST = small_stream(tasks=1, rows=40)[0]


def x_of(rows: Rows) -> torch.Tensor:
    return rows.read(torch.arange(len(rows)))


X = x_of(blobs((0, 1), 40, 7))
Y = [2, 3] * 20
VALUES = X[:, :2].contiguous() / 3
NAN, INF = float("nan"), float("inf")


def made(**settings: Any) -> Learner:
    model = settings.pop("model", None) or models.mlp(12, (8,))
    method = settings.pop("method", None) or methods.Finetune()
    return Learner(model, method, **({"scenario": "class", "batch_size": 16} | settings))


def spoilt(x: torch.Tensor, row: int, value: float) -> torch.Tensor:
    x = x.clone()
    x[row].view(-1)[0] = value
    return x


class Steps(Callback):
    taken = 0

    def after_step(self, learner: Learner) -> None:
        self.taken += 1


class Case(NamedTuple):
    """`learner` has learnt `first`, is given `task()`, and refuses with `error` and `words` (None: it learns)."""

    task: Callable[[], Any]
    error: type[Exception] | None = None
    words: str = ""
    settings: dict[str, Any] = {}  # noqa: RUF012
    first: Task | None = FIRST


VALUED = Task((X, VALUES), name="valued")
DOMAIN_VALUES = {"scenario": "domain", "objective": "regression"}
TASK_LABELS = {"scenario": "task", "objective": "multi-label"}

LEARN = {
    # values
    "NaN in x": Case(lambda: Task((spoilt(X, 5, NAN), Y)), ValueError, "40 rows hold NaN or infinity .first: row 5"),
    "infinity in x": Case(lambda: Task((spoilt(X, 0, INF), Y)), ValueError, "1 of 40 rows hold NaN or infinity"),
    "NaN in test x": Case(lambda: Task((X, Y), (spoilt(X, 3, NAN), Y)), ValueError, "first: row 3"),
    "NaN in validation x": Case(lambda: Task((X, Y), validation=(spoilt(X, 3, -INF), Y)), ValueError, "first: row 3"),
    "NaN in float y": Case(
        lambda: Task((X, spoilt(VALUES, 9, NAN)), name="n"), ValueError, "first: row 9", DOMAIN_VALUES, VALUED
    ),
    "infinity in float y": Case(
        lambda: Task((X, spoilt(VALUES, 9, INF)), name="n"), ValueError, "first: row 9", DOMAIN_VALUES, VALUED
    ),
    "NaN in column y": Case(lambda: Task((X, spoilt(VALUES[:, 0], 1, NAN))), ValueError, "NaN in 1 rows .first: row 1"),
    # labels
    "label outside classes": Case(lambda: Task((X, Y), classes=[2, 4]), ValueError, "label 3, but the classes are"),
    "test label outside classes": Case(lambda: Task((X, Y), (X, [2, 9] * 20)), ValueError, "test: .* label 9"),
    "float labels": Case(lambda: Task((X, [2.0, 3.0] * 20)), TypeError, "pass integers for classification"),
    "boolean labels": Case(lambda: Task((X, [True, False] * 20)), TypeError, "pass 0 and 1"),
    "boolean label tensor": Case(lambda: Task((X, torch.ones(40, dtype=torch.bool))), TypeError, "y holds booleans"),
    "missing label": Case(lambda: Task((X, ["a", None] * 20)), ValueError, "row 1 has no value"),
    "strings among ints": Case(lambda: Task((X, ["a", 1] * 20)), TypeError, "all of them strings or all of them int"),
    "labels as objects": Case(lambda: Task((X, [{}] * 40)), TypeError, "pass integers or strings of shape"),
    "one-hot integers": Case(lambda: Task((X, torch.ones(40, 3).long())), TypeError, "integers or strings of shape"),
    "no labels": Case(lambda: Task(X), ValueError, "need labels; pass .x, y."),
    "no labels, classes given": Case(lambda: Task(X, classes=[2, 3]), ValueError, "no labels; learn needs them"),
    "numbers for classification": Case(lambda: VALUED, ValueError, "'classification' needs whole numbers or strings"),
    "classes for regression": Case(
        lambda: Task((X, Y)), ValueError, "'regression' needs float labels", DOMAIN_VALUES, VALUED
    ),
    "classes for multi-label": Case(
        lambda: Task((X, Y)), ValueError, "'multi-label' needs float labels", TASK_LABELS, Task((X, VALUES.round()))
    ),
    "another number of outputs": Case(
        lambda: Task((X, X[:, :3] / 3), name="w"), ValueError, "'w' has 3 outputs, and the learner has 2",
        DOMAIN_VALUES, VALUED,
    ),
    "outputs of a task named again": Case(
        lambda: Task((X, VALUES.round()), name="t", classes=["b", "a"]), ValueError, "back with outputs .'b', 'a'.",
        TASK_LABELS, Task((X, VALUES.round()), name="t", classes=["a", "b"]),
    ),
    # rows
    "no rows": Case(lambda: Task((X[:0], [])), ValueError, "no rows"),
    "no rows selected": Case(lambda: Task(Rows(X, Y).select([])), ValueError, "empty"),
    "no test rows": Case(lambda: Task((X, Y), Rows(X, Y).select([])), ValueError, "test rows of a task are empty"),
    "more x than y": Case(lambda: Task((X, Y[:-1])), ValueError, "x has 40 rows and y has 39"),
    "more y than x": Case(lambda: Task((X[:-1], Y)), ValueError, "x has 39 rows and y has 40"),
    "another width": Case(lambda: Task((X[:, :7], Y)), ValueError, "inputs .*7.*, earlier tasks had .*12"),
    "another rank": Case(lambda: Task((X.view(40, 3, 4), Y)), ValueError, "inputs .*3, 4.*, earlier tasks had .*12"),
    "another dtype": Case(lambda: Task(((X * 9).to(torch.uint8), Y)), ValueError, "uint8.*, earlier tasks .*float32"),
    "named columns": Case(lambda: Task(({"a": X}, Y)), ValueError, "'a'.*, earlier tasks had"),
    "test of another shape": Case(lambda: Task((X, Y), (X[:, :5], Y)), ValueError, "test rows have shape"),
    "rows that the model cannot take": Case(
        lambda: Task((X[:, :7], Y), name="n"), ValueError, "the model cannot take the rows of task 'n'", first=None
    ),
    "words for a model of numbers": Case(
        lambda: Task((torch.ones(40, 12).long(), Y)), ValueError, "the model cannot take the rows", first=None
    ),
    "not a task": Case(lambda: (X, Y), TypeError, "learn takes a Task, not a tuple"),
    # what may look wrong and works
    "one class": Case(lambda: Task((X, [5] * 40))),
    "one row": Case(lambda: Task((X[:1], [5]))),
    "classes that come back": Case(lambda: Task((X, [1, 7] * 20))),
    "the very same task": Case(lambda: FIRST),
    "fewer rows than a batch": Case(lambda: Task((X[:5], Y[:5])), settings={"batch_size": 1000}),
    "classes wider than the rows": Case(lambda: Task((X, Y), classes=[9, 3, 2, 8])),
    "float64 first": Case(lambda: Task((X.double(), Y)), first=None),
}  # fmt: skip


@pytest.mark.parametrize("name", LEARN)
def test_learn(name):
    case, steps = LEARN[name], Steps()
    learner = made(**case.settings)
    if case.first is not None:
        learner.learn(case.first)
    learner.callbacks.append(steps)
    before, chance = snapshot(learner), torch.get_rng_state()
    if case.error is None:
        learner.learn(case.task())
        assert steps.taken > 0
        assert all(p.isfinite().all() for p in learner.model.parameters())
    else:
        with pytest.raises(case.error, match=case.words):
            learner.learn(case.task())
        assert steps.taken == 0
        assert differences(before, snapshot(learner)) == []
    assert torch.equal(chance, torch.get_rng_state())


def test_the_check_before_learning_leaves_batch_norm_and_chance_alone():
    learner = made(model=models.convnet((1, 4, 4), (4,)))
    images = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    before, chance = snapshot(learner), torch.get_rng_state()
    with pytest.raises(ValueError, match="cannot take"):
        learner.learn(Task((images.repeat(1, 2, 1, 1), Y[:20])))
    learner.callbacks.append(Refuses())
    with pytest.raises(InterruptedError):
        learner.learn(Task((images, Y[:20])))
    assert differences(before, snapshot(learner)) == []
    assert torch.equal(chance, torch.get_rng_state())


class Refuses(Callback):
    def before_task(self, learner: Learner, task: Task) -> None:
        raise InterruptedError


# ---- learners that cannot be made ----


class OnlyTask(Method):
    name = "only-task"
    scenarios = ("task",)
    objectives = ("classification",)


class Fixed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def owned() -> Method:
    method = methods.Replay(10)
    made(method=method)
    return method


MAKE = {
    "model that cannot grow": (lambda: {"model": Fixed()}, "Fixed cannot grow: wrap it, models.adapt"),
    "scenario": (lambda: {"scenario": "clas"}, "scenario is 'clas'; did you mean 'class'"),
    "objective": (lambda: {"objective": "regresion"}, "objective is 'regresion'; did you mean 'regression'"),
    "heads": (lambda: {"heads": "share"}, "heads is 'share'; did you mean 'shared'"),
    "precision": (lambda: {"precision": "fp23"}, "precision is 'fp23'; did you mean 'fp32'"),
    "schedule": (lambda: {"schedule": "cosin"}, "no schedule 'cosin'; did you mean 'cosine'"),
    "schedule's setting": (lambda: {"schedule": {"name": "linear", "warmpu": 3}}, "'warmpu'; did you mean 'warmup'"),
    "schedule over tasks": (lambda: {"schedule": {"name": "cosine", "restart": False}}, "ends with the task"),
    "optimizer": (lambda: {"optimizer": "adma"}, "no optimizer 'adma'; did you mean 'adam'"),
    "optimizer's setting": (lambda: {"optimizer": {"name": "sgd", "momentun": 1}}, "'momentun'; did you mean"),
    "optimizer of another model": (
        lambda: {"optimizer": torch.optim.SGD(nn.Linear(3, 3).parameters())}, "2 of the optimizer's parameters are not"
    ),
    "regression in scenario class": (lambda: {"objective": "regression"}, 'use scenario "domain" or "task"'),
    "shared heads without tasks": (lambda: {"heads": "shared"}, 'heads="shared" is for scenario "task"'),
    "patience without validation": (lambda: {"patience": 2}, "patience needs validation rows: set validation=0.1"),
    "no patience": (lambda: {"patience": 0, "validation": 0.1}, "patience is 0; it must be a whole number, at least 1"),
    "all for validation": (lambda: {"validation": 1.0}, "validation is 1.0; it is a share"),
    "epochs": (lambda: {"epochs": 0}, "epochs is 0; it must be a whole number, at least 1"),
    "half a batch": (lambda: {"batch_size": 0.5}, "batch_size is 0.5; it must be a whole number"),
    "accumulate": (lambda: {"accumulate": True}, "accumulate is True; it must be a whole number"),
    "clip": (lambda: {"clip": 0.0}, "clip is 0.0; it is the largest gradient norm, above 0"),
    "method of another learner": (lambda: {"method": owned()}, "this replay belongs to another learner already"),
    "method of another scenario": (lambda: {"method": OnlyTask()}, "only-task works in scenario task, not 'class'"),
    "method of another objective": (
        lambda: {"method": OnlyTask(), "scenario": "task", "objective": "multi-label"}, "works with classification, not"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MAKE)
def test_making_a_learner(name):
    settings, words = MAKE[name][0](), MAKE[name][1]
    model, method = models.mlp(12, (8,)), methods.EWC()
    given = {"model": model, "method": method, "seed": 3} | settings
    with pytest.raises(ValueError, match=words):
        made(**given)
    # Nothing was touched: the same parts make the learner that new ones make.
    if "method" not in settings and "model" not in settings:
        after, fresh = made(model=model, method=method, seed=3), made(method=methods.EWC(), seed=3)
        assert differences(snapshot(after), snapshot(fresh)) == []


def test_methods_that_share_a_hook_are_refused_by_name():
    with pytest.raises(ValueError, match="joint and joint both own `fit`"):
        methods.Joint() + methods.Joint()


def test_a_part_of_a_method_cannot_serve_two_learners():
    part = methods.Replay(10)
    made(method=part + methods.EWC())
    with pytest.raises(ValueError, match="belongs to another learner"):
        made(method=part)
    with pytest.raises(ValueError, match="belongs to another learner"):
        made(method=methods.EWC() + part)


@pytest.mark.parametrize("size", [1, 2])
def test_a_process_group_of_more_than_one_is_refused(size, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: size)
    if size == 1:
        made()
        return
    with pytest.raises(RuntimeError, match="one process for now, and this process group has more: run one process"):
        made()


# ---- questions that cannot be answered ----


def test_evaluate_refuses_tasks_without_test_rows_and_changes_nothing():
    learner = made()
    learner.learn(FIRST)
    before = snapshot(learner)
    with pytest.raises(ValueError, match=r"task 'bare' has no test rows: pass Task\(train, test\)"):
        learner.evaluate([FIRST, Task((X, Y), name="bare")])
    assert differences(before, snapshot(learner)) == []


@pytest.mark.parametrize("x", [np.array(["a"]), "text", [1, 2], None], ids=str)
def test_predict_refuses_what_are_no_rows(x):
    learner = made()
    learner.learn(FIRST)
    with pytest.raises(TypeError, match=r"cannot read rows|inputs must be numbers"):
        learner.predict(x)


@pytest.mark.parametrize("x", [X[0], X[:3, :5], {"x": X[:3]}], ids=["one row", "narrow", "named"])
def test_predict_says_which_rows_it_learnt_on_where_the_model_cannot_take_them(x):
    learner = made()
    learner.learn(FIRST)
    with pytest.raises(ValueError, match=r"cannot take rows of shape .*; it learnt on .*float32', 12"):
        learner.predict(x)
    assert learner.predict(X[:1]).shape == (1,)


def test_half_precision_rows_are_converted_for_the_model():
    learner = made(method=methods.Replay(10))
    for name in ("first", "second"):
        learner.learn(Task((X.half().numpy(), Y), name=name))
    assert torch.equal(learner.predict(X.half()), learner.predict(X.half().float()))


def test_predict_refuses_bytes_where_floats_were_learnt():
    learner = made()
    learner.learn(FIRST)
    with pytest.raises(ValueError, match=r"x is uint8, .* divided by 255, but the learner learnt torch.float32"):
        learner.predict(torch.zeros(2, 12, dtype=torch.uint8))


def test_neither_predict_nor_evaluate_answers_rows_that_are_not_finite():
    learner = made()
    learner.learn(FIRST)
    bad = X[:3].clone()
    bad[1, 4] = float("nan")
    with pytest.raises(ValueError, match=r"1 of 3 rows hold NaN or infinity \(first: row 1\)"):
        learner.predict(bad)
    with pytest.raises(ValueError, match="NaN or infinity"):
        learner.evaluate(Task(FIRST.train, (bad, [0, 1, 0]), name=FIRST.name))


def test_loading_into_another_network_says_so(tmp_path):
    learner = made()
    learner.learn(FIRST)
    learner.save(tmp_path / "file")
    with pytest.raises(ValueError, match="this network is not the one that was learnt"):
        Learner.load(tmp_path / "file", model=models.mlp(12, (5,)))
