"""What methods that keep rows share: rows are stored raw, offered once each, and drawn of earlier tasks only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from perdure.data import Batch, Task, chunks
from perdure.memory import ClassBalanced, Column, Memory, Reservoir, Ring
from perdure.method import Host, Method, memory
from perdure.seeds import seeded
from perdure.spelling import one_of

POLICIES: dict[str, type[Memory]] = {"reservoir": Reservoir, "balanced": ClassBalanced, "ring": Ring}
BASIC = ("x", "y", "task")


def whole_number(name: str, value: int | None) -> None:
    """Raises ValueError unless it is None or a whole number above 0."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{name} is {value!r}; it is a whole number, at least 1, or None for as many as are new")


@dataclass(eq=False)
class Keeper(Method):
    """Keeps `capacity` rows of the stream ("10 MB" is a capacity too), each offered once, in its task's first epoch.

    `folder` is a new folder for the rows, where they shall lie on disk: more than fit into RAM.

    A subclass says by which rule rows stay (`empty`), what is kept of them (`columns`), and what they are for. If it
    overrides `begin`, `replay`, `after_step` or `end`, it calls this class's.
    """

    needs_stream: ClassVar[bool] = True
    keeps_rows: ClassVar[bool] = True

    capacity: int | str = 2000
    folder: str | None = None
    store: Memory = memory(lambda: Reservoir(1))

    def __post_init__(self) -> None:
        self.store = self.empty(0)
        self.offered: Batch | None = None

    @property
    def objectives(self) -> tuple[str, ...]:  # type: ignore[override]
        """All, unless the store is kept balanced: that needs one label a row."""
        return ("classification",) if isinstance(self.store, ClassBalanced) else Method.objectives

    def empty(self, seed: int) -> Memory:
        """The store before anything is in it."""
        return Reservoir(self.capacity, seed, self.folder)

    def columns(self, host: Host, batch: Batch, outputs: Tensor | None) -> dict[str, Column]:
        """What is kept of rows of the open task; `outputs`: their scores at the step, None without training.

        A subclass adds columns of its own; `draw` gives them back in `Batch.extra`.
        """
        if batch.y is None:
            raise ValueError(f"{self.name} stores labelled rows, and these have no labels")
        # The task's number is known here: kept on the CPU, it can be asked for at every step without a wait.
        return {"x": batch.x, "y": batch.y, "task": torch.full((len(batch),), host.number)}

    def begin(self, host: Host, task: Task | None) -> None:
        """What is kept is the past now. The first task of all: draw from a seed of one's own."""
        if self.store.seen == 0:
            self.store = self.empty(seeded(host.seed, "memory", self.name, self.position))
        self.store.settle()

    def replay(self, host: Host, batch: Batch) -> Batch:
        """Notes the stream's rows, while they are raw."""
        self.offered = batch if batch.origin is None else batch.select(batch.fresh)
        return batch

    def after_step(self, host: Host, batch: Batch, outputs: Tensor) -> None:
        """Offers the stream's rows to the store, in the first epoch."""
        if host.clock.epoch == 0 and self.offered is not None:
            self._offer(host, self.offered, outputs[: len(self.offered)])  # parts append: the stream's rows come first
        self.offered = None

    def end(self, host: Host, task: Task) -> None:
        """Consolidation without training offers the rows here."""
        if host.clock.taken == 0:
            for index in chunks(torch.arange(len(task.train)), 1024):
                self._offer(host, host.read(task.train, index), None)

    def draw(self, host: Host, count: int, origin: int = 1) -> Batch | None:
        """`count` different stored rows of the past, raw, on the host's device; None where there are none."""
        drawn = self.recall(count)
        if not drawn:
            return None
        past = Batch.past(drawn, origin)
        past.extra = {name: c for name, c in drawn.items() if name not in BASIC and isinstance(c, Tensor)}
        return past.to(host.device)

    def recall(self, count: int) -> dict[str, Column]:
        """Stored rows of the past: not those of the open task, which is in its batches."""
        return self.store.draw(count, past=True)

    def _offer(self, host: Host, batch: Batch, outputs: Tensor | None) -> None:
        key = host.balance_key(batch) if isinstance(self.store, ClassBalanced) else None
        if key is not None and isinstance(self.store, Ring):  # else the open task's rows, the newest, push out all
            key = key + (host.number << 32)
        self.store.add(self.columns(host, batch, outputs), key)


@dataclass(eq=False)
class Rehearsal(Keeper):
    """A Keeper that draws `rows` stored rows a step, by default as many as are new, and lets its user choose the rule.

    policy="reservoir" keeps a uniform sample of all rows seen (Vitter 1985), "balanced" as many rows of each class,
    "ring" the newest rows of each class of each task.
    """

    rows: int | None = None
    policy: Literal["reservoir", "balanced", "ring"] = "reservoir"

    def __post_init__(self) -> None:
        one_of("policy", self.policy, POLICIES)
        whole_number("rows", self.rows)
        super().__post_init__()

    def empty(self, seed: int) -> Memory:
        """By the policy."""
        return POLICIES[self.policy](self.capacity, seed, self.folder)

    def count(self, batch: Batch) -> int:
        """How many stored rows go with a batch: as many as are new, unless `rows` says otherwise."""
        return self.rows or len(self.offered or batch)

    def joined(self, host: Host, batch: Batch) -> Batch:
        """The batch with stored rows of earlier tasks appended, their origin a part of their own."""
        past = self.draw(host, self.count(batch), batch.parts + 1)
        return batch if past is None else Batch.cat([batch, past])
