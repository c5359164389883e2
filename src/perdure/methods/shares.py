"""Who owns which weight of one network: what tasks have taken, what is free, and the network as a task knows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from perdure.data import Columns
from perdure.method import Host, load_state_of, memory, state_of
from perdure.methods.curvature import Weights
from perdure.models import Head

FREE, NOBODYS = 0, 255  # owners of a weight that any task may take, and of a column that is not this task's to take
MOST_TASKS = NOBODYS - 1


@dataclass(eq=False)
class Shares:
    """The owner of every weight: a task's place in the order of learning, from 1, or FREE.

    Shared out are the trained tensors of two and more dimensions below the head. A row of the head belongs to the task
    that opens its column. All the rest (biases, batch norm, what is not trained) belongs to the first task.
    """

    tasks: dict[str, list[int]] = memory(dict)  # in order, those learnt: the host's number, the columns at their end
    owner: Weights = memory(dict)  # of each weight, uint8; replaced, never changed, when a weight changes hands
    rows: Tensor = memory(lambda: torch.zeros(0, dtype=torch.uint8))  # the owner of each row of the head
    kept: Weights = memory(dict)  # of each parameter and buffer the values that tasks learnt own, in a row

    def state(self) -> dict[str, Any]:
        """The memory fields."""
        return state_of(self)

    def load_state(self, saved: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        load_state_of(self, saved)

    @property
    def place(self) -> int:
        """The open task's."""
        return len(self.tasks) + 1

    def place_of(self, number: int | None) -> int | None:
        """That of the task with this number, if it is learnt."""
        return next((i for i, (known, _) in enumerate(self.tasks.values(), 1) if known == number), None)

    # ---- giving and taking ----

    def release(self) -> None:
        """What a task took that was not learnt to its end is free again."""
        self.owner = {name: owner.masked_fill(owner == self.place, FREE) for name, owner in self.owner.items()}
        self.rows = self.rows.masked_fill(self.rows == self.place, NOBODYS)

    def claim(self, host: Host) -> None:
        """New layers are free; the open task's columns are its own, unless an earlier task has them (shared heads)."""
        trained, model_head = host.params(), head(host.model)
        shared = {name: p for name, p in layers(host.model).items() if name in trained and name not in self.kept}
        self.owner = {name: torch.full_like(p, FREE, dtype=torch.uint8) for name, p in shared.items()} | self.owner
        rows = F.pad(self.rows.to(host.device), (0, model_head.capacity - len(self.rows)), value=NOBODYS)
        groups = host.column_groups(host.columns or 0)
        own = groups[min(host.number, len(groups) - 1)]
        self.rows = rows.index_copy(0, own, rows[own].masked_fill(rows[own] == NOBODYS, self.place))

    @torch.no_grad()
    def take(self, host: Host, prune: float) -> None:
        """The open task takes the largest of the n free weights of each layer: all but floor(prune * n)."""
        found = layers(host.model)
        taken = {}
        for name, owner in self.owner.items():
            free = (owner == FREE).flatten()
            count = int(free.sum())
            size = found[name].abs().flatten().masked_fill(~free, -1.0)
            largest = size.sort(descending=True, stable=True).indices[: count - int(prune * count)]
            taken[name] = owner.flatten().index_fill(0, largest, self.place).view_as(owner)
        self.owner = taken

    def keep(self, host: Host, name: str) -> None:
        """The open task is learnt: the values that it owns are kept for good."""
        self.tasks = {**self.tasks, name: [host.number, head(host.model).columns]}
        self.kept = {key: p.detach().masked_select(self._learnt(owner)) for key, p, owner in self.owners(host.model)}

    # ---- the network as a task knows it ----

    def owners(self, model: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Every parameter and buffer with its owners: one a weight, one a row of the head, or one in all."""
        rows, first = {}, torch.ones((), dtype=torch.uint8, device=self.rows.device)
        for blocks in (head(model).weights, head(model).biases):
            for p, part in zip(blocks, torch.split(self.rows, [len(p) for p in head(model).weights]), strict=False):
                rows[id(p)] = part.view(-1, *[1] * (p.ndim - 1))
        for name, p in chain(model.named_parameters(), model.named_buffers()):
            yield name, p, rows.get(id(p), self.owner.get(name, first))

    @torch.no_grad()
    def values(self, model: nn.Module, place: int) -> Weights:
        """All parameters and buffers, 0 where their owner is not among the first `place` tasks."""
        found = {}
        for name, p, owner in self.owners(model):
            whole = torch.zeros_like(p).masked_scatter_(self._learnt(owner), self.kept.get(name, p.new_empty(0)))
            found[name] = whole.masked_fill_(owner > place, 0.0)
        return found

    def scores(self, model: nn.Module, x: Columns, place: int) -> Tensor:
        """What the task with this place answered at its end, bit for bit; 0 for columns that came later."""
        columns, now = list(self.tasks.values())[place - 1][1], head(model).columns
        with _narrowed(head(model), columns):  # a product of another shape may differ in its last bits
            scores: Tensor = functional_call(model, self.values(model, place), (x,))
        return F.pad(scores, (0, now - columns))

    def features(self, model: nn.Module, x: Columns, place: int) -> Tensor:
        """What the columns of the task with this place see."""
        values = {f"model.{name}": value for name, value in self.values(model, place).items()}
        found: Tensor = functional_call(_Features(model), values, (x,))
        return found

    def _learnt(self, owner: Tensor) -> Tensor:
        return (owner != FREE) & (owner <= len(self.tasks))


def head(model: nn.Module) -> Head:
    """The network's output layer."""
    assert isinstance(model.head, Head)
    return model.head


def layers(model: nn.Module) -> Weights:
    """The tensors of two and more dimensions below the head."""
    own = {id(p) for p in head(model).parameters()}
    return {name: p for name, p in model.named_parameters() if p.ndim > 1 and id(p) not in own}


@contextmanager
def _narrowed(head: Head, columns: int) -> Iterator[None]:
    """The head with its first columns only."""
    whole, head.columns = head.columns, columns
    try:
        yield
    finally:
        head.columns = whole


class _Features(nn.Module):
    """`model.features` as a forward pass, which can be called with other weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Columns) -> Tensor:
        found: Tensor = self.model.features(x)  # type: ignore[operator]
        return found
