"""Where a host stands: tasks, epochs, batches and steps."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Clock:
    """Where a host stands: `task` tasks are done; the open one, if `begun`, is in `epoch`, before its `batch`-th batch.

    `step` counts optimizer steps over all tasks, `begun_at` is its value when the open task began, `steps` the number
    that the open task will take, where it is known; `row_cost` the multiply-adds of one row, measured when it began,
    and `back_cost` those of them that a backward pass goes back through.
    """

    task: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    begun: bool = False
    begun_at: int = 0
    steps: int | None = None
    row_cost: int = 0
    back_cost: int = 0
    name: str = ""
    fingerprint: str = ""

    @property
    def taken(self) -> int:
        """Optimizer steps of the open task so far."""
        return self.step - self.begun_at

    def tick(self) -> None:
        """One optimizer step was taken."""
        self.batch += 1
        self.step += 1

    def next_epoch(self) -> None:
        """A pass over the rows is over."""
        self.epoch += 1
        self.batch = 0

    def open(self, name: str, fingerprint: str) -> None:
        """A task begins."""
        self.begun, self.name, self.fingerprint = True, name, fingerprint
        self.epoch, self.batch, self.begun_at = 0, 0, self.step

    def close(self, done: bool = True) -> None:
        """The open task is over: learnt (`done`), or given up."""
        self.task += int(done)
        self.begun, self.name, self.fingerprint, self.steps = False, "", "", None
        self.epoch, self.batch, self.row_cost, self.back_cost = 0, 0, 0, 0
