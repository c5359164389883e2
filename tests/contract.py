"""The contract's table: one row a method, the stage on which it must beat plain descent, the mutants that must not."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from conftest import small_stream
from torch import Tensor

from perdure import Rows, Task, methods
from perdure.checkpoint import clone
from perdure.data import Batch
from perdure.method import Host, Method
from perdure.methods.quadratic import Quadratic

Mutation = Callable[[Method], None]

# ---- stages: streams on which plain descent really forgets ----


def contrary_domains(seed: int, tasks: int = 3, rows: int = 96, width: int = 4) -> list[Task]:
    """Two classes in every task. Task t is told by features of its own; those of earlier tasks now say the contrary.

    Plain descent unlearns them although it needs not: they are the weights that were important.
    """
    draws = torch.Generator().manual_seed(1000 + seed)
    directions = torch.randn(tasks, width, generator=draws).sign()

    def part(task: int, count: int) -> Rows:
        y = torch.arange(count) % 2
        side = (2.0 * y - 1)[:, None]
        x = torch.zeros(count, tasks, width)
        for block in range(task + 1):
            signal = (1.5 if block == task else -1.0) * side * directions[block]
            x[:, block] = signal + torch.randn(count, width, generator=draws)
        return Rows(x.flatten(1), y)

    return [Task(part(t, rows), part(t, 100), name=f"domain {t}") for t in range(tasks)]


def questions_on_the_same_inputs(seed: int, tasks: int = 5, rows: int = 128, features: int = 12) -> list[Task]:
    """Every task asks on which side of another plane the same kind of input lies; the planes are at right angles."""
    draws = torch.Generator().manual_seed(2000 + seed)
    planes = torch.linalg.qr(torch.randn(features, features, generator=draws))[0]

    def part(task: int, count: int) -> Rows:
        x = torch.randn(count, features, generator=draws)
        return Rows(x, (x @ planes[task] > 0).long())

    return [Task(part(t, rows), part(t, 200), name=f"question {t}") for t in range(tasks)]


def new_classes(seed: int) -> list[Task]:
    """Two new classes in every task."""
    return small_stream(tasks=3, classes=2, rows=60, seed=100 * seed)


@dataclass(frozen=True)
class Stage:
    name: str
    scenario: str
    stream: Callable[[int], list[Task]]
    hidden: tuple[int, ...]
    optimizer: dict[str, Any] = field(hash=False)
    epochs: int
    batch_size: int


CONTRARY = Stage("contrary domains", "domain", contrary_domains, (16,), {"name": "sgd", "lr": 0.1}, 2, 12)
QUESTIONS = Stage("questions", "task", questions_on_the_same_inputs, (8,), {"name": "sgd", "lr": 0.3}, 8, 32)
CLASSES = Stage("new classes", "class", new_classes, (16,), {"name": "adam", "lr": 0.01}, 2, 10)

# ---- mutations: a method broken in one way, which must lose what it is worth ----


def powerless(part: Method) -> None:
    """Strength 0."""
    part.strength = 0.0


def emptied(part: Method) -> None:
    """All memory is gone whenever a task begins."""
    blank = clone(part.state())
    _after(part, "begin", lambda host: part.load_state(clone(blank)))


def shuffled(part: Method) -> None:
    """What it keeps is there, but mixed up: importances, teacher's weights, or which of two labels a stored row has."""
    if isinstance(part, Quadratic):
        measured = part.measured
        part.measured = lambda host, task: _permuted(measured(host, task))
    elif isinstance(part, methods.LwF):
        _after(part, "begin", lambda host: setattr(part, "teacher", _permuted(part.teacher)))
    elif isinstance(part, methods.Replay):
        replay = part.replay
        part.replay = lambda host, batch: _mislabelled(replay(host, batch))
    else:
        _after(part, "end", lambda host: _permute_labels(part.store.all()))


