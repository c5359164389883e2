"""The protocol: nine hooks whose defaults are plain gradient descent, what a host offers, how methods compose."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from perdure.clock import Clock
from perdure.data import Batch, Columns, Rows, Task, chunks
from perdure.fields import load_state_of as load_state_of
from perdure.fields import memory as memory
from perdure.fields import memory_fields as memory_fields
from perdure.fields import state_of as state_of
from perdure.objective import Objective

EXCLUSIVE = ("fit", "task_loss", "predict")
IN_TRAINING = ("replay", "penalty", "project", "after_step", "remodel")  # what is in vain where nothing is trained


class Host(Protocol):
    """Whoever runs the hooks: the Learner, or `methods.attach` in a loop that is not ours."""

    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    clock: Clock
    device: torch.device
    seed: int

    def params(self) -> dict[str, nn.Parameter]:
        """The parameters that the optimizer trains, by their name in the model."""

    def lr(self, p: nn.Parameter) -> float:
        """The learning rate of the parameter's group, now."""

    def generator(self, name: str, device: str | None = None) -> torch.Generator:
        """A random generator of the host's, saved with its state; on the host's device unless told otherwise."""

    def read(self, rows: Rows, index: Tensor) -> Batch:
        """Rows of the open task, on the device, their inputs still raw."""

    def ready(self, batch: Batch) -> Batch:
        """The batch with inputs converted for the model (not augmented), and with columns and allowed columns."""

    @property
    def number(self) -> int:
        """The open task's, in the order in which tasks were first opened."""

    @property
    def columns(self) -> int | None:
        """How many columns of scores the model knows; None where that is its owner's affair."""

    @property
    def meanings(self) -> list[Any]:
        """What each column stands for, in words that are the same for every host that knows the labels."""

    def labelled(self, batch: Batch, column: Tensor) -> Batch:
        """The batch with the labels that columns of the scores stand for, [n]: of the rows' own tasks where tasks are
        revealed, else of the first task that has such a column. The inverse of `ready`.
        """

    def column_groups(self, columns: int) -> list[Tensor]:
        """The first `columns` columns as sets that answer together: all in one, or one set a task with separate
        heads.
        """

    def balance_key(self, batch: Batch) -> Tensor:
        """A whole number a row that is equal for rows of one label, [n]."""

    def spend(self, forward: int, backward: int = 0, other: int = 0) -> None:
        """Notes rows that went through the model outside a step, and multiply-adds of other networks, for the count."""

    def judge_anew(self) -> None:
        """Early stopping begins here: the network is made another, so grades and best weights so far are void."""


class Trainer(Host, Protocol):
    """A host that owns the loop: our Learner. Methods that override `fit` or `predict` need one."""

    @property
    def width(self) -> int:
        """How many columns the model's scores have, those opened ahead included."""

    def epochs(self) -> Iterator[int]:
        """The passes over the open task's rows that are still to be made."""

    def epoch(self, rows: Rows, past: dict[str, Columns] | None = None) -> None:
        """The rest of this pass over `rows`, and over `past` (columns x, y, task) mixed in, where given."""


def sampled(host: Host, rows: Rows, count: int, name: str, chunk: int = 512) -> Iterator[Batch]:
    """`count` random rows of the open task (all of them where there are fewer), ready for the model, in chunks."""
    order = torch.randperm(len(rows), generator=host.generator(name, "cpu"))
    for index in chunks(order[:count], chunk):
        yield host.ready(host.read(rows, index))


def mark(method: Method) -> None:
    """Says to memories in files that a save point is about to be taken."""
    for part in _parts(method):
        for f in memory_fields(part):
            told = getattr(getattr(part, f.name), "mark", None)
            if callable(told):
                told()


