"""What a trainer is set to: the Learner's settings, checked on construction; early stopping; what the work cost."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from perdure.clock import Clock
from perdure.data import Rows, Task, chunks
from perdure.labels import SCENARIOS
from perdure.method import memory
from perdure.objective import NUMERIC, Objective
from perdure.optim import Schedule
from perdure.seeds import seeded
from perdure.several import goal
from perdure.spelling import one_of

PRECISIONS = ("fp32", "bf16")
HEADS = ("separate", "shared")


@dataclass(frozen=True)
class Settings:
    """The Learner's settings as plain values, from which its state rebuilds it."""

    scenario: str
    objective: str | dict[str, Any]
    heads: str
    epochs: int
    batch_size: int
    seed: int
    schedule: dict[str, Any]
    clip: float | None
    accumulate: int
    precision: str
    validation: float | None
    patience: int | None
    optimizer: dict[str, Any] | None = field(default=None)
    budget: dict[str, float] | None = None

    def __post_init__(self) -> None:
        one_of("scenario", self.scenario, SCENARIOS)
        goal(self.objective)
        one_of("heads", self.heads, HEADS)
        one_of("precision", self.precision, PRECISIONS)
        for name in ("epochs", "batch_size", "accumulate"):
            _at_least(name, getattr(self, name), 1)
        if self.patience is not None:
            _at_least("patience", self.patience, 1)
            if not self.validation:
                raise ValueError("patience needs validation rows: set validation=0.1, or another share of each task")
        if self.heads == "shared" and self.scenario != "task":
            raise ValueError(f'heads="shared" is for scenario "task"; scenario {self.scenario!r} has one head already')
        if self.scenario == "class" and self.goal.name in (*NUMERIC, "several"):
            raise ValueError(f'{self.goal.name} has no classes to add: use scenario "domain" or "task"')
        if self.heads == "shared" and self.goal.name == "several":
            raise ValueError('several objectives have a head a task, or are learnt in scenario "domain"')
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; it is the largest gradient norm, above 0")
        if self.validation is not None and not 0 <= self.validation < 1:
            raise ValueError(f"validation is {self.validation}; it is a share of each task's rows, from 0 to below 1")
        Schedule.of(self.schedule)

    @property
    def goal(self) -> Objective:
        """The objective itself."""
        return goal(self.objective)


def _at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be a whole number, at least {least}")


@dataclass(eq=False)
class Stopper:
    """Early stopping: after `patience` epochs without a better validation grade; the best weights come back."""

    patience: int | None
    best: float = memory(lambda: -math.inf)
    waited: int = memory(int)
    weights: dict[str, Tensor] = memory(dict)
    grades: list[float] = memory(list)

    @property
    def stopped(self) -> bool:
        """Whether it is time."""
        return self.patience is not None and self.waited >= self.patience

    def note(self, grade: float, model: nn.Module) -> None:
        """An epoch is over."""
        self.grades.append(grade)
        if grade > self.best:
            self.best, self.waited = grade, 0
            if self.patience is not None:
                self.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        else:
            self.waited += 1

    def forget(self) -> None:
        """What was graded so far is no measure of what comes: neither its grades count nor its weights."""
        self.best, self.waited, self.weights = -math.inf, 0, {}

    @torch.no_grad()
    def finish(self, model: nn.Module) -> None:
        """Puts the best weights back and forgets the task."""
        if self.weights:
            model.load_state_dict(self.weights)
        self.forget()
        self.grades = []


def hold_out(task: Task, share: float | None, seed: int) -> tuple[Task, tuple[Rows, Task] | None]:
    """The task as the method sees it, and the rows to grade it on after each epoch, if any.

    Which rows are held out depends on the seed and the task's fingerprint only: the same in every process.
    """
    if task.validation is not None:
        return task, (task.validation, task)
    count = int(len(task.train) * (share or 0.0))
    if count == 0:
        return task, None
    draws = torch.Generator().manual_seed(seeded(seed, "validation", task.fingerprint))
    order = torch.randperm(len(task.train), generator=draws)
    kept = Task(task.train.select(order[count:].sort().values), name=task.name, classes=task.classes)
    return kept, (task.train.select(order[:count]), task)


def batches_of(order: Tensor, size: int) -> list[Tensor]:
    """Batches of `size`; a last batch of one row joins the one before it, as batch norm cannot learn from one."""
    batches = chunks(order, size)
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


class Finite:
    """Whether everything so far was finite: a flag on the device, so that noting costs no wait."""

    def __init__(self, device: torch.device) -> None:
        self._flag = torch.zeros((), device=device)  # 0 as long as all is well, then NaN: 0 times infinity is NaN

    @torch.no_grad()
    def note(self, *tensors: Tensor) -> None:
        """Looks at some tensors."""
        for tensor in tensors:
            self._flag.add_(tensor if tensor.dim() == 0 else (tensor * 0).sum(), alpha=0)

    def refuse(self, clock: Clock) -> None:
        """Raises FloatingPointError if anything was not finite; waits for the device."""
        if bool(self._flag.isnan()):
            task = repr(clock.name) if clock.begun else f"number {clock.task}"
            raise FloatingPointError(
                f"the loss became NaN or infinite in task {task}, by step {clock.step}: lower the learning "
                "rate, or set clip=1.0; the learner is back at its last save point"
            )

    def reset(self) -> None:
        """Begins anew."""
        self._flag.zero_()


@dataclass
class Cost:
    """What the work so far took, over all its pieces: wall seconds; a backward pass counts as two forward ones."""

    train_seconds: float = 0.0
    consolidate_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    multiply_adds: int = 0
    parameter_bytes: int = 0
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        self._watch: tuple[str, float] | None = None

    @contextlib.contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Books the time inside to a kind of seconds; the kind around it, if any, waits."""
        self.lap()
        around, self._watch = self._watch, (kind, time.perf_counter())
        try:
            yield
        finally:
            self.lap()
            self._watch = None if around is None else (around[0], time.perf_counter())

    def lap(self) -> None:
        """Books the time since the last lap, so that a save point has it."""
        if self._watch is not None:
            kind, since = self._watch
            now = time.perf_counter()
            setattr(self, kind, getattr(self, kind) + now - since)
            self._watch = (kind, now)
