"""The same hooks in somebody else's loop: `memory = methods.attach(method, model, optimizer)`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from perdure import checkpoint, optim
from perdure.clock import Clock
from perdure.data import Batch, Columns, Rows, Task, column_map
from perdure.memory import Reservoir
from perdure.method import EXCLUSIVE, Method, mark, overrides
from perdure.objective import Objective
from perdure.seeds import seeded
from perdure.several import Several, goal


def attach(
    method: Method,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    objective: str | Several = "classification",
    trained: bool = False,
    seed: int = 0,
) -> Attached:
    """Brings a method into a loop of your own.

    Labels are the numbers of the model's columns (classification), or floats [n, columns]. `trained=True` says that
    the model knows something worth keeping before the first `begin`. Raises ValueError for a method that must own the
    loop, and for an optimizer of another model.
    """
    return Attached(method, model, optimizer, objective, trained, seed)


class HostBase:
    """What every host has: a model, a method, an optimizer, a clock, and chance of its own."""

    optimizer: torch.optim.Optimizer

    def __init__(self, model: nn.Module, method: Method, objective: Objective, device: torch.device, seed: int) -> None:
        self.model, self.method, self.objective, self.device, self.seed = model, method, objective, device, seed
        self.clock = Clock()
        self.generators: dict[str, torch.Generator] = {}

    def params(self) -> dict[str, nn.Parameter]:
        """The parameters that the optimizer trains, by name."""
        trained = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        return {name: p for name, p in self.model.named_parameters() if id(p) in trained and p.requires_grad}

    def lr(self, p: nn.Parameter) -> float:
        """The learning rate of the parameter's group, now."""
        return optim.rate(self.optimizer, p)

    def generator(self, name: str, device: str | None = None) -> torch.Generator:
        """A random generator of the host's own, in its state."""
        key = f"{name}@{device or self.device.type}"
        if key not in self.generators:
            self.generators[key] = torch.Generator(device or self.device)
            self.generators[key].manual_seed(seeded(self.seed, name))
        return self.generators[key]

    def chance(self) -> dict[str, Tensor]:
        """Where its generators stand."""
        return {key: generator.get_state() for key, generator in self.generators.items()}

    def set_chance(self, states: dict[str, Tensor]) -> None:
        """Puts its generators back; those of a device that it is not on are left out."""
        self.generators.clear()
        for key, saved in states.items():
            name, device = key.rsplit("@", 1)
            if device in ("cpu", self.device.type):
                self.generator(name, "cpu" if device == "cpu" else None).set_state(saved.cpu())


