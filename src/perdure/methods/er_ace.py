"""ER-ACE: the stream's rows compete among the labels of their batch only, replayed rows among all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from perdure.data import Batch
from perdure.memory import Column
from perdure.method import Host
from perdure.methods.rehearsal import Rehearsal


@dataclass(eq=False)
class ErACE(Rehearsal):
    """Experience replay with asymmetric cross-entropy (Caccia et al. 2022).

    loss = mean over the rows of -log softmax(s[C])[y], where C, the columns that answer, are

        for a row of the stream   the labels present in its batch (of all micro-batches together)
        for a replayed row        all labels so far

    so that new rows don't push the scores of old labels down: old and new meet in replayed rows alone. These are drawn
    from the whole store, the open task's rows too: drawn from earlier tasks only, as `Replay` does, nothing would raise
    a new label above an old one (class-incremental Split MNIST, 200 steps a task, 500 rows, 2 seeds: 0.749, the last
    task at 0; as in the paper 0.910; `Replay` 0.864).

    The paper adds two means, of new and of replayed rows; here all rows weigh alike, as in `Replay`: with as many
    replayed rows as new ones this is half the paper's loss. Where nothing is replayed, in the first task, new rows
    compete among all labels: a batch of one label would teach nothing otherwise.

    Class-incremental only: elsewhere a task's rows compete among the task's own columns anyway. Use it with small
    memories, where it keeps old labels better than Replay, at some cost in the newest.
    """

    name: ClassVar[str] = "er-ace"
    title: ClassVar[str] = "ER-ACE"
    paper: ClassVar[str] = "Caccia et al. 2022, arXiv:2104.05025"
    cost: ClassVar[str] = "a step on twice the rows; `capacity` rows"
    scenarios: ClassVar[tuple[str, ...]] = ("class",)
    objectives: ClassVar[tuple[str, ...]] = ("classification",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.present: Tensor | None = None

    def recall(self, count: int) -> dict[str, Column]:
        """Of all that is stored, as soon as some of it is of the past."""
        return self.store.draw(count) if self.store.past else {}

    def replay(self, host: Host, batch: Batch) -> Batch:
        """Appends stored rows, and notes which columns the stream's rows stand for, where any were appended."""
        batch = super().replay(host, batch)
        whole, stream = self.joined(host, batch), self.offered or batch
        labels = Batch(x=torch.empty(len(stream), 0, device=host.device), y=stream.y, task=stream.task)
        self.present = None if whole is batch else host.ready(labels).columns
        return whole

    def task_loss(self, host: Host, batch: Batch, outputs: Tensor) -> Tensor:
        """The objective's, with narrowed columns for the stream's rows."""
        if self.present is None:
            return host.objective.loss(outputs, batch)
        present = torch.zeros(outputs.shape[1], dtype=torch.bool, device=outputs.device)
        narrow = ~batch.fresh[:, None] | present.index_fill(0, self.present, True)
        return host.objective.loss(outputs, replace(batch, allowed=narrow))
