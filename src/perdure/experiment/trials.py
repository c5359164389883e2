"""Short measured trials of methods on a stream of pieces, remembered, so that the same call goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import nn

from perdure import methods
from perdure.checkpoint import replace_file
from perdure.data import Task
from perdure.experiment import rehearse
from perdure.experiment.candidates import Candidate, Needs, Spec
from perdure.experiment.folder import Folder, differences
from perdure.experiment.settings import RequestError
from perdure.learner import Learner
from perdure.metrics import average_accuracy, forgetting
from perdure.streams import Stream

FEW = 64  # rows of the first task, to see whether a method can learn it


@dataclass(frozen=True)
class Tried:
    """What a candidate reached in the trial, means over the seeds.

    accuracy    over all pieces, after the last
    seconds     of the first task, as the trial's steps took; an estimate
    memory      bytes that the method kept, after the trial; of a memory for rows what it may hold
    work        multiply-adds of a step, means over the trial
    """

    label: str
    spec: Spec
    accuracy: float
    spread: float
    forgetting: float
    seconds: float
    memory: int
    work: float
    runs: int
    refused: str = ""

    def __str__(self) -> str:
        seeds = f"{self.runs} seeds, {100 * self.spread:.1f} apart" if self.runs > 1 else "1 seed"
        reached = f"{100 * self.accuracy:.1f} % ({seeds}), lost {100 * self.forgetting:.1f}"
        return f"{reached}; about {self.seconds:.0f} s for the first task, {self.memory / 1e6:.2f} MB"


@dataclass
class Trial:
    """What is the same for all candidates, and what is known already."""

    first: Task
    model: Callable[[], nn.Module]
    needs: Needs
    training: dict[str, Any]
    steps: int
    rows: int
    until: float
    say: Callable[[str], None] | None
    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    path: Path | None = None
    candidates: dict[str, Candidate] = field(default_factory=dict)

    @property
    def late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self.until

    @contextlib.contextmanager
    def remembered(self, out: Path | None) -> Iterator[None]:
        """Keeps what was tried in a folder, if there is one. Raises RequestError where that holds another advice."""
        if out is None:
            yield
            return
        with Folder(out).held():
            self.path = out / "trials.json"
            mine = json.loads(json.dumps(self._document()))
            if self.path.exists():
                found = json.loads(self.path.read_text(encoding="utf-8"))
                other = differences(found["trial"], mine)
                if other:
                    raise RequestError(
                        f"{out} holds another advice: {'; '.join(other)}. Take another folder with --out"
                    )
                self.known = found["known"]
            yield

    def of(self, candidate: Candidate, stream: Stream, seeds: Sequence[int]) -> Tried:
        """What the candidate reaches on the stream, with every seed."""
        self.candidates[candidate.label] = candidate
        share = len(stream[0].train) / len(self.first.train)
        runs = [self._run(candidate.scaled(share), stream, seed) for seed in seeds]
        scores = [run["accuracy"] for run in runs]
        kept = round(max(run["memory"] for run in runs))
        rows = candidate.bytes(self.first.train)
        memory = kept + max(0, rows - round(rows * share))  # the trial's memory was that much smaller
        taken = fmean(run["seconds_a_step"] for run in runs) * self._planned()
        lost = fmean(run["forgetting"] for run in runs)
        spread = max(scores) - min(scores)
        refused = self._refused(memory, taken)
        work = fmean(run["work"] for run in runs)
        found = Tried(
            candidate.label, candidate.spec, fmean(scores), spread, lost, taken, memory, work, len(runs), refused
        )
        if self.say:
            self.say(f"{candidate.label} on {stream.name}: {found}")
        return found

    def unfit(self, candidate: Candidate) -> str:
        """Why the candidate can't learn one step of the first task, on a few of its train rows; empty if it can."""
        try:
            self._learner(candidate.spec, 0, 1).learn(rehearse.sample(self.first, FEW))
        except (ValueError, TypeError, FloatingPointError) as error:
            return str(error)
        return ""

    def _learner(self, spec: Spec, seed: int, steps: int) -> Learner:
        rest = {key: value for key, value in self.training.items() if key not in ("epochs", "steps", "budget")}
        method = methods.build(spec)
        return Learner(self.model(), method, scenario=self.needs.scenario, seed=seed, steps=steps, **rest)

    def _refused(self, memory: int, seconds: float) -> str:
        limit, most = self.needs.memory, self.needs.seconds
        if limit is not None and memory > 1.01 * limit:
            return f"it keeps {memory / 1e6:.2f} MB, and {limit / 1e6:.2f} are allowed"
        if most is not None and seconds > most:
            return f"the first task would take about {seconds:.0f} s, and {most:.0f} are allowed"
        return ""

    def _planned(self) -> float:
        """Steps that the first task itself will take."""
        if self.training.get("steps"):
            return float(self.training["steps"])
        batch: int = self.training.get("batch_size", 128) * self.training.get("accumulate", 1)
        return float(self.training.get("epochs", 1)) * max(1, -(-len(self.first.train) // batch))

    def _run(self, spec: Spec, stream: Stream, seed: int) -> dict[str, float]:
        key = hashlib.sha256(json.dumps([spec, seed, [task.fingerprint for task in stream]]).encode()).hexdigest()[:20]
        if key not in self.known:
            self.known[key] = self._learn(spec, stream, seed)
            if self.path is not None:
                found = {"trial": self._document(), "known": self.known}
                replace_file(self.path, f"{json.dumps(found, indent=1)}\n".encode())
        if "diverged" in self.known[key]:
            raise FloatingPointError(self.known[key]["diverged"])
        return self.known[key]

    def _learn(self, spec: Spec, stream: Stream, seed: int) -> dict[str, Any]:
        """One run through the stream of pieces."""
        batch = self.training.get("batch_size", 128) * self.training.get("accumulate", 1)
        whole = self.training.get("epochs", 1) * -(-len(stream[0].train) // batch)
        least = min(self.steps, self.training.get("steps") or whole)
        learner = self._learner(spec, seed, least)
        matrix = []
        try:
            for task in stream:
                learner.learn(task)
                matrix.append(learner.evaluate(stream))
        except FloatingPointError as error:
            return {"diverged": str(error)}
        cost = learner.cost
        return {
            "accuracy": average_accuracy(matrix) or 0.0,
            "forgetting": forgetting(matrix) or 0.0,
            "seconds_a_step": (cost.train_seconds + cost.consolidate_seconds) / (least * len(stream)),
            "memory": cost.memory_bytes,
            "work": cost.multiply_adds / (least * len(stream)),
        }

    def _document(self) -> dict[str, Any]:
        """All that makes it this trial and no other."""
        return {
            "data": self.first.fingerprint[:16],
            "scenario": self.needs.scenario,
            "training": self.training,
            "steps": self.steps,
            "rows": self.rows,
            "model": type(self.model()).__name__,
        }
