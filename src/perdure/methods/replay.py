"""Experience replay: a few stored rows of the past join every batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from perdure.data import Batch, Task, chunks
from perdure.memory import ClassBalanced, Memory, Reservoir, Ring
from perdure.method import Host, Method, memory
from perdure.spelling import one_of

POLICIES: dict[str, type[Memory]] = {"reservoir": Reservoir, "balanced": ClassBalanced, "ring": Ring}


@dataclass(eq=False)
class Replay(Method):
    """Experience replay (Ratcliff 1990; Chaudhry et al. 2019, "tiny episodic memories").

    Each batch of n rows is joined by `rows` stored ones of earlier tasks (default n), all weighted alike. Rows are
    stored raw, offered once each (in a task's first epoch), and augmented when drawn. policy="reservoir" keeps a
    uniform sample of all rows seen (Vitter 1985), "balanced" as many rows of each class, "ring" the newest rows of each
    class. `capacity` is a number of rows or "10 MB".

    The best place to start wherever old rows may be kept.
    """

    name: ClassVar[str] = "replay"
    title: ClassVar[str] = "Experience replay"
    paper: ClassVar[str] = "Chaudhry et al. 2019, arXiv:1902.10486; reservoir: Vitter 1985"
    cost: ClassVar[str] = "a step on twice the rows; `capacity` rows"

    capacity: int | str = 2000
    rows: int | None = None
    policy: Literal["reservoir", "balanced", "ring"] = "reservoir"
    store: Memory = memory(lambda: Reservoir(1))

    def __post_init__(self) -> None:
        one_of("policy", self.policy, POLICIES)
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"rows is {self.rows}; replay at least one row a batch, or None for as many as are new")
        self.store = POLICIES[self.policy](self.capacity)
        self.offered: Batch | None = None

    @property
    def objectives(self) -> tuple[str, ...]:  # type: ignore[override]
        """All with a reservoir; the other policies need one label a row."""
        return Method.objectives if self.policy == "reservoir" else ("classification",)

    def begin(self, host: Host, task: Task | None) -> None:
        """The first task of all: draw from the host's seed."""
        if self.store.seen == 0:
            self.store = POLICIES[self.policy](self.capacity, seed=host.seed)

    def replay(self, host: Host, batch: Batch) -> Batch:
        """Appends stored rows of earlier tasks; those of the open one are in its batches already."""
        self.offered = batch if batch.origin is None else batch.select(batch.fresh)
        earlier = self._slots_of_earlier_tasks(host)
        if len(earlier) == 0:
            return batch
        part = 1 if batch.origin is None else int(batch.origin.max()) + 1
        past = Batch.past(self.store.draw(self.rows or len(batch), earlier), part)
        return Batch.cat([batch, past.to(host.device)])

    def after_step(self, host: Host, batch: Batch, outputs: torch.Tensor) -> None:
        """Offers the stream's rows to the store, in the first epoch."""
        if host.clock.epoch == 0 and self.offered is not None:
            self._offer(host, self.offered)
        self.offered = None

    def end(self, host: Host, task: Task) -> None:
        """Consolidation without training offers the rows here."""
        if host.clock.step == host.clock.begun_at:
            for index in chunks(torch.arange(len(task.train)), 1024):
                self._offer(host, host.read(task.train, index))

    def _offer(self, host: Host, batch: Batch) -> None:
        if batch.y is None:
            raise ValueError("replay stores labelled rows, and these have no labels")
        # The task's number is known here: kept on the CPU, it can be asked for at every step without a wait.
        columns = {"x": batch.x, "y": batch.y, "task": torch.full((len(batch),), host.number)}
        self.store.add(columns, None if self.policy == "reservoir" else host.balance_key(batch))

    def _slots_of_earlier_tasks(self, host: Host) -> torch.Tensor:
        task = self.store.all().get("task")
        return torch.empty(0) if not isinstance(task, torch.Tensor) else (task.cpu() != host.number).nonzero()[:, 0]
