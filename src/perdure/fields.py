"""Settings and memory of a dataclass: which fields are learnt, and their state."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


def memory(factory: Callable[[], Any]) -> Any:
    """A field that is learnt, not set: kept in checkpoints, absent from the constructor and from the settings.

    It may hold tensors, numbers, strings, lists and dicts of them, or an object with `state()` and `load_state(state)`.
    """
    return dataclasses.field(default_factory=factory, init=False, repr=False, compare=False, metadata={"memory": True})


def state_of(holder: Any) -> dict[str, Any]:
    """The memory fields of a method or callback, as a tree of tensors and plain values."""
    values = {f.name: getattr(holder, f.name) for f in memory_fields(holder)}
    return {name: value.state() if hasattr(value, "load_state") else value for name, value in values.items()}


def load_state_of(holder: Any, state: dict[str, Any]) -> None:
    """Puts back what `state_of` gave."""
    for f in memory_fields(holder):
        value = getattr(holder, f.name)
        if hasattr(value, "load_state"):
            value.load_state(state[f.name])
        else:
            setattr(holder, f.name, state[f.name])


def memory_fields(holder: Any) -> list[dataclasses.Field[Any]]:
    """The fields made with `memory`; none for what is no dataclass."""
    if not dataclasses.is_dataclass(holder):
        return []
    return [f for f in dataclasses.fields(holder) if f.metadata.get("memory")]
