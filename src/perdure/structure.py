"""The structure of a model that grows, noted and put back: which modules, parameters and plain attributes it had."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from perdure.models.modes import evaluating

Structure = list[tuple[nn.Module, dict[str, Any], dict[str, dict[Any, Any]]]]


def capture(model: nn.Module) -> Structure:
    """Each module's attributes as they are now. Values of tensors are not copied: they are the state's affair."""
    return [
        (module, dict(vars(module)), {k: dict(v) for k, v in vars(module).items() if isinstance(v, dict)})
        for module in model.modules()
    ]


def restore(structure: Structure) -> None:
    """Undoes growth since `capture`: new parameters and modules are gone, old ones are the same objects."""
    for module, attributes, contents in structure:
        vars(module).clear()
        vars(module).update(attributes)
        for name, content in contents.items():  # in place: torch's handles of hooks refer to these very dicts
            attributes[name].clear()
            attributes[name].update(content)


def multiply_adds(model: nn.Module, x: Any) -> int:
    """Multiply-adds of the forward pass of a batch, as torch counts them (matrix products and convolutions).

    In eval mode: one row would be too few for batch norm, and must not move its statistics or torch's generator.
    """
    with evaluating(model), FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops()) // 2
