"""What a trainer is set to: every setting of the Learner, checked on construction; early stopping; what the work cost."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from perdure.labels import SCENARIOS
from perdure.method import memory
from perdure.objective import OBJECTIVES, Objective
from perdure.optim import Schedule

PRECISIONS = ("fp32", "bf16")
HEADS = ("separate", "shared")


@dataclass(frozen=True)
class Settings:
    """The Learner's settings as plain values, from which its state rebuilds it."""

    scenario: str
    objective: str
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

    def __post_init__(self) -> None:
        _one_of("scenario", self.scenario, SCENARIOS)
        _one_of("objective", self.objective, OBJECTIVES)
        _one_of("heads", self.heads, HEADS)
        _one_of("precision", self.precision, PRECISIONS)
        for name in ("epochs", "batch_size", "accumulate"):
            _at_least(name, getattr(self, name), 1)
        if self.patience is not None:
            _at_least("patience", self.patience, 1)
            if not self.validation:
                raise ValueError("patience needs validation rows: set validation=0.1, or another share of each task")
        if self.heads == "shared" and self.scenario != "task":
            raise ValueError(f'heads="shared" is for scenario "task"; scenario {self.scenario!r} has one head already')
        if self.scenario == "class" and self.objective == "regression":
            raise ValueError('regression has no classes to add: use scenario "domain" or "task"')
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; it is the largest gradient norm, above 0")
        if self.validation is not None and not 0 <= self.validation < 1:
            raise ValueError(f"validation is {self.validation}; it is a share of each task's rows, from 0 to below 1")
        Schedule.of(self.schedule)

    @property
    def goal(self) -> Objective:
        """The objective itself."""
        return OBJECTIVES[self.objective]


def _one_of(name: str, value: str, choices: Iterable[str]) -> None:
    known = list(choices)
    if value not in known:
        close = difflib.get_close_matches(str(value), known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(known)}{hint}")


def _at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be a whole number, at least {least}")


@dataclass(eq=False)
class Stopper:
    """Early stopping: after `patience` epochs without a better validation grade; then the best weights come back."""

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

    @torch.no_grad()
    def finish(self, model: nn.Module) -> None:
        """Puts the best weights back and forgets the task."""
        if self.weights:
            model.load_state_dict(self.weights)
        self.best, self.waited, self.weights, self.grades = -math.inf, 0, {}, []


@dataclass
class Cost:
    """What the work so far took. Seconds are wall time over all pieces; multiply-adds count a backward pass as two forward ones."""

    train_seconds: float = 0.0
    consolidate_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    multiply_adds: int = 0
    parameter_bytes: int = 0
    memory_bytes: int = 0
