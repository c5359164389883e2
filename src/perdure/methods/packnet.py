"""PackNet: every task keeps a few weights of each layer for good, and leaves the rest to the tasks that come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from perdure.data import Batch, Columns, Task
from perdure.method import Host, Method, Trainer, memory
from perdure.methods.curvature import Weights
from perdure.methods.shares import FREE, MOST_TASKS, NOBODYS, Shares, layers
from perdure.models import Head


@dataclass(eq=False)
class PackNet(Method):
    """PackNet (Mallya & Lazebnik 2018): the weights of one network, shared out among the tasks by pruning.

    A task trains all free weights, beside those of earlier tasks, which stay as they are. When 1 - `retrain` of its
    steps are done, the floor(prune * n) smallest |w| of the n free weights of each layer become 0, and stay 0 until the
    task ends; the others are the task's and learn on. Task t answers by w * [1 <= owner(w) <= t], bit for bit the same
    after any later task.

    Shared out are tensors of two and more dimensions, but for the head, whose columns belong to the task that opens
    them. Biases and batch norm are the first task's: later ones run batch norm in eval mode. Every task begins without
    moments of the optimizer. The paper retrains at a tenth of the rate: that is the Learner's schedule. The Learner's
    `patience` counts from the pruning on, as grades from before are of a network that has all free weights, four times
    as many by default. Without a step to retrain in (retrain=0, `consolidate`) a task is pruned at its end.

    Forgets nothing, and later tasks build on earlier ones; but task t finds only prune^(t-1) of the weights free.
    """

    name: ClassVar[str] = "packnet"
    title: ClassVar[str] = "PackNet"
    paper: ClassVar[str] = "Mallya & Lazebnik 2018, arXiv:1711.05769"
    cost: ClassVar[str] = "a step 1.1x; a byte a weight and the weights owned; an answer builds its task's weights"
    scenarios: ClassVar[tuple[str, ...]] = ("task",)

    prune: float = 0.75
    retrain: float = 0.33
    shares: Shares = memory(Shares)
    pruned: bool = memory(bool)

    def __post_init__(self) -> None:
        if not 0 < self.prune < 1:
            raise ValueError(
                f"prune is {self.prune}; it is the share of free weights that a task leaves, above 0 and below 1"
            )
        if not 0 <= self.retrain < 1:
            raise ValueError(f"retrain is {self.retrain}; it is a share of a task's steps, from 0 to below 1")
        self.guarded: list[tuple[Tensor, Tensor, Tensor]] = []  # parameter, 1 where it may move, else its value
        self.guarded_for: Weights | None = None
        self.paused: list[nn.Module] = []

    def remodel(self, model: nn.Module) -> nn.Module:
        """The same network; refuses one whose head is unknown, or that has nothing to share out."""
        if not isinstance(getattr(model, "head", None), Head):
            raise ValueError("packnet must know which columns are a task's: wrap the network by models.adapt")
        if not any(p.requires_grad for p in layers(model).values()):
            raise ValueError("packnet shares out the weights below the head, and this network trains none")
        return model

    # ---- learning ----

    def begin(self, host: Host, task: Task | None) -> None:
        """Refuses a task that cannot be learnt; what an abandoned one took is free again."""
        name = "" if task is None else task.name
        if name in self.shares.tasks:
            raise ValueError(f"task {name!r} cannot come back: packnet has frozen its weights; give it a new name")
        if self.shares.place > MOST_TASKS:
            raise ValueError(f"packnet tells at most {MOST_TASKS} tasks apart, and {name!r} would be one more")
        self.shares.release()
        self.pruned = False
        if self.shares.owner and not any(self.free.values()):
            raise ValueError(
                f"no weight is free for task {name!r}, the {len(self.shares.tasks)} before it have taken all: raise "
                f"prune (it is {self.prune}), or take a wider network"
            )

    @property
    def free(self) -> dict[str, int]:
        """How many weights of each layer no task has taken yet."""
        return {name: int((owner == FREE).sum()) for name, owner in self.shares.owner.items()}

    def replay(self, host: Host, batch: Batch) -> Batch:
        """Adds nothing: prunes when it is time, and keeps batch norm as the first task left it."""
        self._guard(host)
        steps, done = host.clock.steps, host.clock.taken
        if not done:
            self._restore()  # a part that begins each task from other weights may have moved them
        if self.retrain and not self.pruned:
            host.judge_anew()
        if not self.pruned and steps and done >= (1 - self.retrain) * steps:
            self._prune(host)
        if self.shares.tasks:
            self.paused = [module for module in host.model.modules() if module.training and _keeps_statistics(module)]
        for module in self.paused:
            module.training = False
        return batch

    def project(self, host: Host, batch: Batch) -> None:
        """No gradient where nothing may move: clipping must not count it."""
        for p, live, _ in self.guarded:
            if p.grad is not None:
                p.grad.mul_(live)

    def after_step(self, host: Host, batch: Batch, outputs: Tensor) -> None:
        """Puts back what momentum and decay have moved."""
        self._restore()
        for module in self.paused:
            module.training = True
        self.paused = []

    def end(self, host: Host, task: Task) -> None:
        """What was not pruned is the task's, for good."""
        self._guard(host)
        if not self.pruned:
            self._prune(host)
        self._restore()  # a part that speaks later in `after_step` may have moved what is not its own
        self.shares.keep(host, task.name)
        self.guarded, self.guarded_for = [], None
        for p in host.params().values():
            host.optimizer.state.pop(p, None)

    def _prune(self, host: Host) -> None:
        self.shares.take(host, self.prune)
        self.pruned = True
        self._guard(host)
        self._restore()

    @torch.no_grad()
    def _guard(self, host: Host) -> None:
        """Works out, once for all steps with the same owners, what may not move and which values it has."""
        if self.guarded_for is self.shares.owner:
            return
        self.shares.claim(host)
        owned = self.shares.values(host.model, len(self.shares.tasks))
        self.guarded = []
        for name, p, owner in self.shares.owners(host.model):
            frozen = (owner != self.shares.place) & ((owner != FREE) | self.pruned)
            if bool(frozen.any()):
                self.guarded.append((p, (~frozen).to(p.dtype), torch.where(owner == NOBODYS, p, owned[name])))
        self.guarded_for = self.shares.owner

    @torch.no_grad()
    def _restore(self) -> None:
        for p, live, value in self.guarded:
            p.mul_(live).add_(value)  # a selection by booleans takes seven times as long

    # ---- answering ----

    def predict(self, learner: Trainer, x: Columns, task: int | None) -> Tensor:
        """By the weights of tasks up to this one; for a task that is not learnt to its end by the network as it is."""
        place = self.shares.place_of(task)
        return super().predict(learner, x, task) if place is None else self.shares.scores(learner.model, x, place)

    def features(self, learner: Trainer, x: Columns, task: int | None) -> Tensor:
        """What the task's columns of the head see."""
        place = self.shares.place_of(task)
        return super().features(learner, x, task) if place is None else self.shares.features(learner.model, x, place)


def _keeps_statistics(module: nn.Module) -> bool:
    return isinstance(getattr(module, "running_mean", None), Tensor)
