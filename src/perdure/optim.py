"""Optimizers and schedules as settings: made by name, fused where possible, saved by parameter names."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from perdure.spelling import hint

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
DEFAULT = {"name": "adam", "lr": 1e-3}

Spec = str | Mapping[str, Any] | torch.optim.Optimizer | Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def recorded(spec: Spec) -> dict[str, Any] | None:
    """The specification as it is written into a state: None for a user's own optimizer."""
    if isinstance(spec, str):
        return {"name": spec}
    return dict(spec) if isinstance(spec, Mapping) else None


def make(spec: Spec, model: nn.Module, remade: bool = False) -> torch.optim.Optimizer:
    """An optimizer of the model's trainable parameters.

    `spec` is "adam" | "adamw" | "sgd", a dict {"name": "sgd", "lr": 0.1, "momentum": 0.9}, a function of the
    parameters, or an optimizer already made. Raises ValueError for unknown names and settings, and for an optimizer
    of another model; `remade` says that the model is not the user's, but what a method made of it.
    """
    if isinstance(spec, torch.optim.Optimizer):
        return _of_this_model(spec, model, remade)
    named = recorded(spec)
    trainable = [p for p in model.parameters() if p.requires_grad]
    if named is None:
        return _of_this_model(spec(trainable), model, remade)  # type: ignore[operator]
    kind, settings = _checked(named)
    # torch's fused SGD cannot begin the momentum of one parameter later than that of others, and ours may join late.
    fused = _fusible(trainable) and not settings.get("momentum")
    return kind(trainable, fused=True, **settings) if fused else kind(trainable, **settings)


def check(spec: Spec) -> None:
    """Raises ValueError for an unknown name or setting of a named optimizer."""
    named = recorded(spec)
    if named is not None:
        _checked(named)


def _checked(named: dict[str, Any]) -> tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]:
    settings = dict(named)
    name = settings.pop("name", None)
    if name not in OPTIMIZERS:
        raise ValueError(f"there is no optimizer {name!r}{hint(str(name), OPTIMIZERS)}")
    known = [p for p in inspect.signature(OPTIMIZERS[name]).parameters if p not in ("params", "fused", "foreach")]
    for key in settings:
        if key not in known:
            raise ValueError(f"optimizer {name!r} has no setting {key!r}{hint(key, known)}")
    settings.setdefault("lr", 1e-3)
    if "betas" in settings:
        settings["betas"] = tuple(settings["betas"])
    return OPTIMIZERS[name], settings


def _fusible(params: list[nn.Parameter]) -> bool:
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in params)


def _of_this_model(optimizer: torch.optim.Optimizer, model: nn.Module, remade: bool) -> torch.optim.Optimizer:
    own = {id(p) for p in model.parameters()}
    foreign = sum(id(p) not in own for group in optimizer.param_groups for p in group["params"])
    if foreign and remade:
        raise ValueError(
            "the method makes a network of its own out of the model, so that no optimizer of the model trains it: pass "
            'a name, "sgd", settings, {"name": "sgd", "lr": 0.1}, or a function of the parameters'
        )
    if foreign:
        raise ValueError(
            f"{foreign} of the optimizer's parameters are not the model's: make the optimizer from model.parameters(), "
            "after models.adapt"
        )
    return optimizer


def join(optimizer: torch.optim.Optimizer, model: nn.Module, before: set[int]) -> None:
    """Adds the model's new parameters (those whose id is not in `before`) to the group that trains the head.

    The moments of what exists are kept. A frozen head's new rows join the last group: they must be learnt.
    """
    new = [p for p in model.parameters() if id(p) not in before]
    if not new:
        return
    head = getattr(model, "head", None)
    old_head = {id(p) for p in head.parameters()} & before if isinstance(head, nn.Module) else set()
    groups = [g for g in optimizer.param_groups if any(id(p) in old_head for p in g["params"])]
    (groups or optimizer.param_groups)[-1]["params"].extend(new)


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Each group's learning rate: the one it began with, times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def rate(optimizer: torch.optim.Optimizer, p: nn.Parameter) -> float:
    """The learning rate of the parameter's group, now."""
    return next(float(g["lr"]) for g in optimizer.param_groups if any(q is p for q in g["params"]))


