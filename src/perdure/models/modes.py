"""A model's training flags for a while, and a look at it that leaves no trace."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.func import functional_call

from perdure.batch import Columns


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, and each back in its own mode afterwards.

    Sets the flags rather than calling `model.eval()`, where a layer may do more (some LoRA layers merge weights).
    """
    with _flagged(model, training=False):
        yield


@contextmanager
def learning(model: nn.Module) -> Iterator[None]:
    """Every module in train mode, and each back in its own mode afterwards."""
    with _flagged(model, training=True):
        yield


def aside(model: nn.Module, x: Columns) -> Tensor:
    """`model(x)` in the modes that the modules are in, with nothing written down: buffers stay as they are.

    In train mode batch norm normalises by the batch, but its running statistics and counters do not move.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    scores: Tensor = functional_call(model, buffers, (x,))
    return scores


@contextmanager
def _flagged(model: nn.Module, training: bool) -> Iterator[None]:
    changed = [module for module in model.modules() if module.training != training]
    for module in changed:
        module.training = training
    try:
        yield
    finally:
        for module in changed:
            module.training = not training
