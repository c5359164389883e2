"""The network for tables: numbers as they are, categories by learnt vectors, fully connected layers above."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from perdure.models.blocks import linear_block
from perdure.models.head import Network, own_seed


class Vectors(nn.Embedding):
    """A learnt vector for each category of each column: int64 [n, columns] -> [n, columns * width].

    Each column has `capacity` vectors of its own. They begin at zero, so that a category that comes later is neutral
    until something is learnt of it.
    """

    def __init__(self, columns: int, capacity: int, width: int) -> None:
        super().__init__(columns * capacity, width)
        self.capacity = capacity
        self.register_buffer("starts", torch.arange(columns) * capacity, persistent=False)
        self.starts: Tensor

    def reset_parameters(self) -> None:
        """Zeros."""
        with torch.no_grad():
            self.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Looks up: [n, columns] -> [n, columns * width]."""
        return super().forward(x + self.starts).flatten(1)


class Table(nn.Module):
    """Numbers and the vectors of categories, side by side, through fully connected layers.

    x is {"numbers": float [n, numbers], "categories": int64 [n, categories]}, without what there is none of.
    """

    def __init__(self, vectors: Vectors | None, layers: Sequence[nn.Module], numbers: int) -> None:
        super().__init__()
        self.vectors = vectors
        self.layers = nn.Sequential(*layers)
        self.numbers = numbers

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        """What the head sees: [n, width]."""
        parts = [x["numbers"]] if self.numbers else []
        if self.vectors is not None:
            parts.append(self.vectors(x["categories"]))
        found: Tensor = self.layers(torch.cat(parts, 1))
        return found


def tabular(
    numbers: int,
    categories: int = 0,
    hidden: Sequence[int] = (64, 64),
    *,
    capacity: int = 256,
    width: int = 8,
    dropout: float = 0.0,
) -> Network:
    """Fully connected layers over {"numbers": [n, numbers], "categories": [n, categories]}, or one of them alone.

    `capacity` is how many categories a column may have, 0 for what is missing included; `width` the length of the
    vector that is learnt for each.
    """
    if min(numbers, categories) < 0 or numbers + categories < 1 or min([capacity, width, *hidden]) < 1:
        raise ValueError(
            f"tabular: at least one number or category, and every size at least 1, found numbers={numbers}, "
            f"categories={categories}, hidden={list(hidden)}, capacity={capacity}, width={width}"
        )
    settings = {
        "numbers": numbers, "categories": categories, "hidden": list(hidden), "capacity": capacity, "width": width,
        "dropout": dropout,
    }  # fmt: skip
    with own_seed(0):
        vectors = Vectors(categories, capacity, width) if categories else None
        layers, inputs = list[nn.Module](), numbers + categories * width
        for size in hidden:
            layers += linear_block(inputs, size, dropout=dropout)
            inputs = size
        return Network({"name": "tabular", "settings": settings}, Table(vectors, layers, numbers), inputs)
