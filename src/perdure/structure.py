"""The structure of a model that grows, noted and put back; and the work that it takes, in multiply-adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
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


class Work(FlopCounterMode):
    """Counts the multiply-adds inside: matrix products and convolutions as torch counts them, and solving.

    A Cholesky decomposition [k, k] is k^3 / 3, to solve by it k^2 a column.
    """

    def __init__(self) -> None:
        aten = torch.ops.aten
        solving = {aten.linalg_cholesky_ex: _decomposition, aten.cholesky_solve: _solution}
        super().__init__(display=False, custom_mapping=solving)

    @property
    def multiply_adds(self) -> int:
        """So far."""
        return int(self.get_total_flops()) // 2


def _decomposition(matrix: torch.Size, *_: Any, **__: Any) -> int:
    return int(2 * matrix[-1] ** 3 // 3)


def _solution(right: torch.Size, factor: torch.Size, *_: Any, **__: Any) -> int:
    return int(2 * factor[-1] ** 2 * right[-1])


def multiply_adds(model: nn.Module, x: Any) -> int:
    """Multiply-adds of the forward pass of a batch.

    In eval mode: one row would be too few for batch norm, and must not move its statistics or torch's generator.
    """
    return _work_of(model, model, x)


def differentiated(model: nn.Module, x: Any) -> int:
    """Those of them that a backward pass goes back through: all, less what the model runs in `at_rest(x)`."""
    rest = getattr(model, "at_rest", None)
    return multiply_adds(model, x) - (_work_of(model, rest, x) if callable(rest) else 0)


def _work_of(model: nn.Module, part: Callable[[Any], Any], x: Any) -> int:
    work = Work()
    with evaluating(model), work:
        part(x)
    return work.multiply_adds
