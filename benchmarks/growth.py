"""A step at task 100 against one at task 2, for each method: with one head, and with two new classes a task."""

from __future__ import annotations

import time

import torch
from harness import Row, dump

from perdure import Callback, Learner, Method, Rows, Steps, Task, methods, models

WIDTH, COUNT, STEPS, ROUNDS = 784, 256, 60, 5
METHODS = {
    "EWC": lambda: methods.EWC(rows=16, fisher="sampled"),
    "SI": methods.SI,
    "MAS": lambda: methods.MAS(rows=16),
    "ER": lambda: methods.Replay(2000),
    "DER++": lambda: methods.DERpp(2000),
    "A-GEM": lambda: methods.AGEM(2000),
}


class Stopwatch(Callback):
    """CPU seconds of the steps of a task, but for its first ten."""

    def __init__(self) -> None:
        self.begun, self.taken = 0.0, []

    def after_step(self, learner: Learner) -> None:
        if learner.clock.taken == 10:
            self.begun = time.process_time()
        elif learner.clock.taken == STEPS:
            self.taken.append((time.process_time() - self.begun) / (STEPS - 10))


class Stream:
    """Tasks of noise: times and bytes depend on shapes alone. Class-incremental ones bring two labels each."""

    def __init__(self, scenario: str) -> None:
        draws = torch.Generator().manual_seed(0)
        self.scenario, self.x = scenario, torch.rand(COUNT, WIDTH, generator=draws)

    def task(self, number: int) -> Task:
        labels = torch.arange(COUNT) % (2 if self.scenario == "class" else 10)
        labels = labels + 2 * number if self.scenario == "class" else labels
        return Task(Rows(self.x, labels), name=f"task {number}")


def learner_at(tasks: int, scenario: str, method: Method, batch: int) -> tuple[Learner, Stopwatch, Task]:
    """A learner whose next task is number `tasks`."""
    stream, watch = Stream(scenario), Stopwatch()
    learner = Learner(
        models.mlp(WIDTH, (400, 400)), method, scenario=scenario, batch_size=batch, steps=2, callbacks=[watch]
    )
    for number in range(1, tasks):
        learner.learn(stream.task(number))
    learner.account.budget = Steps(STEPS)
    return learner, watch, stream.task(tasks)


def flatness(scenario: str, batch: int, late: int, reach: float | None) -> list[Row]:
    rows = []
    for name, make in METHODS.items():
        early, later = (learner_at(tasks, scenario, make(), batch) for tasks in (2, late))
        for _ in range(ROUNDS + 1):
            for learner, _watch, task in (early, later):
                learner.learn(task)
        values = [b / a for a, b in zip(early[1].taken[1:], later[1].taken[1:], strict=True)]
        kind = "permuted" if scenario == "domain" else "two new classes a task"
        rows.append(Row(f"{name}, a step at task {late}, {kind}, batch {batch}", "at task 2", values, "x", reach))
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    dump([
        *flatness("domain", 128, 100, 1.05), *flatness("class", 128, 100, 1.2), *flatness("domain", 16, 100, None)
    ])  # fmt: skip
