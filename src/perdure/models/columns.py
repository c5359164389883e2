"""Progressive networks: a column of blocks for every task, which sees the columns before it and never moves them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from perdure.models.blocks import conv_block, linear_block
from perdure.models.convnet import convnet
from perdure.models.head import Head, Network, own_seed
from perdure.models.mlp import mlp
from perdure.models.modes import evaluating

BASES: dict[str, Callable[..., Network]] = {"mlp": mlp, "convnet": convnet}
# The largest alpha to begin with. Split MNIST, 15 steps a task, 3 seeds: 0.967 with 0.1 or less, 0.963 with 1.
SMALL = 0.1

Levels = list[Tensor]  # of one column: the input, then what each block gives


@dataclass(frozen=True)
class Plan:
    """What a column is made of: `block(inputs, outputs)` makes the layers of one block, `area` pixels a channel are
    left after the last one; `maps` tells feature maps [n, channels, h, w] from vectors [n, features].
    """

    inputs: int
    widths: list[int]
    area: int
    maps: bool
    block: Callable[[int, int], list[nn.Module]]

    @staticmethod
    def of(network: Network) -> "Plan":
        """That of an mlp or a convnet."""
        settings = network.recipe["settings"]
        if network.recipe["name"] == "mlp":
            block = partial(linear_block, dropout=settings["dropout"], norm=settings["norm"])
            return Plan(settings["inputs"], settings["hidden"], 1, False, block)
        area = network.head.features // settings["widths"][-1]
        return Plan(settings["shape"][0], settings["widths"], area, True, partial(conv_block, norm=settings["norm"]))

    def scaled(self, width: float) -> list[int]:
        """The width of every level of a column, the input first."""
        return [self.inputs, *(max(1, round(width * size)) for size in self.widths)]


class Adapter(nn.Module):
    """Puts what the earlier columns say beside a column's own features: [h, relu(V [alpha_j h(j)]_{j<k} + c)].

    alpha_j is one learned number an earlier column. V is linear, for feature maps a 1x1 convolution.
    """

    def __init__(self, earlier: Sequence[int], outputs: int, maps: bool, generator: torch.Generator) -> None:
        super().__init__()
        drawn = torch.rand(len(earlier), generator=generator, device=generator.device)
        self.alpha = nn.Parameter(SMALL * (2 * drawn - 1))
        self.project = nn.Conv2d(sum(earlier), outputs, 1) if maps else nn.Linear(sum(earlier), outputs)

    def forward(self, own: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """[n, own, ...] and [n, earlier, ...] for each earlier column -> [n, own + outputs, ...]."""
        scaled = torch.cat([alpha * h for alpha, h in zip(self.alpha, earlier, strict=True)], dim=1)
        return torch.cat([own, torch.relu(self.project(scaled))], dim=1)


class Column(nn.Module):
    """The blocks of one task; from the second block on, each sees the earlier columns through an adapter."""

    def __init__(
        self, plan: Plan, widths: list[int], earlier: Sequence["Column"], projection: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.widths, self.maps = widths, plan.maps
        self.adapters, self.blocks = nn.ModuleList(), nn.ModuleList()
        for level, (inputs, outputs) in enumerate(pairwise(widths)):
            lateral = 0
            if level and earlier:
                lateral = _reduced(inputs, projection)
                below = [column.widths[level] for column in earlier]
                self.adapters.append(Adapter(below, lateral, plan.maps, generator))
            self.blocks.append(nn.Sequential(*plan.block(inputs + lateral, outputs)))

    def forward(self, x: Tensor, earlier: Sequence[Levels]) -> Levels:
        """The column's levels, given those of the earlier columns."""
        levels = [x if self.maps else x.flatten(1)]
        for level, block in enumerate(self.blocks):
            h = levels[-1]
            if level and earlier:
                h = self.adapters[level - 1](h, [column[level] for column in earlier])
            levels.append(block(h))
        return levels

    def sizes(self) -> tuple[int, int]:
        """Numbers of parameters: the column's own, and those of its lateral connections (alpha, V and U)."""
        weights = [cast("Tensor", cast("nn.Sequential", block)[0].weight) for block in self.blocks]
        # U are the weights on what an adapter has put beside the column's own features.
        within = sum(weight[:, own:].numel() for weight, own in zip(weights, self.widths, strict=False))
        lateral = within + _count(self.adapters)
        return _count(self) - lateral, lateral


