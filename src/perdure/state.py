"""A learner's whole state as one tree: collected, put back, and given back after a failure."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from perdure import methods, models, optim, structure
from perdure.checkpoint import clone, placed
from perdure.clock import Clock
from perdure.method import Compose, Method, load_state_of, mark, memory_fields, state_of
from perdure.seeds import seeded

if TYPE_CHECKING:
    from perdure.learner import Learner


def collect(learner: Learner) -> dict[str, Any]:
    """Everything from which learning goes on as if it had never stopped; its tensors are the live ones."""
    model = learner.model
    drawing = learner.learning and learner.clock.begun  # between tasks nothing: each begins with a seed of its own
    return {
        "settings": asdict(learner.settings),
        "model": getattr(model, "recipe", None),
        "method": method_settings(learner.method),
        "clock": asdict(learner.clock),
        "labels": learner.labels.state(),
        "inputs": learner.inputs,
        "weights": dict(model.state_dict()),
        "optimizer": optim.state(learner.optimizer, model),
        "memory": learner.method.state(),
        "account": state_of(learner.account),
        "stopper": state_of(learner.stopper),
        "means": state_of(learner.means),
        "callbacks": [[type(c).__name__, c.state()] for c in learner.callbacks if memory_fields(c)],
        "generators": learner.chance(),
        "randomness": randomness(learner.device) if drawing else learner.paused_randomness,
        "cost": asdict(learner.cost),
    }


def apply(learner: Learner, tree: dict[str, Any]) -> None:
    """Puts a tree back into a learner whose model has its structure. The tree is not touched: it may be used again."""
    tree = placed(clone(tree), learner.device)
    learner.clock = Clock(**tree["clock"])
    learner.inputs = tree["inputs"]
    try:
        learner.model.load_state_dict(tree["weights"])
    except RuntimeError as error:
        raise ValueError(f"this network is not the one that was learnt: {error}") from error
    optim.load_state(learner.optimizer, learner.model, tree["optimizer"])
    learner.method.load_state(tree["memory"])
    load_state_of(learner.account, tree["account"])
    load_state_of(learner.stopper, tree["stopper"])
    load_state_of(learner.means, tree["means"])
    waiting = list(tree["callbacks"])
    for callback in (c for c in learner.callbacks if memory_fields(c)):
        found = next((item for item in waiting if item[0] == type(callback).__name__), None)
        if found is not None:
            waiting.remove(found)
            callback.load_state(found[1])
    learner.set_chance(tree["generators"])
    learner.paused_randomness = tree["randomness"]
    vars(learner.cost).update(tree["cost"])


@dataclass(frozen=True)
class Rebuilt:
    """What a learner is made of again."""

    model: nn.Module
    method: Method
    optimizer: optim.Spec
    settings: dict[str, Any]


def rebuilt(
    tree: dict[str, Any], path: str, model: nn.Module | None, method: Method | None, optimizer: optim.Spec | None
) -> Rebuilt:
    """Model, method, optimizer and settings from a state, or as passed. Raises ValueError for what is missing."""
    settings = dict(tree["settings"])
    named = settings.pop("optimizer")
    missing = [
        f"{name}= ({why})"
        for name, given, recorded, why in (
            ("model", model, tree["model"], "your network, as it was before its first task"),
            ("method", method, tree["method"], "your method, with its settings"),
            ("optimizer", optimizer, named, "your function that makes the optimizer"),
        )
        if given is None and recorded is None
    ]
    if missing:
        raise ValueError(f"{path} was learnt with parts that are not built in; pass {', '.join(missing)}")
    return Rebuilt(
        models.build(tree["model"]) if model is None else model,
        methods.build(tree["method"]) if method is None else method,
        named if optimizer is None else optimizer,
        settings,
    )


class SavePoint:
    """A copy of the state and of the model's structure, to go back to."""

    def __init__(self, learner: Learner) -> None:
        mark(learner.method)
        self.tree = clone(collect(learner))
        self.structure = structure.capture(learner.model)
        self.taken = time.monotonic()

    def give_back(self, learner: Learner) -> None:
        """The learner as it was: growth undone, tensors restored in place."""
        structure.restore(self.structure)
        learner.relabel(self.tree["labels"])
        apply(learner, self.tree)


def method_settings(method: Method) -> dict[str, Any] | None:
    """From which `methods.build` makes the method again; None when a part is not built in."""
    parts = method.parts if isinstance(method, Compose) else [method]
    known = all(methods.METHODS.get(part.name) is type(part) for part in parts)
    own = any(isinstance(value, nn.Module) for part in parts for value in part.settings().values())
    return method.settings() if known and not own else None


def randomness(device: torch.device) -> dict[str, Tensor]:
    """torch's global generators: dropout and user code draw from them."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_randomness(device: torch.device, states: dict[str, Tensor]) -> None:
    """Puts torch's global generators where they were."""
    torch.set_rng_state(states["cpu"].cpu())
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)


@contextlib.contextmanager
def own_randomness(learner: Learner) -> Iterator[None]:
    """torch's global generators are the learner's inside, and the caller's again outside."""
    callers = randomness(learner.device)
    if learner.paused_randomness is not None:
        set_randomness(learner.device, learner.paused_randomness)
    else:
        seed = seeded(learner.seed, "torch", learner.clock.task)
        torch.default_generator.manual_seed(seed)
        if learner.device.type == "cuda":
            with torch.cuda.device(learner.device):
                torch.cuda.manual_seed(seed)
    learner.learning, learner.paused_randomness = True, None
    try:
        yield
    finally:
        learner.learning = False
        set_randomness(learner.device, callers)