class Outside(HostBase):
    """What a host offers in a loop that is not ours: every data set is a task, and a label is its column.

    Raises ValueError for a method that must own the loop, or that another learner or loop has.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        objective: str | Several,
        device: torch.device,
        trained: bool,
        seed: int,
    ) -> None:
        for hook in EXCLUSIVE:
            if overrides(method, hook):
                raise ValueError(f"{method.name} owns `{hook}`, so it needs our loop: use perdure.Learner")
        learnt = goal(objective)
        if method.owned:
            raise ValueError(f"this {method.name} belongs to another learner or loop already: make a new one")
        if learnt.name not in method.objectives:
            raise ValueError(f"{method.name} works with {', '.join(method.objectives)}, not {learnt.name!r}")
        super().__init__(model, method, learnt, device, seed)
        self._columns = None if trained else 0
        method.owned = True

    def learnt(self, train: Rows) -> None:
        """The data set is learnt: the method consolidates on some of its rows, and the clock goes on."""
        classes = None if self.objective.dense else range(max(map(int, train.classes), default=0) + 1)
        self.method.end(self, Task(train, name=self.clock.name, classes=classes))
        if self._columns is not None:
            self._columns = max(self._columns, len(classes)) if classes and train.classes else None
        self.clock.close()

    def state(self) -> dict[str, Any]:
        """Everything but the model and the optimizer, which are their owner's to save."""
        mark(self.method)
        return {
            "method": repr(self.method),
            "clock": dict(vars(self.clock)),
            "memory": self.method.state(),
            "generators": self.chance(),
            "seed": self.seed,
            "columns": self._columns,
        }

    def load_state(self, tree: dict[str, Any], origin: str) -> None:
        """Puts back what `state` gave, into the same method with the same settings. Raises CheckpointError."""
        if tree["method"] != repr(self.method):
            raise checkpoint.CheckpointError(f"{origin} is of {tree['method']}, and this is {self.method!r}")
        self.clock = Clock(**tree["clock"])
        self.method.load_state(checkpoint.placed(tree["memory"], self.device))
        self.set_chance(tree["generators"])
        self.seed, self._columns = tree["seed"], tree["columns"]

    @property
    def number(self) -> int:
        """Every data set is a task."""
        return self.clock.task

    @property
    def columns(self) -> int | None:
        """Up to the last column that a label of a data set so far stood for; None where labels don't tell."""
        return self._columns

    def read(self, rows: Rows, index: Tensor) -> Batch:
        """Rows of the open data set."""
        x = column_map(lambda column: column.to(self.device), rows.read(index))
        y = None
        if rows.classes:
            y = rows.positions(rows.classes if rows.dense else range(int(max(map(int, rows.classes))) + 1))[index]
        task = torch.full((len(index),), self.clock.task, device=self.device)
        return Batch(x=x, y=None if y is None else y.to(self.device), task=task)

    def ready(self, batch: Batch) -> Batch:
        """With columns: a label is its column."""
        columns = batch.y
        if self.objective.dense:
            width = 0 if batch.y is None else batch.y.shape[1]
            columns = torch.arange(width, device=self.device).expand(len(batch), -1)
        return replace(batch, columns=columns)

    @property
    def meanings(self) -> list[Any]:
        """A column is its label."""
        return list(range(self._columns or 0))

    def labelled(self, batch: Batch, column: Tensor) -> Batch:
        """A column is its label."""
        return replace(batch, y=column)

    def column_groups(self, columns: int) -> list[Tensor]:
        """All in one."""
        return [torch.arange(columns, device=self.device)]

    def balance_key(self, batch: Batch) -> Tensor:
        """The label."""
        if batch.y is None or self.objective.dense:
            raise ValueError("a class-balanced memory needs one label a row")
        return batch.y

    def spend(self, forward: int, backward: int = 0, other: int = 0) -> None:
        """Not counted in a loop that is not ours."""

    def judge_anew(self) -> None:
        """A loop that is not ours stops when it will."""