class Top(nn.Module):
    """The scores of one task: a head on the last level of a column, which sees the earlier ones through an adapter."""

    def __init__(
        self, plan: Plan, column: Column, earlier: Sequence[Column], projection: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        own, lateral = column.widths[-1], 0
        self.adapter: Adapter | None = None
        if earlier and plan.widths:
            lateral = _reduced(own, projection)
            self.adapter = Adapter([before.widths[-1] for before in earlier], lateral, plan.maps, generator)
        self.own = own * plan.area
        self.head = Head((own + lateral) * plan.area)

    def features(self, columns: Sequence[Levels]) -> Tensor:
        """What the head sees, given the levels of the earlier columns and of its own: [n, features]."""
        *earlier, own = (levels[-1] for levels in columns)
        return (own if self.adapter is None else self.adapter(own, earlier)).flatten(1)

    def forward(self, columns: Sequence[Levels]) -> Tensor:
        """Raw scores [n, columns of this task]."""
        scores: Tensor = self.head(self.features(columns))
        return scores

    def sizes(self) -> tuple[int, int]:
        """Numbers of parameters as in `Column.sizes`; rows of the head that are not opened don't count."""
        within = (self.head.features - self.own) * self.head.columns
        return (self.own + 1) * self.head.columns, within + (_count(self.adapter) if self.adapter is not None else 0)


class Columns(nn.Module):
    """Progressive networks (Rusu et al. 2016): each `grow` opens a column of blocks with a head for the new scores.

        h_i(k) = f(W_i h_{i-1}(k) + U_i relu(V_i [alpha_{i-1,j} h_{i-1}(j)]_{j<k}))

    for column k at every level i above the input, the scores included; f is what follows the layer in a block: batch
    norm, ReLU, pooling, dropout. W and U are one layer on the concatenated features, drawn as one. V projects onto as
    many features as the column has at that level, times `projection`; into the scores of a convnet it is applied to
    feature maps, flattened afterwards.

    When a column opens, everything older is frozen: no gradient, no step of any optimizer, running statistics in batch
    norm and no dropout, also in train mode. All columns after the first are `width` times as wide as the first. After
    `most` columns a task gets a top only: an adapter and a head like those of the last column, on its frozen features.

    Shapes: x [n, ...] -> [n, columns], the scores of all tasks in order. Costs a forward pass through all columns, a
    backward pass through one; parameters grow with the square of the columns, see `table`.
    """

    def __init__(self, recipe: dict[str, Any], plan: Plan) -> None:
        super().__init__()
        self.recipe, self.plan = recipe, plan
        self.columns, self.tops = nn.ModuleList(), nn.ModuleList()
        self._open(torch.Generator().manual_seed(0))
        # Growth that a failure undoes has frozen what now learns on.
        self.register_load_state_dict_post_hook(_freeze)  # type: ignore[no-untyped-call]

    @property
    def grown(self) -> bool:
        """Whether it knows any class."""
        return self._known > 0

    def grow(self, columns: int, generator: torch.Generator) -> None:
        """Opens a column with a head for the scores above those known, up to `columns`; nothing where none is new."""
        known = self._known
        if columns < known:
            raise ValueError(f"the network has {known} columns of scores and can't shrink to {columns}")
        if columns == known:
            return
        if self.grown:
            with own_seed(int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))):
                self._open(generator)
            _freeze(self)
        self._top(-1).head.grow(columns - known, generator)

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Raw scores of every class known so far; given the number of a task, the scores of all others are 0."""
        levels = self._levels(x, task)
        scores = []
        for number in range(len(self.tops)):
            if task in (None, number):
                scores.append(self._run(self._top(number), number, levels[: self._place(number) + 1]))
            else:
                scores.append(x.new_zeros(len(x), self._top(number).head.columns))
        return torch.cat(scores, dim=1)

    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        """What the head of a task sees (default: the last): [n, features]."""
        number = len(self.tops) - 1 if task is None else task
        return self._top(number).features(self._levels(x, number))

    def at_rest(self, x: Tensor) -> Tensor:
        """Raw scores of all tasks but the last, by what is frozen alone: no backward pass goes through it."""
        last = len(self.tops) - 1
        levels = self._levels(x, last - 1) if last else []
        scores = (self._run(self._top(number), number, levels[: self._place(number) + 1]) for number in range(last))
        return torch.cat([x.new_zeros(len(x), 0), *scores], dim=1)

    def table(self) -> list[dict[str, int]]:
        """Parameters by task: of its column with the head, of its adapters (alpha, V and U), trained in all, frozen
        meanwhile, total.
        """
        rows, frozen = [], 0
        for number in range(len(self.tops)):
            own, lateral = (sum(sizes) for sizes in zip(*(part.sizes() for part in self.parts(number)), strict=True))
            row = {"task": number, "column": own, "adapters": lateral, "trained": own + lateral, "frozen": frozen}
            frozen += own + lateral
            rows.append({**row, "total": frozen})
        return rows

    def parts(self, task: int) -> list[Column | Top]:
        """What is of a task alone: its top, and its column where it has one."""
        return [self._top(task), *self._all()[task : task + 1]]

    def _open(self, generator: torch.Generator) -> None:
        """A new top, on a new column where there may be one more."""
        settings, columns = self.recipe["settings"], self._all()
        most, projection = settings["most"], settings["projection"]
        if most is None or len(columns) < most:
            widths = self.plan.scaled(settings["width"] if columns else 1.0)
            columns.append(Column(self.plan, widths, columns, projection, generator))
            self.columns.append(columns[-1])
        self.tops.append(Top(self.plan, columns[-1], columns[:-1], projection, generator))
        like = next(self.parameters())
        for part in self.parts(len(self.tops) - 1):
            part.to(like).train(self.training)

    def _levels(self, x: Tensor, task: int | None) -> list[Levels]:
        """Those of the columns that a task's scores depend on; of all where none is given."""
        needed = len(self.columns) if task is None else self._place(task) + 1
        found: list[Levels] = []
        for number, column in enumerate(self._all()[:needed]):
            found.append(self._run(column, number, x, found))
        return found

    def _run(self, part: Column | Top, task: int, *inputs: Any) -> Any:
        """A part of a task's; one that is frozen is at rest, whatever mode the network is in."""
        if task == len(self.tops) - 1:
            return part(*inputs)
        with torch.no_grad(), evaluating(part):
            return part(*inputs)

    def _place(self, task: int) -> int:
        """The column that a task's top stands on."""
        return min(task, len(self.columns) - 1)

    def _all(self) -> list[Column]:
        return cast("list[Column]", list(self.columns))

    def _top(self, task: int) -> Top:
        return cast("Top", self.tops[task])

    @property
    def _known(self) -> int:
        return sum(self._top(number).head.columns for number in range(len(self.tops)))


