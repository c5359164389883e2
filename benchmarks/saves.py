"""Save points within a task: how long training waits for one, and how much of it is written."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from harness import Row, dump
from steps import digits

from perdure import Callback, Learner, Rows, Steps, Task, methods, models

POINTS = 8


class Saves(Callback):
    """Asks for a save point every 40 steps, and measures the step that brings it."""

    def __init__(self, path: Path) -> None:
        self.path, self.last = path, 0.0
        self.waits: list[float] = []
        self.written: list[float] = []

    def after_step(self, learner: Learner) -> None:
        now = time.perf_counter()
        if learner.clock.taken % 40 == 1 and learner.clock.taken > 1:  # the save point came after the last step
            self.waits.append(1000 * (now - self.last))
        if learner.clock.taken % 40 == 0:
            learner._journal.wait()
            delta = self.path.with_name(self.path.name + ".delta")
            if delta.exists():
                self.written.append(delta.stat().st_size / 1e6)
            learner._point.taken = -1e9  # due
        self.last = time.perf_counter()


def measured(capacity: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        watch = Saves(path)
        learner = Learner(
            models.mlp(784, (784, 700)), methods.Replay(capacity), scenario="domain", batch_size=128, callbacks=[watch],
            save_to=path, save_every=1e6, steps=40,
        )  # fmt: skip
        x, y = digits(60_000)
        rows = Rows((x * 255).to(torch.uint8), y)
        learner.account.budget = Steps(max(40, capacity // 128))  # fills the memory
        learner.learn(Task(rows, name="a"))
        watch.waits.clear()
        watch.written.clear()
        learner.account.budget = Steps(40 * (POINTS + 1) + 2)
        learner.learn(Task(rows, name="b"))
        megabytes = learner.cost.parameter_bytes / 1e6
        whole = path.stat().st_size / 1e6
    name = f"save point, {megabytes:.0f} MB model, {capacity} rows"
    return [
        Row(name, "milliseconds that training waits, its step included", watch.waits, "ms", 50.0),
        Row(f"{name}: written", f"MB, of {whole:.0f} MB in all", watch.written[1:], "MB", None),
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    dump([*measured(2000), *measured(50_000)])