class Attached(Outside):
    """A host in a plain loop. For every new data set: `begin`, then for every batch, in this order,

        x, y = memory.replay(x, y)
        out = model(x)
        loss = criterion(out, y) + memory.penalty(out)
        optimizer.zero_grad(); loss.backward()
        memory.project()
        optimizer.step()
        memory.after_step(out)

    then `consolidate(loader)`. Call `next_epoch()` between passes over the same rows: rows are offered to a memory in
    the first only. A call out of order raises RuntimeError, so that none can be forgotten in silence.

    Some methods weigh rows (`method.weighs`): then the loss is (criterion(out, y) * memory.weight).mean() + ..., of a
    criterion with reduction="none".
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        objective: str | Several,
        trained: bool,
        seed: int,
    ) -> None:
        made = optim.make(optimizer, model)
        super().__init__(method, model, objective, next(model.parameters()).device, trained, seed)
        self.optimizer = made
        self._batch: Batch | None = None
        self._next = "begin"
        self._weighed = False

    # ---- the calls in the loop ----

    def begin(self) -> None:
        """Once per new data set: the first pass over its rows starts here."""
        self._expect("begin", "replay or consolidate")
        self.method.begin(self, None)
        self.clock.open(f"data set {self.clock.task}", "")

    def replay(self, x: Columns, y: Tensor) -> tuple[Columns, Tensor]:
        """The batch with rows of the past added, on the model's device. x is raw: augment afterwards."""
        self._expect("replay", "penalty")
        if len(y) != (len(x) if isinstance(x, Tensor) else len(next(iter(x.values())))):
            self._next = "replay"
            raise ValueError(f"x and y have different numbers of rows, y has {len(y)}")
        x = column_map(lambda column: column.to(self.device), x)
        task = torch.full((len(y),), self.clock.task, device=self.device)
        self._batch = self.method.replay(self, Batch(x=x, y=y.to(self.device), task=task))
        assert self._batch.y is not None
        self._weighed = not self.method.weighs
        return self._batch.x, self._batch.y

    @property
    def weight(self) -> Tensor:
        """What each row that `replay` gave counts in the loss, [n]: see above."""
        batch, self._weighed = self._current(), True
        return torch.ones(len(batch), device=self.device) if batch.weight is None else batch.weight

    def penalty(self, outputs: Tensor, inputs: Columns | None = None) -> Tensor | float:
        """To add to the loss; `outputs` are the model's raw scores of the rows that `replay` gave.

        `inputs`: what the model saw, where the rows were converted or augmented after `replay`; a teacher sees them.
        """
        self._expect("penalty", "project")
        batch = self.ready(self._current(outputs))
        return self.method.penalty(self, batch if inputs is None else replace(batch, x=inputs), outputs)

    def project(self) -> None:
        """After backward (and unscaling), before clipping and the optimizer's step: edits the gradients."""
        self._expect("project", "after_step")
        if not self._weighed:
            raise RuntimeError(
                f"{self.method.name} weighs rows: let the loss be (criterion(out, y) * memory.weight).mean() + "
                'memory.penalty(out), of a criterion with reduction="none"'
            )
        self.method.project(self, self._current())

    def after_step(self, outputs: Tensor) -> None:
        """After the optimizer's step."""
        self._expect("after_step", "replay, next_epoch or consolidate")
        self.method.after_step(self, self.ready(self._current(outputs)), outputs.detach())
        self._batch = None
        self.clock.tick()

    def next_epoch(self) -> None:
        """Another pass over the same rows begins: they are not offered to a memory again."""
        self._expect("next_epoch", "replay or consolidate")
        self.clock.next_epoch()

    def consolidate(self, rows: Any, count: int = 2000) -> None:
        """The data set is learnt (or, right after `begin`, known from before): importances, teachers, memory.

        `rows` is a loader of (x, y) batches, of which `count` random rows are used, or anything that `Rows.of` takes;
        inputs as the model takes them.
        """
        self._expect("consolidate", "begin")
        self.learnt(sample_of(rows, count, seeded(self.seed, "consolidate", self.clock.task)))

    # ---- state ----

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes what the method has learnt, as one safetensors file. The model and the optimizer are yours to save."""
        checkpoint.write(path, {**self.state(), "next": self._next}, "memory")

    def load(self, path: str | os.PathLike[str]) -> None:
        """Puts back what `save` wrote, into the same method with the same settings. Raises CheckpointError."""
        tree = checkpoint.read(path, "memory")
        self.load_state(tree, str(path))
        self._next, self._batch = tree["next"], None

    # ---- inside ----

    def _expect(self, call: str, then: str) -> None:
        if call not in self._next.replace(",", " ").split():
            raise RuntimeError(f"memory.{call}() is out of order: the next call is {self._next}")
        self._next = then

    def _current(self, outputs: Tensor | None = None) -> Batch:
        assert self._batch is not None
        if outputs is not None and len(outputs) != len(self._batch):
            raise ValueError(
                f"outputs has {len(outputs)} rows, the batch from replay {len(self._batch)}: pass x and y on as given"
            )
        return self._batch


def sample_of(rows: Any, count: int, seed: int) -> Rows:
    """`count` random rows of a loader, in one pass; other data as it is."""
    if isinstance(rows, (Rows, tuple, Tensor, dict, torch.utils.data.Dataset)) or not isinstance(rows, Iterable):
        return Rows.of(rows)
    sample = Reservoir(count, seed=seed)
    for batch in rows:
        x, *labels = batch if isinstance(batch, (tuple, list)) else (batch,)
        sample.add({"x": x, "y": labels[0]} if labels else {"x": x})
    kept = sample.all()
    if not kept:
        raise ValueError("the loader gave no rows")
    return Rows(kept["x"], kept.get("y"))