def state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """Groups and moments, by the parameters' names."""
    name_of = {id(p): name for name, p in model.named_parameters()}
    groups = [
        {**{k: v for k, v in g.items() if k != "params"}, "params": [name_of[id(p)] for p in g["params"]]}
        for g in optimizer.param_groups
    ]
    moments = {name_of[id(p)]: dict(moment) for p, moment in optimizer.state.items()}
    return {"groups": groups, "moments": moments}


def load_state(optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Any]) -> None:
    """Puts back what `state` gave: groups in their order, moments on their parameters' devices."""
    params = dict(model.named_parameters())
    if len(saved["groups"]) != len(optimizer.param_groups):
        raise ValueError(
            f"the state has {len(saved['groups'])} parameter groups, the optimizer {len(optimizer.param_groups)}"
        )
    for group, old in zip(optimizer.param_groups, saved["groups"], strict=True):
        group.pop("initial_lr", None)  # noted at the first step, which the state may not have taken yet
        group.update({k: v for k, v in old.items() if k != "params"})
        group["params"] = [params[name] for name in old["params"]]
    optimizer.state.clear()
    for name, moment in saved["moments"].items():
        optimizer.state[params[name]] = {k: _placed(k, v, params[name], optimizer) for k, v in moment.items()}


def _placed(key: str, value: Any, p: nn.Parameter, optimizer: torch.optim.Optimizer) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    # Adam counts its steps in a tensor that lies on the CPU unless it is fused or capturable.
    counts = key == "step" and not (optimizer.defaults.get("fused") or optimizer.defaults.get("capturable"))
    return value.clone().cpu() if counts else value.clone().to(p.device)


@dataclass(frozen=True)
class Schedule:
    """The factor on the learning rate, a pure function of the step, so that it has no state.

    "constant"; "linear" and "cosine" fall from 1 to `floor` over a task's steps; "exponential" multiplies by `decay`
    each step. The first `warmup` steps rise linearly. restart=True counts steps from the beginning of each task,
    False from the first of all (not for "linear" and "cosine", which would need to know the end of the stream).
    """

    name: str = "constant"
    warmup: int = 0
    floor: float = 0.0
    decay: float = 1.0
    restart: bool = True

    NAMES = ("constant", "linear", "cosine", "exponential")

    def __post_init__(self) -> None:
        if self.name not in self.NAMES:
            raise ValueError(f"there is no schedule {self.name!r}{hint(self.name, self.NAMES)}")
        if not self.restart and self.name in ("linear", "cosine"):
            raise ValueError(f"schedule {self.name!r} ends with the task: it can't go on over tasks (restart=False)")

    @staticmethod
    def of(spec: str | Mapping[str, Any] | Schedule | None) -> Schedule:
        """From a name, a dict of settings, or None for "constant"."""
        if isinstance(spec, Schedule):
            return spec
        settings = {"name": spec or "constant"} if spec is None or isinstance(spec, str) else dict(spec)
        known = list(inspect.signature(Schedule).parameters)
        for key in settings:
            if key not in known:
                raise ValueError(f"a schedule has no setting {key!r}{hint(key, known)}")
        return Schedule(**settings)

    def settings(self) -> dict[str, Any]:
        """From which `of` makes it again."""
        return asdict(self)

    @property
    def moves(self) -> bool:
        """Whether the factor is ever another than 1."""
        return self.name != "constant" or self.warmup > 0

    def at(self, step: int, begun_at: int, steps: int) -> float:
        """After `step` steps over all tasks, in a task that began after `begun_at` and takes `steps`."""
        return self.factor(step - begun_at if self.restart else step, steps)

    def factor(self, step: int, steps: int) -> float:
        """For the `step`-th step (from 0) of `steps` in the task."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.name == "exponential":
            return max(self.decay ** (step - self.warmup), self.floor)
        progress = (step - self.warmup) / max(1, steps - self.warmup)
        fall = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}[self.name]
        return fall if self.name == "constant" else self.floor + (1 - self.floor) * max(0.0, fall)
