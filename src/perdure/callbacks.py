"""Watching a learner: progress, records, whatever else wants to know what happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perdure.data import Task
from perdure.method import load_state_of, state_of

if TYPE_CHECKING:
    from perdure.learner import Learner


class Callback:
    """Watches a learner. Fields made with `memory(...)` in a dataclass travel in the learner's state."""

    def before_task(self, learner: Learner, task: Task) -> None:
        """The task is open and the model has grown for it; nothing is learnt yet."""

    def after_step(self, learner: Learner) -> None:
        """`learner.loss` holds the step's loss, on the device."""

    def after_epoch(self, learner: Learner) -> None:
        """A pass over the rows is over."""

    def after_task(self, learner: Learner, task: Task) -> None:
        """The task is learnt and consolidated; its last save point is not yet made."""

    def state(self) -> dict[str, Any]:
        """The memory fields."""
        return state_of(self)

    def load_state(self, saved: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        load_state_of(self, saved)
