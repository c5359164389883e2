"""GDumb: keep balanced rows, and at every task train from scratch on these alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from perdure.data import Task, chunks
from perdure.memory import ClassBalanced, Memory
from perdure.method import Host, Method, Trainer, memory
from perdure.seeds import seeded


@dataclass(eq=False)
class GDumb(Method):
    """Greedy sampler and dumb learner (Prabhu et al. 2020).

    Keep `capacity` rows ("10 MB" is a capacity too), an equal share a class; at each task put the weights back to where
    they began, forget the optimizer's moments, and train on the memory alone, for the Learner's `epochs` over it or
    `steps`. Few rows need many epochs: set `steps`, or what would bring a small data set to convergence.

    The paper's sampler takes the first rows of a class until its share is full and evicts random rows of the largest
    class; `ClassBalanced` reaches the same counts, but keeps a uniform sample of each class, so that a class also gets
    rows of later tasks (scenario "domain"), and gives the places that a rare class leaves free to the others.

    Memory: `capacity` rows and a copy of the weights at the start. The yardstick of rehearsal: a method with the same
    memory that does no better has not used the stream.
    """

    name: ClassVar[str] = "gdumb"
    title: ClassVar[str] = "GDumb"
    paper: ClassVar[str] = "Prabhu et al. 2020 (ECCV)"
    cost: ClassVar[str] = "a step; `capacity` rows; a copy of the weights"
    objectives: ClassVar[tuple[str, ...]] = ("classification",)
    hides_stream: ClassVar[bool] = True
    keeps_rows: ClassVar[bool] = True

    capacity: int | str = 2000
    store: Memory = memory(lambda: ClassBalanced(1))
    start: dict[str, Tensor] = memory(dict)  # the weights as they began, each from when it was opened
    before: dict[str, Tensor] = memory(dict)  # those before the model grew for the open task
    restarted: bool = memory(bool)  # whether the open task's rows were offered and its training began

    def __post_init__(self) -> None:
        self.store = ClassBalanced(self.capacity)

    def begin(self, host: Host, task: Task | None) -> None:
        """Notes the weights, to tell what the model grows."""
        if self.store.seen == 0:
            self.store = ClassBalanced(self.capacity, seeded(host.seed, "memory", self.name, self.position))
        self.before = {name: tensor.detach().clone() for name, tensor in host.model.state_dict().items()}
        self.start = self.start or dict(self.before)
        self.restarted = False

    def fit(self, learner: Trainer, task: Task) -> None:
        """Stores rows and starts anew, once; then epochs over the memory."""
        if not self.restarted:
            self._offer(learner, task)
            self._restart(learner)
            self.restarted = True
        none, past = task.train.select(torch.arange(0)), self.store.all()
        for _ in learner.epochs():
            learner.epoch(none, past)

    def end(self, host: Host, task: Task) -> None:
        """Consolidation without training offers the rows here."""
        if not self.restarted:
            self._offer(host, task)
            self.before = {}

    def _offer(self, host: Host, task: Task) -> None:
        for index in chunks(torch.arange(len(task.train)), 1024):
            batch = host.read(task.train, index)
            if batch.y is None:
                raise ValueError("gdumb stores labelled rows, and these have no labels")
            self.store.add({"x": batch.x, "y": batch.y, "task": batch.task}, host.balance_key(batch))

    def _restart(self, host: Host) -> None:
        """What has just grown begins as it is, all else as it began; what another part has frozen stays."""
        state = host.model.state_dict()
        for name, tensor in state.items():
            before = self.before.get(name)
            if before is None or before.shape != tensor.shape:
                self.start[name] = tensor.detach().clone()
            else:
                self.start[name] = torch.where(tensor == before, self.start[name], tensor)
        resting = _resting(host.model)
        host.model.load_state_dict({name: state[name] if name in resting else self.start[name] for name in state})
        host.optimizer.state.clear()
        self.before = {}


def _resting(model: nn.Module) -> set[str]:
    """The tensors of a network that are frozen: parameters, and the buffers of modules that have such parameters."""
    frozen = {name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    for path, module in model.named_modules(remove_duplicate=False):
        if not all(p.requires_grad for p in module.parameters()):
            frozen.update(name for name, _ in module.named_buffers(path, recurse=False))
    return frozen
