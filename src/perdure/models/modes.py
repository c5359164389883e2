"""A model's training flags, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
