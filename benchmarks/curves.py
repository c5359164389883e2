"""How cost grows, drawn: seconds a step and bytes kept against tasks, classes, rows of the buffer, and parameters."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from growth import METHODS, learner_at
from harness import Row, dump
from steps import digits

from perdure import Learner, Method, Rows, Task, methods, models

REPEATS = 3
Point = tuple[float, float, float]  # what grows, milliseconds a step, megabytes of model and memory


def against_tasks() -> dict[str, list[Point]]:
    return {name: [at_task(tasks, make()) for tasks in (2, 10, 32, 100)] for name, make in METHODS.items()}


def at_task(tasks: int, method: Method) -> Point:
    learner, watch, task = learner_at(tasks, "domain", method, 128)
    for _ in range(REPEATS):
        learner.learn(task)
    return tasks, 1000 * statistics.median(watch.taken), held(learner)


def against_classes() -> dict[str, list[Point]]:
    x, y = digits(2048)
    made: dict[str, Callable[[], Method]] = {
        "EWC": lambda: methods.EWC(rows=64, fisher="sampled"),
        "ER": methods.Replay,
    }
    return {
        name: [
            stepped(count, make(), Task(Rows(x, y), classes=range(count), name="all"))
            for count in (10, 32, 100, 316, 1000)
        ]
        for name, make in made.items()
    }


def against_rows() -> dict[str, list[Point]]:
    x, y = digits(60_000)
    rows = Rows((x * 255).to(torch.uint8), y)
    found = []
    for capacity in (500, 5_000, 50_000, 500_000, 1_000_000):
        method = methods.Replay(capacity)
        learner = Learner(models.mlp(784, (400, 400)), method, scenario="domain", steps=1)
        learner.learn(Task(rows, name="first"))
        kept = {"x": rows.read(torch.arange(60_000)), "y": y, "task": torch.zeros_like(y)}
        for _ in range(-(-capacity // 60_000)):
            method.store.add(kept)
        found.append(timed(capacity, learner, Task(rows, name="next")))
    return {"ER": found}


def against_parameters() -> dict[str, list[Point]]:
    x, y = digits(2048)
    found: dict[str, list[Point]] = {}
    for name, make in METHODS.items():
        for width in (100, 316, 1000):
            learner = Learner(models.mlp(784, (width, width)), make(), scenario="domain", steps=1)
            learner.learn(Task(Rows(x, y), name="first"))
            count = sum(p.numel() for p in learner.model.parameters())
            found.setdefault(name, []).append(timed(count, learner, Task(Rows(x, y), name="next")))
    return found


def stepped(at: float, method: Method, task: Task) -> Point:
    learner = Learner(models.mlp(784, (400, 400)), method, scenario="class", steps=1)
    learner.learn(task)
    return timed(at, learner, task)


def timed(at: float, learner: Learner, task: Task) -> Point:
    """Milliseconds of a step, of a task of 40 steps."""
    from growth import STEPS, Stopwatch

    from perdure import Steps

    watch = Stopwatch()
    learner.callbacks.append(watch)
    learner.account.budget = Steps(STEPS)
    for _ in range(REPEATS):
        learner.learn(task)
    return at, 1000 * statistics.median(watch.taken), held(learner)


def held(learner: Learner) -> float:
    return (learner.cost.memory_bytes + learner.cost.parameter_bytes) / 1e6


CURVES = {
    "tasks": against_tasks,
    "classes": against_classes,
    "rows in the buffer": against_rows,
    "parameters": against_parameters,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    rows = []
    for what, measure in CURVES.items():
        for name, points in measure().items():
            series = "; ".join(f"{at:g}: {ms:.1f} ms, {mb:.1f} MB" for at, ms, mb in points)
            ratio = points[-1][1] / points[0][1]
            rows.append(
                Row(
                    f"{name}, {what} from {points[0][0]:g} to {points[-1][0]:g}",
                    "step, the least",
                    [ratio],
                    note=series,
                )
            )
    dump(rows)
