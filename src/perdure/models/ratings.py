"""The network of ratings: a learnt vector for every user and every item, in tables that grow as they are met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perdure.models.blocks import linear_block
from perdure.models.head import Network, own_seed

FIRST_BLOCK = 256
SPREAD = 0.1  # of a new vector's numbers: small, so that what is new says little until something is learnt of it


class Vectors(nn.Module):
    """A learnt vector for each id that was met: int64 [n] -> [n, width]; zeros for an id that never was.

    Ids are any whole numbers. Capacity comes in blocks of 256, 256, 512, ... rows, so that the total doubles; a block
    is a parameter of its own and is never resized, so that an optimizer keeps its moments. A row's gradient touches the
    vectors of its own ids only; vectors that are not open are zero, have no gradient, and stay so.

    The last number of a vector is a bias: it begins at 0, the others are drawn from N(0, 0.1^2).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.ParameterList([nn.Parameter(torch.zeros(FIRST_BLOCK, width))])
        self.register_buffer("ids", torch.empty(0, dtype=torch.long))  # in ascending order
        self.register_buffer("rows", torch.empty(0, dtype=torch.long))  # the row of each
        self.ids: Tensor
        self.rows: Tensor

    @property
    def capacity(self) -> int:
        """Rows allocated, open or not."""
        return sum(len(block) for block in self.blocks)

    def place(self, ids: Tensor) -> Tensor:
        """The rows of ids, of any shape; -1 for what was never met."""
        if len(self.ids) == 0:
            return torch.full_like(ids, -1)
        packed = ids.clone().contiguous()  # the search warns of strides, also of those that vmap hides
        near = torch.searchsorted(self.ids, packed).clamp(max=len(self.ids) - 1)
        return torch.where(self.ids[near] == ids, self.rows[near], -1)

    def forward(self, ids: Tensor) -> Tensor:
        """Looks up: [n] -> [n, width]."""
        place, start, parts = self.place(ids), 0, []
        for block in self.blocks:
            local = place - start
            here = (local >= 0) & (local < len(block))
            parts.append(F.embedding(local.clamp(0, len(block) - 1), block) * here[..., None])
            start += len(block)
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)

    @torch.no_grad()
    def meet(self, ids: Tensor, generator: torch.Generator) -> None:
        """Opens a row for every id that is new, in ascending order, each drawn from `generator`."""
        found = torch.unique(ids)
        new = found[self.place(found) < 0]
        first, width = len(self.ids), self.blocks[0].shape[1]
        self._number(torch.cat([self.ids, new]), torch.cat([self.rows, first + torch.arange(len(new)).to(new.device)]))
        drawn = SPREAD * torch.randn(len(new), width, generator=generator, device=generator.device)
        drawn[:, -1] = 0
        start = 0
        for block in self.blocks:
            low, high = max(first, start), min(first + len(new), start + len(block))
            if low < high:
                block[low - start : high - start].copy_(drawn[low - first : high - first])
            start += len(block)

    def reopen(self, ids: Tensor, rows: Tensor) -> None:
        """Opens the rows that a state has: its vectors are loaded after this."""
        self._number(ids.to(self.ids.device), rows.to(self.ids.device))

    def _number(self, ids: Tensor, rows: Tensor) -> None:
        self.ids, order = ids.sort()
        self.rows = rows[order]
        while self.capacity < len(ids):
            self.blocks.append(nn.Parameter(self.blocks[-1].new_zeros(self.capacity, self.blocks[-1].shape[1])))


class Towers(nn.Module):
    """A user's vector and an item's, each through layers of its own, multiplied number by number.

    The last feature is the sum of both biases. Without hidden layers and under a head of ones this is matrix
    factorisation with biases (Koren et al. 2009): the head weighs each factor (He et al. 2017, GMF).
    """

    def __init__(self, width: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.users, self.items = Vectors(width + 1), Vectors(width + 1)
        self.user_tower, self.item_tower = (_tower(width, hidden, dropout) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """What the head sees of pairs: [n] and [n] -> [n, width + 1]."""
        user, item = self.users(users), self.items(items)
        factors = self.user_tower(user[:, :-1]) * self.item_tower(item[:, :-1])
        return torch.cat([self.dropout(factors), user[:, -1:] + item[:, -1:]], 1)


class Ratings(Network):
    """A `Network` over {"user": int64 [n], "item": int64 [n]}, any ids; what was never met counts as zeros.

    Where x names another item too, {"other": int64 [n]}, the scores are those of the item less those of the other:
    what objective "ranking" learns from.
    """

    def features(self, x: Mapping[str, Tensor]) -> Tensor:  # type: ignore[override]
        """What the head sees of user and item: [n, width + 1]."""
        found: Tensor = self.body(x["user"], x["item"])
        return found

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:  # type: ignore[override]
        """Raw scores [n, columns]."""
        scores: Tensor = self.head(self.features(x))
        return scores - self.head(self.body(x["user"], x["other"])) if "other" in x else scores

    def meet(self, x: Mapping[str, Tensor], generator: torch.Generator) -> None:
        """Opens vectors for the users and items that are new among rows about to be learnt."""
        self.body.users.meet(x["user"], generator)  # type: ignore[union-attr, operator]
        items = [x["item"], x["other"]] if "other" in x else [x["item"]]
        self.body.items.meet(torch.cat(items), generator)  # type: ignore[union-attr, operator]

    def reopen(self, weights: Mapping[str, Tensor]) -> None:
        """Opens what a state dict holds, which is then loaded."""
        for name, part in self.named_modules():
            if isinstance(part, Vectors):
                part.reopen(weights[f"{name}.ids"], weights[f"{name}.rows"])


def ratings(width: int = 16, hidden: Sequence[int] = (), *, dropout: float = 0.0) -> Ratings:
    """Matrix factorisation or, with `hidden` layers, two towers: {"user": [n], "item": [n]} -> [n, columns].

    `width` is the length of the vector that is learnt for each user and item, besides a bias.
    """
    if min([width, *hidden]) < 1:
        raise ValueError(f"ratings: every size is at least 1, found width={width}, hidden={list(hidden)}")
    settings: dict[str, Any] = {"width": width, "hidden": list(hidden), "dropout": dropout}
    with own_seed(0):
        return Ratings({"name": "ratings", "settings": settings}, Towers(width, hidden, dropout), width + 1)


def _tower(width: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    layers, inputs = list[nn.Module](), width
    for size in hidden:
        layers += linear_block(inputs, size, dropout=dropout)
        inputs = size
    return nn.Sequential(*layers, nn.Linear(inputs, width)) if layers else nn.Sequential()
