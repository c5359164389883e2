"""PathNet's network: layers of modules, a path that says which of them run, and a head for each task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from perdure.models.blocks import conv_block, linear_block
from perdure.models.convnet import convnet
from perdure.models.head import Head, Network, own_seed
from perdure.models.mlp import mlp
from perdure.models.modes import evaluating

BASES: dict[str, Callable[..., Network]] = {"mlp": mlp, "convnet": convnet}


class Modular(nn.Module):
    """L layers of `modules` modules each, of which a path runs at most `active` a layer (Fernando et al. 2017).

        h_0 = x,  h_l = sum over the modules m of layer l that are on the path of relu(W_lm h_(l-1) + b_lm)

    and the scores of task t are head_t(h_L). Made from the recipe of an mlp or convnet: a layer for each of its hidden
    ones; linear modules, or convolutions 3x3; batch norm, where the base has it, in each module; dropout and pooling
    after the sum. A module is as wide as the base's layer divided by `modules`, so that all modules of the first layer
    are of the base's size, or `width`. A path is int64 [L, active], the numbers of modules; one that stands in a layer
    twice runs once. `grow` opens a head for the columns that are new: one a task.

    `paths` [tasks, L, active] has those of the tasks that are over (else -1). Their modules and heads are frozen: no
    gradient, so no step of any optimizer, and batch norm keeps the statistics that it has. Shapes: x [n, ...] ->
    [n, columns]. Raises ValueError for another base, one without hidden layers, and numbers that make no network.
    """

    path: Tensor
    paths: Tensor

    def __init__(self, base: Mapping[str, Any], modules: int = 10, active: int = 3, width: int | None = None) -> None:
        super().__init__()
        check(modules, active, width)
        if base.get("name") not in BASES:
            raise ValueError(f"modular: base is the recipe of one of {', '.join(BASES)}, found {base.get('name')!r}")
        network = BASES[base["name"]](**base.get("settings", {}))
        found, maps = network.recipe["settings"], base["name"] == "convnet"
        sizes = list(found["widths"] if maps else found["hidden"])
        if not sizes:
            raise ValueError("modular: the base has no hidden layer, so that there is nothing to make modules of")
        self.settings: dict[str, Any] = {
            "base": network.recipe, "modules": modules, "active": active, "width": width,
        }  # fmt: skip
        self.recipe = {"name": "modular", "settings": self.settings}
        widths = [found["shape"][0] if maps else found["inputs"], *(width or max(1, s // modules) for s in sizes)]
        with own_seed(0):
            self.layers = nn.ModuleList(
                nn.ModuleList(_module(maps, *pair, norm=found["norm"]) for _ in range(modules))
                for pair in pairwise(widths)
            )
        self.first = nn.Identity() if maps else nn.Flatten()
        self.between = nn.MaxPool2d(2) if maps else nn.Dropout(found["dropout"])
        self.seen = widths[-1] * (network.head.features // sizes[-1])
        self.head = nn.ModuleList()
        self.register_buffer("path", torch.arange(active).repeat(len(sizes), 1))
        self.register_buffer("paths", self.path.new_zeros(0, *self.path.shape))
        self.register_load_state_dict_post_hook(_refresh)  # type: ignore[no-untyped-call]
        self.refresh()

    # ---- what every built-in model offers ----

    @property
    def grown(self) -> bool:
        """Whether it knows any class."""
        return len(self.head) > 0

    @property
    def columns(self) -> int:
        """Of all heads together."""
        return sum(head.columns for head in self.head if isinstance(head, Head))

    def grow(self, columns: int, generator: torch.Generator) -> None:
        """Opens a head for the columns that are new, drawn from `generator`."""
        if columns > self.columns:
            head = Head(self.seen)
            head.grow(columns - self.columns, generator)
            self.head.append(head.to(next(self.parameters())))
            self.paths = torch.cat([self.paths, torch.full_like(self.path, -1)[None]])
            self.refresh()

    def features(self, x: Tensor, task: int | None = None) -> Tensor:
        """What heads see, [n, ...] -> [n, features]: along the path of a task that is over, else the running one."""
        x = self.first(x)
        for place, row in enumerate(self._path if task is None or task not in self._own else self._own[task]):
            first, *others = (self._module(place, m, x) for m in sorted(set(row)))
            for other in others:
                first = first + other
            x = self.between(first)
        return x.flatten(1)

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Raw finite scores of all heads, [n, ...] -> [n, columns], of what they see along one path."""
        seen = self.features(x, task)
        return torch.cat([seen[:, :0], *(head(seen) for head in self.head)], 1)

    # ---- paths ----

    def run(self, path: Tensor) -> None:
        """From now on along this path."""
        self.path.copy_(path)
        self._path: list[list[int]] = path.tolist()

    def freeze(self, task: int) -> None:
        """A task is over: the running path is its own, and frozen with its head."""
        self.paths[task] = self.path
        self.refresh()

    def renew(self, seed: int) -> None:
        """Draws every module that is not frozen anew, in place, from `seed`; runs along the first path again, on which
        no module stands twice.
        """
        fresh = Modular(**self.settings)
        self.run(fresh.path)
        with own_seed(seed):
            for part in fresh.layers.modules():
                if isinstance(part, (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d)):
                    part.reset_parameters()
        for (place, mine), (_, theirs) in zip(self._modules_by_place(), fresh._modules_by_place(), strict=True):
            if place not in self._frozen:
                mine.load_state_dict(theirs.state_dict())

    def refresh(self) -> None:
        """Notes the paths where to read them waits for no device, and freezes what tasks that are over run.

        After loading, too: what is frozen is no part of a state dict, and follows from the paths.
        """
        self._path = self.path.tolist()
        self._own = {task: path for task, path in enumerate(self.paths.tolist()) if path[0][0] >= 0}
        self._frozen = {(place, m) for path in self._own.values() for place, row in enumerate(path) for m in row}
        for place, module in self._modules_by_place():
            module.requires_grad_(place not in self._frozen)
        for task, head in enumerate(self.head):
            head.requires_grad_(task not in self._own)

    def _modules_by_place(self) -> Iterator[tuple[tuple[int, int], nn.Module]]:
        for place, layer in enumerate(self.layers):
            for m, module in enumerate(layer.children()):
                yield (place, m), module

    def _module(self, place: int, m: int, x: Tensor) -> Tensor:
        module = self.layers.get_submodule(f"{place}.{m}")
        if self.training and (place, m) in self._frozen:
            with evaluating(module):
                rested: Tensor = module(x)
                return rested
        found: Tensor = module(x)
        return found


def check(modules: int, active: int, width: int | None) -> None:
    """Raises ValueError for numbers that make no layer of modules."""
    if not 1 <= active <= modules:
        raise ValueError(f"active is {active}; of {modules} modules a layer a path runs at least 1, at most all")
    if width is not None and width < 1:
        raise ValueError(f"width is {width}; a module has at least 1 unit")


def _module(maps: bool, inputs: int, outputs: int, *, norm: bool) -> nn.Sequential:
    """A block without what comes after the sum."""
    block = conv_block(inputs, outputs, norm=norm)[:-1] if maps else linear_block(inputs, outputs, norm=norm)
    return nn.Sequential(*block)


def _refresh(network: nn.Module, _: Any) -> None:
    assert isinstance(network, Modular)
    network.refresh()
