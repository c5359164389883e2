"""A budget ends a task's training, consolidation included, for every method alike."""

import pytest
from conftest import small_stream
from test_training import Rates, Stopped, StopsAt
from trees import differences, snapshot

from perdure import Learner, MultiplyAdds, Seconds, Steps, methods, models, training

STEP = 3 * 16 * (12 * 10 + 10 * 2)  # multiply-adds of a step of 16 rows: forward once, backward twice


def made(method=None, **settings):
    return Learner(models.mlp(12, (10,)), method or methods.Finetune(), scenario="domain", batch_size=16, **settings)


class Watch:
    """A clock that tells a second more whenever it is read."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


# ---- what a task gets ----


def test_steps_as_a_budget_are_the_setting_of_that_name():
    one, other = made(budget=Steps(7)), made(steps=7)
    for task in small_stream(rows=48):
        one.learn(task)
        other.learn(task)
    assert one.clock.step == 21 and one.account.steps == [7, 7, 7]
    assert differences(snapshot(one), snapshot(other)) == []


def test_a_budget_of_multiply_adds_ends_plain_training_at_the_step_that_reaches_it():
    for steps in (5, 5.5, 6):
        learner = made(budget=MultiplyAdds(steps * STEP))
        learner.learn(small_stream(rows=96)[0])
        assert learner.clock.step == -(-steps // 1)
        assert learner.clock.steps is None


def test_every_method_gets_the_same_over_many_tasks_consolidation_included():
    amount, tasks = 60 * STEP, small_stream(tasks=6, rows=96)
    for method in (
        methods.Finetune(),
        methods.EWC(rows=90),
        methods.MAS(rows=90),
        methods.Replay(30),
        methods.DERpp(30),
        methods.LwF(),
        methods.AGEM(30),
        methods.Joint(),
        methods.PackNet(),
    ):
        scenario = "task" if method.name == "packnet" else "domain"
        learner = Learner(
            models.mlp(12, (10,)), method, scenario=scenario, batch_size=16, budget=MultiplyAdds(amount), epochs=1
        )
        for task in tasks:
            learner.learn(task)
        assert learner.cost.multiply_adds == pytest.approx(6 * amount, rel=0.04), method.name
        assert len(learner.account.steps) == 6 and sum(learner.account.steps) == learner.clock.step


def test_what_consolidation_takes_is_missing_in_training():
    plain, dear = made(budget=MultiplyAdds(60 * STEP)), made(methods.EWC(rows=90), budget=MultiplyAdds(60 * STEP))
    for task in small_stream(rows=96):
        plain.learn(task)
        dear.learn(task)
    extra = 90 * 140 * (1 + 2 * 2) / STEP  # one forward and, for two classes, two backward passes of 90 rows
    first, second, third = dear.account.steps
    assert plain.account.steps == [60, 60, 60]
    assert first == 60  # nobody knew what consolidation would take
    assert second == pytest.approx(60 - 2 * extra, abs=1.01) and third == pytest.approx(60 - extra, abs=1.01)


def test_a_task_gets_a_step_at_least():
    learner = made(methods.EWC(rows=90), budget=MultiplyAdds(STEP))
    for task in small_stream(rows=96):
        learner.learn(task)
    assert learner.account.steps == [1, 1, 1]


def test_seconds_count_training_and_consolidation(monkeypatch):
    monkeypatch.setattr(training.time, "perf_counter", Watch())
    learner = made(budget=Seconds(40))
    for task in small_stream(rows=96):
        learner.learn(task)
    assert all(10 < steps <= 40 for steps in learner.account.steps)
    assert learner.cost.train_seconds + learner.cost.consolidate_seconds == pytest.approx(120, abs=10)


def test_passes_go_on_until_the_budget_is_used_up():
    learner = made(budget=MultiplyAdds(20 * STEP), epochs=1)
    learner.learn(small_stream(rows=32)[0])
    assert learner.clock.step == 20


# ---- planning by it ----


def test_a_schedule_ends_with_the_budget():
    watch, sgd = Rates(), {"name": "sgd", "lr": 1.0}
    learner = made(budget=MultiplyAdds(10 * STEP), schedule="linear", optimizer=sgd, callbacks=[watch])
    learner.learn(small_stream(rows=96)[0])
    assert watch.rates[1:] == pytest.approx([1 - step / 10 for step in range(1, 10)])


@pytest.mark.parametrize("cut", [1, 3, 5, 8, 11])
@pytest.mark.parametrize("method", [methods.EWC, lambda: methods.Replay(20), lambda: methods.PathNet(trial=2)])
def test_stopped_within_a_budget_and_resumed_equals_never_stopped(method, cut, tmp_path):
    stream = small_stream(rows=48)
    settings = {"budget": MultiplyAdds(40 * STEP), "schedule": "cosine", "scenario": "task", "batch_size": 16}
    unbroken = Learner(models.mlp(12, (10,)), method(), **settings)
    broken = Learner(models.mlp(12, (10,)), method(), **settings)
    for task in stream:
        unbroken.learn(task)
    broken.learn(stream[0])
    broken.callbacks.append(StopsAt(broken.clock.step + cut, tmp_path / "file"))
    with pytest.raises(Stopped):
        broken.learn(stream[1])
    resumed = Learner.load(tmp_path / "file")
    for task in stream[1:]:
        resumed.learn(task)
    assert differences(snapshot(unbroken), snapshot(resumed)) == []


# ---- what is refused ----


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seconds": 0}, "above 0"),
        ({"seconds": float("nan")}, "above 0"),
        ({"multiply_adds": True}, "above 0"),
        ({"steps": 2.5}, "whole number"),
        ({"steps": 0}, "at least 1"),
        ({"second": 5}, "did you mean"),
        ({"seconds": 5, "steps": 5}, "one of"),
        (60, "one of"),
    ],
)
def test_a_budget_that_means_nothing_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        made(budget=given)


def test_steps_and_a_budget_are_refused():
    with pytest.raises(ValueError, match="one of them"):
        made(budget=Seconds(5), steps=5)


def test_a_budget_is_part_of_the_state(tmp_path):
    learner = made(budget=Seconds(60.0))
    learner.save(tmp_path / "file")
    assert Learner.load(tmp_path / "file").account.budget == Seconds(60.0)
