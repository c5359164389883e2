"""What rows look up in embeddings, for importances: a row's gradient touches the vectors of its own ids only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from perdure.models.ratings import Vectors
from perdure.models.text import Bag


@dataclass(frozen=True)
class Table:
    """An embedding, its weight as blocks of rows (name, None: unwanted; how many), and where in them each id stands.

    `place` gives -1 for an id that has no row. Of a bag, whose output is a weighted sum of a row's vectors, `share`
    gives what each of them counts there, [n].
    """

    module: nn.Module
    blocks: list[tuple[str | None, int]]
    place: Callable[[Tensor], Tensor]
    share: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Lookups:
    """The vectors that a chunk's rows look up in a table: one entry for each pair of a row and a vector of it.

    `entry` says for each lookup of a `known` id, all calls one after another, which pair it is of; `vector` where a
    pair's vector stands. A row that looks a vector up twice has the sum of both gradients, before it is squared. Of a
    bag `row` and `times` say for each pair how often the row's one gradient counts.
    """

    known: Tensor
    entry: Tensor
    vector: Tensor
    row: Tensor | None = None
    times: Tensor | None = None

    @staticmethod
    def of(table: Table, calls: list[Tensor]) -> Lookups:
        """From the ids that the table was called with."""
        if not calls:
            return Lookups(*torch.empty(3, 0, dtype=torch.long))
        places = [table.place(ids).reshape(len(ids), -1) for ids in calls]
        row = torch.cat([torch.arange(len(p), device=p.device).repeat_interleave(p.shape[1]) for p in places])
        place = torch.cat([p.flatten() for p in places])
        known, capacity = place >= 0, sum(rows for _, rows in table.blocks)
        pairs, entry, often = torch.unique((row * capacity + place)[known], return_inverse=True, return_counts=True)
        if table.share is None:
            return Lookups(known, entry, pairs % capacity)
        if len(calls) > 1:
            raise ArithmeticError("a bag of vectors is called more than once")
        row = torch.div(pairs, capacity, rounding_mode="floor")
        return Lookups(known, entry, pairs % capacity, row, often * table.share(calls[0])[row])

    def add(
        self,
        sums: dict[str, Tensor],
        blocks: list[tuple[str | None, int]],
        gradients: list[Tensor | None],
        size: Callable[[Tensor], Tensor],
    ) -> None:
        """Adds the sizes of the gradients of one probe, each [n, ..., width], to the blocks that they belong to."""
        wide = next((g.shape[-1] for g in gradients if g is not None), None)
        if wide is None:
            return
        if any(g is None for g in gradients):
            raise ArithmeticError("the scores depend on one lookup of an embedding and not on another")
        each = torch.cat([g.reshape(-1, wide) for g in gradients if g is not None])
        if self.row is None or self.times is None:
            whole = each.new_zeros(len(self.vector), wide).index_add_(0, self.entry, each[self.known])
        else:
            whole = each[self.row] * self.times[:, None].to(each.dtype)
        found, start = size(whole), 0
        for name, rows in blocks:
            here = (self.vector >= start) & (self.vector < start + rows)
            if name is not None:
                sums[name].index_add_(0, self.vector[here] - start, found[here])
            start += rows


Share = Callable[[Tensor], Tensor] | None


def embedding(module: nn.Module) -> tuple[list[nn.Parameter], Callable[[Tensor], Tensor], Share]:
    """The weight of an embedding as blocks, where ids stand in it, and a bag's share; no blocks for what is none."""
    if type(module) is Bag:
        return list(module.parameters()), _unless_zero(module.ids), module.share
    if isinstance(module, Vectors):
        return list(module.blocks), module.place, None
    plain = isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward
    if plain and module.max_norm is None and not module.scale_grad_by_freq and not module.sparse:
        padding = -1 if module.padding_idx is None else module.padding_idx
        return [module.weight], lambda ids: torch.where(ids == padding, -1, ids), None
    return [], lambda ids: ids, None


def _unless_zero(ids: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Where an id is 0 there is no vector."""

    def place(x: Tensor) -> Tensor:
        found = ids(x)
        return torch.where(found == 0, -1, found)

    return place
