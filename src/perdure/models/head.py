"""The output layer that grows one class at a time, and the network it sits on."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FIRST_BLOCK = 16


class Head(nn.Module):
    """A linear layer whose rows open as classes arrive: `scores = x W' + b` over the opened rows only.

    Capacity comes in blocks of 16, 16, 32, 64, ... rows, so that the total doubles. A block is a parameter of its own
    and is never resized, so that an optimizer keeps its moments. Rows not yet opened are exactly zero and stay so
    under any optimizer: they take no part in the output, hence have no gradient, and decay leaves zero at zero.

    With `first`, the parameters of an existing layer are the first block, opened fully; if it has no bias, the head
    has none. Shapes: x [n, features] -> [n, columns]. Raises ValueError for any other shape of x.
    """

    def __init__(self, features: int, first: nn.Linear | None = None) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"a head needs at least 1 feature, found {features}")
        if first is not None and first.in_features != features:
            raise ValueError(f"the first block takes {first.in_features} features, but the head has {features}")
        self.features = features
        self.columns = 0 if first is None else first.out_features
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        if first is None:
            # Allocated at once: an empty head then knows its device and dtype, and an optimizer knows the head.
            self.weights.append(nn.Parameter(torch.zeros(FIRST_BLOCK, features)))
            self.biases.append(nn.Parameter(torch.zeros(FIRST_BLOCK)))
        else:
            self.weights.append(first.weight)
            if first.bias is not None:
                self.biases.append(first.bias)

    @property
    def capacity(self) -> int:
        """Rows allocated, opened or not."""
        return sum(len(weight) for weight in self.weights)

    def forward(self, x: Tensor) -> Tensor:
        """Raw scores of every opened column: [n, features] -> [n, columns]."""
        if x.dim() != 2 or x.shape[1] != self.features:
            raise ValueError(
                f"the head takes one vector of {self.features} features a row, [n, {self.features}], but was given "
                f"{list(x.shape)}; pool or flatten the other dimensions first"
            )
        return F.linear(x, self._opened(self.weights), self._opened(self.biases) if len(self.biases) else None)

    def grow(self, columns: int, generator: torch.Generator) -> None:
        """Open rows until there are `columns` in total, each drawn from `generator` uniformly in +-1/sqrt(features).

        Raises ValueError if `columns` is fewer than are open.
        """
        if columns < self.columns:
            raise ValueError(f"the head has {self.columns} columns and can't shrink to {columns}")
        while self.columns < columns:
            if self.columns == self.capacity:
                self._allocate()
            self._open(generator)

    def _opened(self, blocks: nn.ParameterList) -> Tensor:
        whole = blocks[0] if len(blocks) == 1 else torch.cat(list(blocks))
        return whole if len(whole) == self.columns else whole[: self.columns]

    def _allocate(self) -> None:
        size = max(FIRST_BLOCK, self.capacity)
        self.weights.append(nn.Parameter(self.weights[-1].new_zeros(size, self.features)))
        if len(self.biases):
            self.biases.append(nn.Parameter(self.biases[-1].new_zeros(size)))

    @torch.no_grad()
    def _open(self, generator: torch.Generator) -> None:
        # One draw a row, always of the same size: the numbers don't depend on how the growth was cut into steps.
        drawn = torch.rand(self.features + 1, generator=generator, dtype=torch.float32, device=generator.device)
        drawn = (2 * drawn - 1) / math.sqrt(self.features)
        row = self.columns - (self.capacity - len(self.weights[-1]))  # only the last block has unopened rows
        self.weights[-1][row].copy_(drawn[:-1])
        if len(self.biases):
            self.biases[-1][row].copy_(drawn[-1])
        self.columns += 1

    def extra_repr(self) -> str:
        """What `print(model)` shows of the head."""
        return f"features={self.features}, columns={self.columns}"


class Network(nn.Module):
    """A body that turns each row into `width` features, and the head that scores them.

    `recipe` is JSON-able: {"name": ..., "settings": {...}}; `models.build(recipe)` makes the network again.
    """

    def __init__(self, recipe: dict[str, Any], body: nn.Module, width: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.body = body
        self.head = Head(width)

    @property
    def grown(self) -> bool:
        """Whether it knows any class."""
        return self.head.columns > 0

    def features(self, x: Tensor) -> Tensor:
        """What the head sees: [n, ...] -> [n, width]."""
        found: Tensor = self.body(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Raw finite scores of every class known so far: [n, ...] -> [n, columns]."""
        scores: Tensor = self.head(self.features(x))
        return scores

    def grow(self, columns: int, generator: torch.Generator) -> None:
        """Open columns of the head until there are `columns` in total."""
        self.head.grow(columns, generator)


@contextmanager
def own_seed(seed: int) -> Iterator[None]:
    """Draw from `seed` on the CPU, and give torch's global generator back as it was."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also move the accelerators' generators
        yield
