"""Data and a buffer ten times as large as the anonymous memory that is allowed: 3 GB each, under 300 MB."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from harness import Row, alone, dump, peak_megabytes

from perdure import Learner, Rows, Steps, Task, methods, models

ROWS, VALUES, STEPS, ROUNDS = 1_000_000, 3072, 150, 4
ALLOWED = 300.0


def measured(kind: str, rows: int) -> list[float]:
    """Seconds of each round, and the anonymous memory in MB at its end."""
    import time

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent.parent / "build") as place:
        if kind == "disk":
            data = np.memmap(Path(place) / "data", np.uint8, "w+", shape=(rows, VALUES))
            folder = str(Path(place) / "rows")
        else:
            data, folder = np.zeros((rows, VALUES), np.uint8), None
        y = torch.arange(rows) % 10
        method = methods.Replay(rows, folder=folder)
        learner = Learner(models.mlp(VALUES, (200,)), method, scenario="domain", batch_size=128, steps=2)
        learner.learn(Task(Rows(data, y), name="first"))
        for start in range(0, rows, 10_000):
            part = torch.from_numpy(np.ascontiguousarray(data[start : start + 10_000]))
            method.store.add({"x": part, "y": y[start : start + 10_000], "task": torch.zeros(len(part)).long()})
        learner.account.budget = Steps(STEPS)
        seconds = []
        for turn in range(ROUNDS):
            begun = time.process_time()
            learner.learn(Task(Rows(data, y), name=f"turn {turn}"))
            seconds.append(time.process_time() - begun)
        return [*seconds, peak_megabytes("RssAnon")]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(measured(sys.argv[1], int(sys.argv[2])))
    else:
        import json

        *disk, anonymous = json.loads(alone("disk.py", "disk", str(ROWS)))
        *ram, _ = json.loads(alone("disk.py", "ram", str(ROWS // 20)))
        what = f"data and buffer of {ROWS * VALUES / 1e9:.1f} GB each on disk"
        times = [a / b for a, b in zip(disk, ram, strict=True)]
        dump([
            Row(f"{what}: anonymous memory", "MB, of which torch alone takes 210", [anonymous], "MB", ALLOWED),
            Row(f"{what}: {STEPS} steps of replay", "in RAM, a twentieth of the rows", times),
        ])  # fmt: skip