def anchored_to_the_start(part: Method) -> None:
    """Pulls to the weights before the first task."""
    start: dict[str, Tensor] = {}

    def note(host: Host) -> None:
        if not start:
            start.update({name: p.detach().clone() for name, p in host.params().items()})

    def misplace(host: Host) -> None:
        if part.centre:
            part.centre = dict(start)
        if getattr(part, "tasks", None):
            part.tasks = [(importance, start) for importance, _ in part.tasks]

    _after(part, "begin", note)
    _after(part, "end", misplace)


def taught_by_itself(part: Method) -> None:
    """The teacher is the model as it stands, at every step."""
    penalty = part.penalty

    def follow(host: Host, batch: Batch, outputs: Tensor) -> Any:
        if part.teacher:
            part.teacher = {name: p.detach().clone() for name, p in host.model.named_parameters()}
        return penalty(host, batch, outputs)

    part.penalty = follow


def _after(part: Method, hook: str, then: Callable[[Host], None]) -> None:
    own = getattr(part, hook)

    def both(host: Host, *rest: Any) -> None:
        own(host, *rest)
        then(host)

    setattr(part, hook, both)


def _permuted(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One fixed permutation of all entries of all tensors."""
    if not tensors:
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
    flat = flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(7))]
    pieces = flat.split([tensor.numel() for tensor in tensors.values()])
    return {name: piece.view_as(tensors[name]) for name, piece in zip(tensors, pieces, strict=True)}


def _mislabelled(batch: Batch) -> Batch:
    """The rows of the past say the other class of their task."""
    return replace(batch, y=torch.where(batch.fresh, batch.y, 1 - batch.y))


def _permute_labels(columns: dict[str, Any]) -> None:
    order = torch.randperm(len(columns["task"]), generator=torch.Generator().manual_seed(7))
    for name in ("y", "task"):
        columns[name].copy_(columns[name][order])


# ---- the table ----


@dataclass(frozen=True)
class Row:
    """A method, the stage on which it must beat plain descent, and the mutations of (every part of) it."""

    name: str
    make: Callable[[], Method]
    stage: Stage | None = None
    mutations: tuple[Mutation, ...] = ()
    plain_at_first: bool = True  # on the first task it is plain descent, bit for bit
    one_head: bool = True  # the model is the one it was given, with its one head
    descends: bool = True  # it learns by steps of the optimizer, on every parameter

    @property
    def scenarios(self) -> tuple[str, ...]:
        return self.make().scenarios

    def mutant(self, mutation: Mutation) -> Method:
        method = self.make()
        for part in parts(method):
            mutation(part)
        return method


def parts(method: Method) -> list[Method]:
    return method.parts if isinstance(method, methods.Compose) else [method]


def ewc(anchor: str = "latest") -> methods.EWC:
    return methods.EWC(strength=1.0, anchor=anchor, pull="gradient", rows=64)


QUADRATIC = (powerless, emptied, shuffled, anchored_to_the_start)
STORED = (emptied, shuffled)

TABLE = [
    Row("finetune", methods.Finetune),
    Row("joint", methods.Joint, CLASSES, STORED),
    Row("ewc-latest", lambda: ewc("latest"), CONTRARY, QUADRATIC),
    Row("ewc-mean", lambda: ewc("mean"), CONTRARY, QUADRATIC),
    Row("ewc-each", lambda: ewc("each"), CONTRARY, QUADRATIC),
    Row("mas", lambda: methods.MAS(strength=100.0, pull="proximal", rows=64), CONTRARY, QUADRATIC),
    Row("lwf", methods.LwF, QUESTIONS, (powerless, emptied, shuffled, taught_by_itself)),
    Row("replay-reservoir", lambda: methods.Replay(30), CLASSES, STORED),
    Row("replay-balanced", lambda: methods.Replay(30, policy="balanced"), CLASSES, STORED),
    Row("replay-ring", lambda: methods.Replay(30, policy="ring"), CLASSES, STORED),
    Row("replay+lwf", lambda: methods.Replay(30) + methods.LwF(), CLASSES, STORED),
    Row("replay+ewc", lambda: methods.Replay(30) + ewc(), CLASSES, STORED),
    Row("lwf+ewc", lambda: methods.LwF(0.1) + ewc(), CONTRARY, (powerless, emptied, shuffled)),
]
