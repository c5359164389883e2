"""What rows look up in embeddings, for importances: a row's gradient touches the vectors of its own ids only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from perdure.models.ratings import Vectors


@dataclass(frozen=True)
class Table:
    """An embedding, its weight as blocks of rows (name, None: unwanted; how many), and where in them each id stands.

    `place` gives -1 for an id that has no row.
    """

    module: nn.Module
    blocks: list[tuple[str | None, int]]
    place: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Lookups:
    """The vectors that a chunk's rows look up in a table: one entry for each pair of a row and a vector of it.

    `entry` says for each lookup of a `known` id, all calls one after another, which pair it is of; `vector` where a
    pair's vector stands. A row that looks a vector up twice has the sum of both gradients, before it is squared.
    """

    known: Tensor
    entry: Tensor
    vector: Tensor

    @staticmethod
    def of(table: Table, calls: list[Tensor]) -> Lookups:
        """From the ids that the table was called with."""
        if not calls:
            return Lookups(*torch.empty(3, 0, dtype=torch.long))
        places = [table.place(ids).reshape(len(ids), -1) for ids in calls]
        row = torch.cat([torch.arange(len(p), device=p.device).repeat_interleave(p.shape[1]) for p in places])
        place = torch.cat([p.flatten() for p in places])
        known, capacity = place >= 0, sum(rows for _, rows in table.blocks)
        pairs, entry = torch.unique((row * capacity + place)[known], return_inverse=True)
        return Lookups(known, entry, pairs % capacity)

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
        each = torch.cat([g.reshape(-1, wide) for g in gradients if g is not None])[self.known]
        whole = each.new_zeros(len(self.vector), wide).index_add_(0, self.entry, each)
        found, start = size(whole), 0
        for name, rows in blocks:
            here = (self.vector >= start) & (self.vector < start + rows)
            if name is not None:
                sums[name].index_add_(0, self.vector[here] - start, found[here])
            start += rows


def embedding(module: nn.Module) -> tuple[list[nn.Parameter], Callable[[Tensor], Tensor]]:
    """The weight of an embedding as blocks, and where ids stand in it; no blocks for what is none."""
    if isinstance(module, Vectors):
        return list(module.blocks), module.place
    plain = isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward
    if plain and module.max_norm is None and not module.scale_grad_by_freq and not module.sparse:
        padding = -1 if module.padding_idx is None else module.padding_idx
        return [module.weight], lambda ids: torch.where(ids == padding, -1, ids)
    return [], lambda ids: ids
