"""What every method owes, in every scenario that it declares; the methods stand in `contract.TABLE`."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from conftest import small_stream
from contract import ELSEWHERE, TABLE, Mutation, Row, Stage, parts
from trees import differences, snapshot

from perdure import Callback, Learner, Rows, Task, checkpoint, methods, models
from perdure.method import EXCLUSIVE, Method, overrides

SCENARIOS = ("task", "domain", "class")
OPTIMIZERS = {
    "adam": {"name": "adam", "lr": 0.01},
    "sgd": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    "adamw": {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
}
SEEDS = range(5)

every_row = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
every_scenario = pytest.mark.parametrize("scenario", SCENARIOS)


def in_scenarios(*scenarios: str, rows: Sequence[Row] = TABLE) -> Any:
    """The rows in each of these scenarios that they declare."""
    pairs = [(row, scenario) for row in rows for scenario in scenarios if scenario in row.scenarios]
    return pytest.mark.parametrize(("row", "scenario"), pairs, ids=[f"{row.name}-{name}" for row, name in pairs])


every_row_in_its_scenarios = in_scenarios(*SCENARIOS)


def learner(method: Method, scenario: str, norm: bool = False, **settings: Any) -> Learner:
    """Small, with dropout and two epochs."""
    defaults = {"optimizer": OPTIMIZERS["adam"], "epochs": 2, "batch_size": 8, "seed": 3}
    model = models.mlp(12, (16, 16) if norm else (16,), norm=norm, dropout=0.1)
    return Learner(model, method, scenario=scenario, **{**defaults, **settings})


def learn(method: Method, scenario: str, stream: Sequence[Task], **settings: Any) -> Learner:
    found = learner(method, scenario, **settings)
    for task in stream:
        found.learn(task)
    return found


@functools.cache
def short_stream() -> list[Task]:
    return small_stream(tasks=3, classes=2, rows=32)


def dense_stream(names: Sequence[str], tasks: int = 2) -> list[Task]:
    """Two numbers to say of each row, 0 or 1."""
    draws = torch.Generator().manual_seed(5)

    def rows(task: int) -> Rows:
        x = torch.randn(24, 12, generator=draws)
        labels = names[2 * task : 2 * task + 2] if len(names) > 2 else names
        return Rows(x, (x[:, task : task + 2] > 0).float(), classes=labels)

    return [Task(rows(t), rows(t), name=f"task {t}") for t in range(tasks)]


# ---- it runs where it says, and nowhere else ----


@every_row
@every_scenario
@pytest.mark.parametrize("objective", ["classification", "multi-label", "regression", "rating:0:1", "ranking"])
def test_it_runs_in_every_scenario_and_objective_that_it_declares(row: Row, scenario: str, objective: str) -> None:
    if scenario == "class" and objective not in ("classification", "multi-label"):
        pytest.skip("no learner has this pair")
    method = row.make()
    stream = short_stream()[:2]
    if objective != "classification":
        stream = dense_stream("abcd" if (scenario, objective) == ("class", "multi-label") else "ab")
    if scenario not in method.scenarios or objective.split(":")[0] not in method.objectives:
        with pytest.raises(ValueError, match=rf"works (in|with) .*, not '({scenario}|{objective})'"):
            learner(method, scenario, objective=objective)
        return
    found = learn(method, scenario, stream, objective=objective)
    grades = found.evaluate(stream)
    assert len(grades) == 2 and all(isinstance(grade, float) for grade in grades)
    assert all(tensor.isfinite().all() for tensor in found.model.state_dict().values())


@dataclass(eq=False)
class TasksOnly(Method):
    name: ClassVar[str] = "tasks-only"
    scenarios: ClassVar[tuple[str, ...]] = ("task",)
    objectives: ClassVar[tuple[str, ...]] = ("classification",)


@every_row
def test_what_a_part_does_not_declare_is_refused_by_name(row: Row) -> None:
    if "task" not in row.scenarios:
        with pytest.raises(ValueError, match="tasks-only works in no scenario, so not in 'task'"):
            learner(row.make() + TasksOnly(), "task")
        return
    learner(row.make() + TasksOnly(), "task")
    for scenario in ("domain", "class"):
        with pytest.raises(ValueError, match=f"tasks-only works in scenario task, not '{scenario}'"):
            learner(row.make() + TasksOnly(), scenario)
    with pytest.raises(ValueError, match="tasks-only works with classification, not 'regression'"):
        learner(row.make() + TasksOnly(), "task", objective="regression")


# ---- exact resume ----


class Cut(RuntimeError):
    pass


@dataclass(eq=False)
class Cutter(Callback):
    """Saves after the step with this number, or where there is none when the task has begun, and raises."""

    step: int | None
    path: Any

    def before_task(self, learner: Learner, task: Task) -> None:
        if self.step is None:
            learner.save(self.path)
            raise Cut

    def after_step(self, learner: Learner) -> None:
        if learner.clock.step == self.step:
            learner.save(self.path)
            raise Cut


def unbroken(row: Row, scenario: str, optimizer: str) -> list[dict[str, Any]]:
    """The states after each task."""
    found = learner(row.make(), scenario, norm=True, optimizer=OPTIMIZERS[optimizer])
    states = []
    for task in short_stream():
        found.learn(task)
        states.append(snapshot(found))
    return states


def cut_at_task_ends(row: Row, scenario: str, optimizer: str, path: Any) -> Learner:
    """Each task in a learner of its own, loaded from the save point that the one before left."""
    found = learner(row.make(), scenario, norm=True, optimizer=OPTIMIZERS[optimizer], save_to=path)
    for task in short_stream():
        found.learn(task)
        found = Learner.load(path, save_to=path)
    return found


def cut_in_the_middle(row: Row, scenario: str, optimizer: str, path: Any, step: int) -> tuple[Learner, Learner]:
    """The second task is cut after a step: (loaded from what was saved there, the learner that went on after that).

    Both have then learnt the second task.
    """
    first, second, _ = short_stream()
    found = learner(row.make(), scenario, norm=True, optimizer=OPTIMIZERS[optimizer])
    found.learn(first)
    found.callbacks.append(Cutter(found.clock.step + step if row.every_task else None, path))
    with pytest.raises(Cut):
        found.learn(second)
    found.callbacks.clear()
    loaded = Learner.load(path)
    assert (loaded.clock.task, loaded.clock.begun) == (1, True)
    loaded.learn(second)
    found.learn(second)
    return loaded, found


def check_resume(row: Row, scenario: str, optimizer: str, path: Any, step: int) -> None:
    """With batch norm and dropout in the model; every tensor and every number of the state, but for the seconds."""
    _, after_second, after_third = unbroken(row, scenario, optimizer)
    if row.one_head and row.descends:
        assert len(after_third["optimizer"]["moments"]) == len(learner(row.make(), scenario, norm=True).params())
    assert differences(after_third, snapshot(cut_at_task_ends(row, scenario, optimizer, path))) == []
    loaded, going_on = cut_in_the_middle(row, scenario, optimizer, path, step)
    assert differences(after_second, snapshot(loaded)) == []
    assert differences(after_second, snapshot(going_on)) == []
    loaded.learn(short_stream()[2])
    assert differences(after_third, snapshot(loaded)) == []


# A task's rows make 4 batches: cut in the first epoch, where rows are offered to a memory, and in the second.
CUTS = [("task", "adam", 2), ("domain", "sgd", 6), ("class", "adamw", 6)]


@every_row
@pytest.mark.parametrize(("scenario", "optimizer", "step"), CUTS)
def test_stopped_and_resumed_equals_never_stopped(
    row: Row, scenario: str, optimizer: str, step: int, tmp_path: Any
) -> None:
    scenario = scenario if scenario in row.scenarios else row.scenarios[0]
    check_resume(row, scenario, optimizer, tmp_path / "state", step)


# ---- growth, composition, chance ----


@in_scenarios("task", "class", rows=[row for row in TABLE if row.one_head and row.descends])
def test_it_works_over_the_edge_of_a_head_block(row: Row, scenario: str, tmp_path: Any) -> None:
    stream = small_stream(tasks=3, classes=7, rows=42)
    found = learn(row.make(), scenario, stream[:2])
    assert (found.model.head.columns, found.model.head.capacity) == (14, 16)
    found.save(tmp_path / "state")
    found.learn(stream[2])
    assert (found.model.head.columns, found.model.head.capacity) == (21, 32)
    moments = snapshot(found)["optimizer"]["moments"]
    assert (moments["head.weights.1"]["exp_avg"][:5] != 0).any() and (moments["head.weights.0"]["exp_avg"] != 0).any()
    assert all(0 <= grade <= 1 for grade in found.evaluate(stream))
    loaded = Learner.load(tmp_path / "state")
    loaded.learn(stream[2])
    assert differences(snapshot(found), snapshot(loaded)) == []
    loaded.save(tmp_path / "state")
    again, next_task = Learner.load(tmp_path / "state"), small_stream(tasks=4, classes=7, rows=42)[3]
    for either in (found, again):
        either.learn(next_task)
    assert differences(snapshot(found), snapshot(again)) == []


@every_row_in_its_scenarios
def test_it_composes_with_replay(row: Row, scenario: str) -> None:
    replay = methods.Replay(20)
    if not row.make().takes_steps:
        with pytest.raises(ValueError, match=f"{row.name} trains nothing, so replay could do nothing"):
            row.make() + replay
        return
    if row.make().hides_stream:
        with pytest.raises(ValueError, match=f"{row.name} trains on its own rows alone, so replay would see none"):
            row.make() + replay
        return
    both = learn(row.make() + replay, scenario, short_stream())
    if row.passes:
        assert len(replay.store) == 20 and replay.store.seen == 3 * 32
    else:
        assert len(replay.store) <= 20 and replay.store.seen < 3 * 32  # of rows that it never saw, it stored none
    alone = learn(methods.Replay(20), scenario, short_stream())
    same = differences(snapshot(alone)["weights"], snapshot(both)["weights"]) == []
    assert same == (row.name == "finetune")


@pytest.mark.parametrize("row", [row for row in TABLE if len(parts(row.make())) > 1], ids=lambda row: row.name)
def test_every_part_of_a_composition_has_its_say(row: Row) -> None:
    def weights(method: Method) -> dict[str, Any]:
        return snapshot(learn(method, row.scenarios[-1], short_stream()[:2]))["weights"]

    whole = weights(row.make())
    for left_out in range(len(parts(row.make()))):
        fewer = [part for place, part in enumerate(parts(row.make())) if place != left_out]
        assert differences(whole, weights(methods.Compose(fewer))) != []


@every_row
@pytest.mark.parametrize("hook", EXCLUSIVE)
def test_a_second_owner_of_an_exclusive_hook_is_refused_by_both_names(row: Row, hook: str) -> None:
    def owner(name: str) -> Method:
        kind = type(name, (Method,), {hook: lambda self, *rest: getattr(Method, hook)(self, *rest), "name": name})
        return kind()

    owners = [part.name for part in parts(row.make()) if overrides(part, hook)]
    if owners:
        with pytest.raises(ValueError, match=f"{owners[0]} and second both own `{hook}`"):
            row.make() + owner("second")
    else:
        with pytest.raises(ValueError, match=f"first and second both own `{hook}`"):
            row.make() + owner("first") + owner("second")


@every_row_in_its_scenarios
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(row: Row, scenario: str) -> None:
    states = []
    for seed in (3, 3, 4):
        torch.rand(seed)  # the caller's generator plays no part, and stays where it is
        before = torch.get_rng_state()
        states.append(snapshot(learn(row.make(), scenario, short_stream()[:2], seed=seed)))
        assert torch.equal(before, torch.get_rng_state())
    assert differences(states[0], states[1]) == []
    other = set(differences(states[0], states[2]))
    assert {f"/weights/{name}" for name in states[0]["weights"] if "batches" not in name} <= other


# ---- it is no plain descent, and better where its paper says so ----


@every_row_in_its_scenarios
def test_only_from_the_second_task_on_is_it_anything_but_plain_descent(row: Row, scenario: str) -> None:
    own, plain = learner(row.make(), scenario), learner(methods.Finetune(), scenario)
    for place, task in enumerate(short_stream()[:2]):
        own.learn(task)
        plain.learn(task)
        same = differences(snapshot(plain)["weights"], snapshot(own)["weights"]) == []
        assert same == (row.name == "finetune" or (place == 0 and row.plain_at_first))


def average_accuracy(make: Callable[[], Method], stage: Stage, seed: int) -> float:
    grades = matrix(make, stage, seed)[-1]
    return sum(grades) / len(grades)


@functools.cache
def stream_of(stage: Stage, seed: int) -> list[Task]:
    return stage.stream(seed)


def matrix(make: Callable[[], Method], stage: Stage, seed: int, every: bool = False) -> list[list[float]]:
    """The accuracy matrix, or its last row only."""
    stream = stream_of(stage, seed)
    found = Learner(
        models.mlp(12, stage.hidden), make(), scenario=stage.scenario, optimizer=stage.optimizer,
        epochs=stage.epochs, batch_size=stage.batch_size, seed=seed,
    )  # fmt: skip
    rows = []
    for task in stream:
        found.learn(task)
        if every:
            rows.append(found.evaluate(stream))
    return rows or [found.evaluate(stream)]


@functools.cache
def plain(stage: Stage) -> torch.Tensor:
    return torch.tensor([average_accuracy(methods.Finetune, stage, seed) for seed in SEEDS])


def lead(make: Callable[[], Method], stage: Stage) -> tuple[float, float]:
    """The mean paired difference to plain descent over the seeds, and its standard error."""
    found = torch.tensor([average_accuracy(make, stage, seed) for seed in SEEDS]) - plain(stage)
    return float(found.mean()), float(found.std()) / len(found) ** 0.5


STAGED = [row for row in (*TABLE, *ELSEWHERE) if row.stage is not None]


@pytest.mark.parametrize("stage", sorted({row.stage for row in STAGED}, key=lambda s: s.name), ids=lambda s: s.name)
def test_plain_descent_learns_each_task_of_a_stage_and_forgets_it(stage: Stage) -> None:
    matrices = [matrix(methods.Finetune, stage, seed, every=True) for seed in SEEDS]
    # None stands where a task's classes are not known yet
    grades = torch.tensor([[[grade or 0.0 for grade in row] for row in rows] for rows in matrices])
    learnt = grades.diagonal(dim1=1, dim2=2)
    assert learnt.mean() > 0.85
    forgotten = (learnt - grades[:, -1])[:, :-1].mean(1)
    assert forgotten.mean() > max(0.05, 3 * float(forgotten.std()) / len(SEEDS) ** 0.5)


@pytest.mark.parametrize("row", STAGED, ids=lambda row: row.name)
def test_it_beats_plain_descent(row: Row) -> None:
    assert row.stage is not None and row.stage.scenario in row.make().scenarios
    mean, error = lead(row.make, row.stage)
    assert mean > 3 * error, f"{row.name} leads plain descent by {mean:.3f}, standard error {error:.4f}"


def mutants() -> Iterator[Any]:
    for row in STAGED:
        for mutation in row.mutations:
            yield pytest.param(row, mutation, id=f"{row.name}-{mutation.__name__}")


@pytest.mark.parametrize(("row", "mutation"), list(mutants()))
def test_a_mutant_does_not_beat_plain_descent(row: Row, mutation: Mutation) -> None:
    assert row.stage is not None
    mean, error = lead(lambda: row.mutant(mutation), row.stage)
    assert not mean > 3 * error, f"the mutant leads plain descent by {mean:.3f}, standard error {error:.4f}"


# ---- the future, and the cost ----


@every_row_in_its_scenarios
def test_what_is_still_to_come_plays_no_part(row: Row, scenario: str) -> None:
    def opened_one_by_one() -> Iterator[Task]:
        yield from short_stream()[:2]
        raise AssertionError("the future was asked for")

    tasks = opened_one_by_one()
    blind = learner(row.make(), scenario, norm=True)
    for _ in range(2):
        blind.learn(next(tasks))
    future = [short_stream()[2], *small_stream(tasks=5, classes=2, rows=16)[3:]]
    examined = learner(row.make(), scenario, norm=True)
    for task in short_stream()[:2]:
        examined.learn(task)
        examined.evaluate([*short_stream()[:2], *future])  # looks at the future's test rows, and learns nothing
    assert differences(snapshot(blind), snapshot(examined)) == []


@every_row
def test_memory_bytes_are_those_of_the_state(row: Row, tmp_path: Any) -> None:
    found = learner(row.make(), row.scenarios[-1])
    for task in short_stream():
        found.learn(task)
        found.save(tmp_path / "state")
        held = _tensors(checkpoint.read(tmp_path / "state", "learner")["memory"])
        assert found.cost.memory_bytes == sum(tensor.numel() * tensor.element_size() for tensor in held)
    assert (found.cost.memory_bytes > 0) == row.keeps


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    items = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    for value in items:
        yield from _tensors(value)