@dataclass(eq=False)
class Method:
    """One way not to forget. This base class forgets: every hook's default is plain gradient descent.

    A subclass is a dataclass: ordinary fields are settings (they make the constructor, the configuration and the
    repr), fields made with `memory(...)` are what it learns (they make the checkpoint).
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    cost: ClassVar[str] = ""
    scenarios: ClassVar[tuple[str, ...]] = ("task", "domain", "class")
    objectives: ClassVar[tuple[str, ...]] = (
        "classification", "multi-label", "regression", "several", "rating", "ranking",
    )  # fmt: skip
    heads: ClassVar[tuple[str, ...]] = ("separate", "shared")  # in scenario "task"
    upper_bound: ClassVar[bool] = False
    witness: ClassVar[bool] = False  # traces the training: first in `project`, last in `after_step`
    takes_steps = True  # learns by steps of the optimizer; a part that acts in them is refused beside one that does not
    needs_stream: ClassVar[bool] = False  # keeps or models the stream's rows, as they come in batches
    hides_stream: ClassVar[bool] = (
        False  # trains on stored rows alone: a part that needs the stream is refused beside it
    )
    keeps_rows: ClassVar[bool] = False  # stores rows of the past, which not everybody may
    weighs: ClassVar[bool] = False  # gives rows weights, which a loop that is not ours has to multiply by
    position = 0  # among the parts of its name in a composition: for a seed of its own
    owned = False  # set on the instance once a host has it: memories must not be shared

    # Shared hooks: in a composition every part speaks, in order.

    def begin(self, host: Host, task: Task | None) -> None:
        """Before the model grows for the task: keep a teacher. In somebody else's loop there is no task."""

    def replay(self, host: Host, batch: Batch) -> Batch:
        """Adds rows of the past to a batch, whose inputs are still raw."""
        return batch

    def penalty(self, host: Host, batch: Batch, outputs: Tensor) -> Tensor | float:
        """Added to the loss. Must be a mean over all rows of the batch, so that micro-batches add up."""
        return 0.0

    def project(self, host: Host, batch: Batch) -> None:
        """After backward, before clipping and the optimizer: edit `p.grad` in place."""

    def after_step(self, host: Host, batch: Batch, outputs: Tensor) -> None:
        """Store rows, restore frozen weights, trace the path."""

    def end(self, host: Host, task: Task) -> None:
        """Consolidate. `task.train` may be unlabelled where the method needs no labels."""

    # Exclusive hooks: one owner in a composition.

    def fit(self, learner: Trainer, task: Task) -> None:
        """Learns the open task, from wherever the clock stands."""
        for _ in learner.epochs():
            learner.epoch(task.train)

    def task_loss(self, host: Host, batch: Batch, outputs: Tensor) -> Tensor:
        """The loss that the penalties are added to."""
        return host.objective.loss(outputs, batch)

    def predict(self, learner: Trainer, x: Columns, task: int | None) -> Tensor:
        """Raw scores [n, columns] of inputs that are ready for the model; `task` is known in scenario "task" only."""
        scores: Tensor = learner.model(x)
        return scores

    # Asked of the owner of `predict`, too.

    def features(self, learner: Trainer, x: Columns, task: int | None) -> Tensor:
        """What the head sees of inputs that are ready for the model, [n, features]; raises AttributeError without."""
        found: Tensor = learner.model.features(x)  # type: ignore[operator]
        return found

    def remodel(self, model: nn.Module) -> nn.Module:
        """The network that the Learner shall learn with; another one where the method brings its own architecture."""
        return model

    # What follows is written once, for all methods.

    def __add__(self, other: Method) -> Compose:
        return Compose([*_parts(self), *_parts(other)])

    @classmethod
    def fields(cls) -> list[dataclasses.Field[Any]]:
        """The settings: the dataclass fields that are not memory."""
        return [f for f in dataclasses.fields(cls) if not f.metadata.get("memory")]

    def settings(self) -> dict[str, Any]:
        """From which `methods.build` makes an equal method with nothing learnt."""
        return {"name": self.name, **{f.name: getattr(self, f.name) for f in self.fields()}}

    def state(self) -> dict[str, Any]:
        """What was learnt, as a tree of tensors and plain values."""
        return state_of(self)

    def load_state(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        load_state_of(self, state)


def overrides(method: Method, hook: str) -> bool:
    """Whether a method, or a part of it, brings a hook of its own."""
    return any(getattr(type(part), hook) is not getattr(Method, hook) for part in _parts(method))


def owner(method: Method, hook: str) -> Method:
    """The part of a method that owns an exclusive hook."""
    return next((part for part in _parts(method) if overrides(part, hook)), _parts(method)[0])


def _parts(method: Method) -> list[Method]:
    return method.parts if isinstance(method, Compose) else [method]


@dataclass(eq=False)
class Compose(Method):
    """Several methods at once: `Replay(500) + LwF()`. Shared hooks chain or sum; an exclusive hook has one owner.

    Parts speak in order, but for those that trace the training (`witness`): wherever they stand, they are the first in
    `project`, before any part edits the gradient, and the last in `after_step`, when every part has moved its weights.

    Raises ValueError, naming both, when two parts own the same exclusive hook, or one is in vain beside the other.
    """

    parts: list[Method]

    def __post_init__(self) -> None:
        for number, part in enumerate(self.parts):
            part.position = sum(other.name == part.name for other in self.parts[:number])
        for hook in EXCLUSIVE:
            owners = [part.name for part in self.parts if overrides(part, hook)]
            if len(owners) > 1:
                raise ValueError(f"{owners[0]} and {owners[1]} both own `{hook}`: use one of them")
        for still in (part for part in self.parts if not part.takes_steps):
            for part in self.parts:
                if part is not still and any(overrides(part, hook) for hook in IN_TRAINING):
                    raise ValueError(f"{still.name} trains nothing, so {part.name} could do nothing: use one of them")
        for hides in (part for part in self.parts if part.hides_stream):
            for part in self.parts:
                if part.needs_stream:
                    raise ValueError(
                        f"{hides.name} trains on its own rows alone, so {part.name} would see none: use one of them"
                    )

    @property
    def name(self) -> str:  # type: ignore[override]
        """The parts' names, joined."""
        return " + ".join(part.name for part in self.parts)

    @property
    def title(self) -> str:  # type: ignore[override]
        """The parts' titles, joined."""
        return " + ".join(part.title for part in self.parts)

    @property
    def scenarios(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those that every part serves."""
        return tuple(s for s in Method.scenarios if all(s in part.scenarios for part in self.parts))

    @property
    def objectives(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those that every part serves."""
        return tuple(o for o in Method.objectives if all(o in part.objectives for part in self.parts))

    @property
    def heads(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those that every part serves."""
        return tuple(h for h in Method.heads if all(h in part.heads for part in self.parts))

    @property
    def upper_bound(self) -> bool:  # type: ignore[override]
        """Whether any part sees what a continual learner must not."""
        return any(part.upper_bound for part in self.parts)

    @property
    def weighs(self) -> bool:  # type: ignore[override]
        """Whether any part does."""
        return any(part.weighs for part in self.parts)

    @property
    def owned(self) -> bool:
        """Whether any part is."""
        return any(part.owned for part in self.parts)

    @owned.setter
    def owned(self, value: bool) -> None:
        for part in self.parts:
            part.owned = value

    def begin(self, host: Host, task: Task | None) -> None:
        """Every part, in order."""
        for part in self.parts:
            part.begin(host, task)

    def replay(self, host: Host, batch: Batch) -> Batch:
        """Every part adds to what the parts before it made."""
        for part in self.parts:
            batch = part.replay(host, batch)
        return batch

    def penalty(self, host: Host, batch: Batch, outputs: Tensor) -> Tensor | float:
        """The sum."""
        return sum((part.penalty(host, batch, outputs) for part in self.parts), 0.0)

    def project(self, host: Host, batch: Batch) -> None:
        """Every part: witnesses first, then in order."""
        for part in sorted(self.parts, key=lambda part: not part.witness):
            part.project(host, batch)

    def after_step(self, host: Host, batch: Batch, outputs: Tensor) -> None:
        """Every part: in order, then witnesses."""
        for part in sorted(self.parts, key=lambda part: part.witness):
            part.after_step(host, batch, outputs)

    def end(self, host: Host, task: Task) -> None:
        """Every part, in order."""
        for part in self.parts:
            part.end(host, task)

    def fit(self, learner: Trainer, task: Task) -> None:
        """The owner's."""
        owner(self, "fit").fit(learner, task)

    def task_loss(self, host: Host, batch: Batch, outputs: Tensor) -> Tensor:
        """The owner's."""
        return owner(self, "task_loss").task_loss(host, batch, outputs)

    def predict(self, learner: Trainer, x: Columns, task: int | None) -> Tensor:
        """The owner's."""
        return owner(self, "predict").predict(learner, x, task)

    def features(self, learner: Trainer, x: Columns, task: int | None) -> Tensor:
        """Those of the owner of `predict`."""
        return owner(self, "predict").features(learner, x, task)

    def remodel(self, model: nn.Module) -> nn.Module:
        """Every part, in order."""
        for part in self.parts:
            model = part.remodel(model)
        return model

    def settings(self) -> dict[str, Any]:
        """The parts' settings."""
        return {"parts": [part.settings() for part in self.parts]}

    def state(self) -> dict[str, Any]:
        """The parts' states, by position."""
        return {str(i): part.state() for i, part in enumerate(self.parts)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave."""
        for i, part in enumerate(self.parts):
            part.load_state(state[str(i)])