def columns(base: Mapping[str, Any], width: float = 1.0, most: int | None = None, projection: float = 1.0) -> Columns:
    """A network of columns, each like the mlp or convnet whose recipe is `base`: see `Columns`."""
    if base.get("name") not in BASES:
        raise ValueError(f"columns: base is the recipe of one of {', '.join(BASES)}, found {base.get('name')!r}")
    check(width, most, projection)
    network = BASES[base["name"]](**base.get("settings", {}))
    settings = {"base": network.recipe, "width": width, "most": most, "projection": projection}
    with own_seed(0):
        return Columns({"name": "columns", "settings": settings}, Plan.of(network))


def check(width: float, most: int | None, projection: float) -> None:
    """Raises ValueError for settings that make no columns."""
    if not width > 0:
        raise ValueError(f"width is {width}; later columns are `width` times as wide as the first, so above 0")
    if most is not None and most < 1:
        raise ValueError(f"most is {most}; a network has at least 1 column")
    if not 0 < projection <= 1:
        raise ValueError(f"projection is {projection}; adapters keep a share of the width, above 0 and at most 1")


def _freeze(network: Columns, _: Any = None) -> None:
    """No gradient for anything but what learns the last task."""
    alive = {id(p) for part in network.parts(len(network.tops) - 1) for p in part.parameters()}
    for p in network.parameters():
        p.requires_grad_(id(p) in alive)
        if not p.requires_grad:
            p.grad = None


def _reduced(width: int, projection: float) -> int:
    """How many features an adapter projects onto."""
    return max(1, round(projection * width))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
