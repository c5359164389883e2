"""Experience replay: a few stored rows of the past join every batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from perdure.data import Batch
from perdure.method import Host
from perdure.methods.rehearsal import Rehearsal


@dataclass(eq=False)
class Replay(Rehearsal):
    """Experience replay (Ratcliff 1990; Chaudhry et al. 2019, "tiny episodic memories").

    Each batch of n rows is joined by `rows` stored ones of earlier tasks (default n), all weighted alike. Rows are
    stored raw, offered once each (in a task's first epoch), and augmented when drawn. policy="reservoir" keeps a
    uniform sample of all rows seen (Vitter 1985), "balanced" as many rows of each class, "ring" the newest rows of each
    class of each task. `capacity` is a number of rows or "10 MB".

    The best place to start wherever old rows may be kept.
    """

    name: ClassVar[str] = "replay"
    title: ClassVar[str] = "Experience replay"
    paper: ClassVar[str] = "Chaudhry et al. 2019, arXiv:1902.10486; reservoir: Vitter 1985"
    cost: ClassVar[str] = "a step on twice the rows; `capacity` rows"

    def replay(self, host: Host, batch: Batch) -> Batch:
        """Appends stored rows of earlier tasks; those of the open one are in its batches already."""
        return self.joined(host, super().replay(host, batch))
