"""What hosts in other people's trainers share: steps of several micro-batches, and what such trainers are refused."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from perdure.data import Batch
from perdure.host import Outside
from perdure.method import Compose
from perdure.methods.rehearsal import Keeper

ONE_PROCESS = "Perdure learns in one process on one device for now: {found}; start one process, and show it one device"


class Steps(Outside):
    """A host whose optimizer steps once for several micro-batches, as a plain loop steps once for one batch.

    `join` every micro-batch, `seen` what the model said of it, then `project` and `after_step` once: a method is asked
    for the whole batch, its new rows first.
    """

    def begin_scratch(self) -> None:
        """What lives within a step."""
        self._batches: list[Batch] = []
        self._offered: list[list[Batch | None]] = []
        self._outputs: list[Tensor] = []
        self._whole: Batch | None = None

    def begin(self) -> None:
        """A data set begins, unless it was begun already, before a checkpoint."""
        self.begin_scratch()
        if not self.clock.begun:
            self.method.begin(self, None)
            self.clock.open(f"data set {self.clock.task}", "")

    def join(self, batch: Batch) -> Batch:
        """The batch, raw, with rows of the past added."""
        joined = self.method.replay(self, batch)
        self._batches.append(joined)
        self._offered.append([keeper.offered for keeper in self._keepers])
        return joined

    def seen(self, outputs: Tensor) -> None:
        """Notes the scores of the rows of the last micro-batch that has none yet."""
        self._outputs.append(outputs.detach())

    def project(self) -> None:
        """After the last backward pass and unscaling, before clipping and the optimizer's step."""
        for keeper, parts in zip(self._keepers, zip(*self._offered, strict=True), strict=True):
            rows = [part for part in parts if part is not None]
            keeper.offered = Batch.cat(rows) if rows else None
        self._whole = self._new_first(self._batches)
        self.method.project(self, self._whole)

    def after_step(self, taken: bool = True) -> None:
        """After the optimizer's step; where it was not `taken`, as gradients were not finite, nothing has happened."""
        if taken and self._whole is not None:
            split = [(batch.fresh, outputs) for batch, outputs in zip(self._batches, self._outputs, strict=True)]
            parts = [outputs[fresh] for fresh, outputs in split] + [outputs[~fresh] for fresh, outputs in split]
            outputs = self._outputs[0] if len(split) == 1 else torch.cat(parts)
            self.method.after_step(self, Outside.ready(self, self._whole), outputs)  # its rows are raw
            self.clock.tick()
        self.begin_scratch()

    @property
    def waiting(self) -> bool:
        """Whether there are gradients that `project` has not seen."""
        return bool(self._batches) and self._whole is None

    @property
    def complete(self) -> bool:
        """Whether there are micro-batches, and scores of each."""
        return len(self._batches) == len(self._outputs) > 0

    @property
    def projected(self) -> bool:
        """Whether a step of the optimizer is under way."""
        return self._whole is not None

    @property
    def _keepers(self) -> list[Keeper]:
        parts = self.method.parts if isinstance(self.method, Compose) else [self.method]
        return [part for part in parts if isinstance(part, Keeper)]

    @staticmethod
    def _new_first(batches: list[Batch]) -> Batch:
        if len(batches) == 1:
            return batches[0]
        old = [batch.select(~batch.fresh) for batch in batches if batch.origin is not None]
        return Batch.cat([batch.select(batch.fresh) for batch in batches] + old)


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raises ValueError for one that asks for the gradient several times a step, as LBFGS does."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ValueError(
            f"{type(optimizer).__name__} runs its closure several times a step, each time on other weights, and what "
            "a method adds to the gradient belongs to one: take one that steps once for a gradient, as Adam does"
        )
