"""How much work a task may take, in steps, seconds or multiply-adds, consolidation included; and the account of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from perdure.method import memory
from perdure.spelling import one_of
from perdure.training import Cost


@dataclass(frozen=True)
class Budget:
    """What each task may take."""

    amount: float
    unit: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if isinstance(self.amount, bool) or not isinstance(self.amount, int | float) or not self.amount > 0:
            raise ValueError(
                f"a budget of {self.amount!r} {self.unit.replace('_', '-')} teaches nothing; it is above 0"
            )


@dataclass(frozen=True)
class Steps(Budget):
    """Optimizer steps: what `steps=` sets. Work outside steps does not count."""

    unit: ClassVar[str] = "steps"

    def __post_init__(self) -> None:
        if isinstance(self.amount, bool) or not isinstance(self.amount, int) or self.amount < 1:
            raise ValueError(f"steps is {self.amount!r}; it must be a whole number, at least 1")


@dataclass(frozen=True)
class Seconds(Budget):
    """Wall seconds of training and consolidation. How far they go differs from run to run: see `Account.steps`."""

    unit: ClassVar[str] = "seconds"


@dataclass(frozen=True)
class MultiplyAdds(Budget):
    """Multiply-adds of training and consolidation, as `learner.cost` counts them: the same work on any machine."""

    unit: ClassVar[str] = "multiply_adds"


BUDGETS: dict[str, type[Budget]] = {kind.unit: kind for kind in (Steps, Seconds, MultiplyAdds)}


def of(given: Budget | dict[str, float] | None) -> Budget | None:
    """A budget as such, or from its plain value. Raises ValueError for what is none."""
    if given is None or isinstance(given, Budget):
        return given
    if not isinstance(given, dict) or len(given) != 1:
        raise ValueError(f"budget is {given!r}; it is one of {', '.join(BUDGETS)} with an amount: {{'seconds': 60}}")
    [(unit, amount)] = given.items()
    one_of("budget", unit, BUDGETS)
    return BUDGETS[unit](amount)


@dataclass(eq=False)
class Account:
    """What is left of the open task's budget; without a budget, nothing ever runs out.

    Training ends where what is left is what consolidation took last time. What it takes beyond that (the first time,
    all of it) is missing in the next task: over many tasks every method gets the same. A task gets a step at least.

    `steps` has the number of steps at which each task's training ended.
    """

    budget: Budget | None
    limit: float = memory(float)  # the count at which the open task's allowance is used up
    opened: float = memory(float)  # the count at which its training began
    trained: float = memory(float)  # the count at which its training ended
    reserve: float = memory(float)  # what consolidation took last time
    debt: float = memory(float)
    steps: list[int] = memory(list)

    @classmethod
    def of(cls, budget: Budget | dict[str, float] | None, steps: int | None) -> Account:
        """The account of a budget, or of so many steps. Raises ValueError for both at once."""
        if steps is None:
            return cls(of(budget))
        if budget is not None:
            raise ValueError("steps and a budget are two answers to one question: give one of them")
        return cls(Steps(steps))

    @property
    def settings(self) -> dict[str, float] | None:
        """The budget as a plain value, `{"seconds": 60}`."""
        return None if self.budget is None else {self.budget.unit: self.budget.amount}

    def open(self, cost: Cost) -> None:
        """A task's training begins."""
        self.opened = self._count(cost)
        self.limit = self.opened + (self.budget.amount if self.budget else 0) - self.debt

    def empty(self, cost: Cost, taken: int) -> bool:
        """Whether training must end now, after `taken` steps."""
        if isinstance(self.budget, Steps):
            return taken >= self.budget.amount
        return self.budget is not None and taken > 0 and self._count(cost) + self.reserve >= self.limit

    def foresee(self, cost: Cost, taken: int) -> int | None:
        """How many steps the task's training will have, judged by the `taken` ones; None where nothing tells."""
        if isinstance(self.budget, Steps):
            return int(self.budget.amount)
        if self.budget is None or not taken:
            return None
        count = self._count(cost)
        left, each = max(0.0, self.limit - self.reserve - count), (count - self.opened) / taken
        return taken + round(left / each) if each > 0 else None

    def consolidate(self, cost: Cost, taken: int) -> None:
        """Training is over."""
        self.steps.append(taken)
        self.trained = self._count(cost)

    def close(self, cost: Cost) -> None:
        """Consolidation is over, too."""
        count = self._count(cost)
        self.reserve, self.debt = count - self.trained, max(0, count - self.limit)

    def _count(self, cost: Cost) -> float:
        if isinstance(self.budget, MultiplyAdds):
            return cost.multiply_adds
        if isinstance(self.budget, Seconds):
            cost.lap()
            return cost.train_seconds + cost.consolidate_seconds
        return 0
