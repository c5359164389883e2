"""How the benchmarks measure: cases in turns, several rounds, ratios within a round; and what a row of the table is."""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "bench"
ROUNDS = 7

Case = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """What one case took in one round, in seconds."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class Row:
    """One line of BENCHMARKS.md: what was measured, round by round, and what was to be reached."""

    work: str
    against: str
    values: list[float]
    unit: str = "x"
    reach: float | None = None
    direction: Literal["at most", "at least"] = "at most"
    wall: list[float] = field(default_factory=list)  # the same ratio in wall seconds, where `values` are of CPU seconds
    note: str = ""

    @property
    def median(self) -> float:
        """Of the rounds."""
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """Between the quartiles of the rounds."""
        if len(self.values) < 4:
            return max(self.values) - min(self.values)
        low, _, high = statistics.quantiles(self.values, n=4)
        return high - low

    @property
    def verdict(self) -> str:
        """PASS, or how far it is: a row misses only if its median misses by more than its spread."""
        if self.reach is None:
            return "reported"
        gap = self.median - self.reach if self.direction == "at most" else self.reach - self.median
        if gap <= 0:
            return "PASS"
        return "PASS, within the spread" if gap <= self.spread else f"misses by {gap:.2f}"


def in_turns(cases: Mapping[str, Case], rounds: int = ROUNDS) -> dict[str, list[Timing]]:
    """Every case once a round, in turns, after one round that does not count."""
    found: dict[str, list[Timing]] = {name: [] for name in cases}
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds + 1):
            for name, case in cases.items():
                wall, cpu = time.perf_counter(), time.process_time()
                case()
                taken = Timing(time.process_time() - cpu, time.perf_counter() - wall)
                if turn:
                    found[name].append(taken)
    finally:
        gc.enable()
    return found


def ratio(
    work: str,
    against: str,
    found: Mapping[str, Sequence[Timing]],
    one: str,
    other: str,
    reach: float | None,
    **more: str,
) -> Row:
    """The row of `one`'s seconds over `other`'s, round by round."""
    pairs = list(zip(found[one], found[other], strict=True))
    cpu = [a.cpu / b.cpu for a, b in pairs]
    return Row(work, against, cpu, "x", reach, wall=[a.wall / b.wall for a, b in pairs], **more)


def alone(module: str, *arguments: str, env: Mapping[str, str] | None = None, python: str = sys.executable) -> str:
    """A Python file of this folder in a process of its own, one thread; what it printed last."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    command = [python, str(HERE / module), *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def dump(rows: Sequence[Row]) -> None:
    """The rows as the last line of the output, for `run.py`."""
    print(json.dumps([asdict(row) for row in rows]))


def peak_megabytes(kind: str = "VmHWM") -> float:
    """A line of /proc/self/status in MB: VmHWM is the peak of the resident memory, RssAnon what is not mapped files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError(f"no {kind} in /proc/self/status")
