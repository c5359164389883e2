"""The contract's table: one row a method, the stage on which it must beat plain descent, the mutants that must not."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from conftest import small_stream
from torch import Tensor, nn

from perdure import Rows, Task, methods
from perdure.checkpoint import clone
from perdure.data import Batch
from perdure.method import Host, Method
from perdure.methods.frozen import Frozen
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


def signs_of_products(seed: int, tasks: int = 4, rows: int = 160) -> list[Task]:
    """Every task asks for the sign of another product of two of the same four numbers: no feature serves two tasks."""
    draws = torch.Generator().manual_seed(4000 + seed)
    pairs = [(0, 1), (2, 3), (0, 2), (1, 3), (0, 3), (1, 2)]

    def part(task: int, count: int) -> Rows:
        x = torch.randn(count, 4, generator=draws)
        return Rows(x.repeat(1, 3), (x[:, pairs[task]].prod(1) > 0).long())

    return [Task(part(t, rows), part(t, 200), name=f"product {t}") for t in range(tasks)]


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
PRODUCTS = Stage("products", "task", signs_of_products, (64,), {"name": "adam", "lr": 0.01}, 12, 16)

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
    elif isinstance(part, methods.PackNet):
        shares = part.shares
        _after(part, "end", lambda host: setattr(shares, "owner", _permuted(shares.owner)))
    elif isinstance(part, (methods.Replay, methods.GenerativeReplay)):
        replay = part.replay
        part.replay = lambda host, batch: _mislabelled(replay(host, batch))
    elif isinstance(part, methods.Progressive):
        _after(part, "begin", lambda host: _permute_weights(host.model))
    elif isinstance(part, Frozen):
        added = part.added
        part.added = lambda seen, member: added(seen, member.roll(1, 1))
    elif isinstance(part, methods.ICaRL):
        _after(part, "end", lambda host: setattr(part, "means", part.means.roll(1, 0)))
    elif isinstance(part, methods.Cumulative):
        _after(part, "end", lambda host: _exchange_labels(part.store.all(), host.number))
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


def watching_the_live_weights(part: Method) -> None:
    """The weights before a step are the weights themselves, so that nothing ever seems to move."""
    own = part.after_step

    def blind(host: Host, batch: Batch, outputs: Tensor) -> None:
        part.before = {name: p.detach().clone() for name, p in host.params().items()}
        own(host, batch, outputs)

    part.after_step = blind


def taught_by_itself(part: Method) -> None:
    """The teacher is the model as it stands, at every step."""
    penalty = part.penalty

    def follow(host: Host, batch: Batch, outputs: Tensor) -> Any:
        if part.teacher:
            part.teacher = {name: p.detach().clone() for name, p in host.model.named_parameters()}
        return penalty(host, batch, outputs)

    part.penalty = follow


def never_frozen(part: Method) -> None:
    """Progressive networks of one column, which learns on."""
    remodel, replay = part.remodel, part.replay

    def at_work(model: nn.Module) -> nn.Module:
        model = remodel(model)
        model._run = lambda own, task, *inputs: own(*inputs)
        return model

    def trained(host: Host, batch: Batch) -> Batch:
        host.model.requires_grad_(True)
        return replay(host, batch)

    part.most, part.remodel, part.replay = 1, at_work, trained


def without_paths(part: Method) -> None:
    """What a path was is forgotten when its task is over: nothing is frozen, and all is answered along the last one."""

    def forget(host: Host) -> None:
        host.model.paths.fill_(-1)
        host.model.refresh()

    _after(part, "end", forget)


def misrouted(part: Method) -> None:
    """Every task is answered by the network as it stands for the last one."""
    part.predict = lambda learner, x, task: learner.model(x)


def unrestored(part: Method) -> None:
    """What other tasks own is trained with the rest."""
    part.project, part._restore = (lambda host, batch: None), (lambda: None)


def pruned_in_name_only(part: Method) -> None:
    """What was pruned has no owner, but is neither 0 nor still while the task learns on."""
    guard = part._guard

    def blind(host: Host) -> None:
        pruned, part.pruned = part.pruned, False
        guard(host)
        part.pruned = pruned

    part._guard = blind


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


def _exchange_labels(columns: dict[str, Any], task: int) -> None:
    """Rows of the task say its other class."""
    rows = columns["task"] == task
    columns["y"][rows] = 1 - columns["y"][rows]


@torch.no_grad()
def _permute_weights(model: nn.Module) -> None:
    weights = dict(model.named_parameters())
    for name, weight in _permuted(weights).items():
        weights[name].copy_(weight)


def _permute_labels(columns: dict[str, Any]) -> None:
    order = torch.randperm(len(columns["task"]), generator=torch.Generator().manual_seed(7))
    for name in {"y", "task", "scores"} & set(columns):
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
    passes: bool = True  # in its first epoch each row of the task comes once
    keeps: bool = True  # it keeps tensors of its own, outside the model
    every_task: bool = True  # it takes steps of the optimizer in every task
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


def pathnet() -> methods.PathNet:
    return methods.PathNet(modules=12, active=2, width=8, population=8, trial=2, settle=0.75)


QUADRATIC = (powerless, emptied, shuffled, anchored_to_the_start)
STORED = (emptied, shuffled)
PACKED = (emptied, shuffled, misrouted, unrestored, pruned_in_name_only)


def generative(generator: str, **settings: Any) -> methods.GenerativeReplay:
    return methods.GenerativeReplay(generator, hidden=(16,), latent=4, **settings)


STILL: dict[str, bool] = {"plain_at_first": False, "every_task": False, "descends": False}  # it trains nothing

COLUMNS = {"plain_at_first": False, "one_head": False, "keeps": False}  # what it learns is all in the network

TABLE = [
    Row("finetune", methods.Finetune, keeps=False),
    Row("joint", methods.Joint, CLASSES, STORED),
    Row("ewc-latest", lambda: ewc("latest"), CONTRARY, QUADRATIC),
    Row("ewc-mean", lambda: ewc("mean"), CONTRARY, QUADRATIC),
    Row("ewc-each", lambda: ewc("each"), CONTRARY, QUADRATIC),
    Row("mas", lambda: methods.MAS(strength=100.0, pull="proximal", rows=64), CONTRARY, QUADRATIC),
    Row("si", lambda: methods.SI(strength=1.0, pull="gradient"), CONTRARY, (*QUADRATIC, watching_the_live_weights)),
    Row("lwf", methods.LwF, QUESTIONS, (powerless, emptied, shuffled, taught_by_itself)),
    Row("replay-reservoir", lambda: methods.Replay(30), CLASSES, STORED),
    Row("replay-balanced", lambda: methods.Replay(30, policy="balanced"), CLASSES, STORED),
    Row("replay-ring", lambda: methods.Replay(30, policy="ring"), CLASSES, STORED),
    Row("replay+lwf", lambda: methods.Replay(30) + methods.LwF(), CLASSES, STORED),
    Row("replay+ewc", lambda: methods.Replay(30) + ewc(), CLASSES, STORED),
    Row("er-ace", lambda: methods.ErACE(30), CLASSES, STORED),
    Row("der", lambda: methods.DER(30), CONTRARY, STORED),
    Row("derpp", lambda: methods.DERpp(30), CLASSES, STORED),
    Row("derpp+ewc", lambda: methods.DERpp(30) + ewc(), CLASSES, STORED),
    Row("agem", lambda: methods.AGEM(60, rows=30), CLASSES, STORED),
    Row("agem+si", lambda: methods.AGEM(60) + methods.SI(10.0), CONTRARY, STORED),
    Row("cumulative", methods.Cumulative, CLASSES, STORED, passes=False),
    Row("icarl", lambda: methods.ICaRL(30), CLASSES, STORED, plain_at_first=False),
    Row("gdumb", lambda: methods.GDumb(120), CLASSES, STORED, passes=False),
    Row("generative-vae", lambda: generative("vae", lr=0.03), CLASSES, STORED),
    Row("generative-soft", lambda: generative("vae", lr=0.03, targets="soft"), CLASSES, (emptied,)),
    Row("generative-gan", lambda: generative("gan", lr=0.01), CLASSES, STORED),
    Row("generative+ewc", lambda: generative("vae", lr=0.03) + ewc()),
    Row("progressive", methods.Progressive, QUESTIONS, (shuffled, never_frozen), **COLUMNS),
    Row("progressive-capped", lambda: methods.Progressive(width=0.5, most=2, projection=0.5), **COLUMNS),
    Row("pathnet", pathnet, QUESTIONS, (without_paths, misrouted), plain_at_first=False, one_head=False),
    Row("ncm", methods.NCM, CLASSES, STORED, **STILL),
    Row("slda", methods.SLDA, CLASSES, STORED, **STILL),
    Row("ranpac", lambda: methods.RanPAC(projection=64), CLASSES, STORED, **STILL),
    Row("slda-warm", lambda: methods.SLDA(warm_start=True), CLASSES, STORED, every_task=False, descends=False),
    Row("lwf+ewc", lambda: methods.LwF(0.1) + ewc(), CONTRARY, (powerless, emptied, shuffled)),
    Row("packnet", lambda: methods.PackNet(prune=0.9), PRODUCTS, PACKED, plain_at_first=False, descends=False),
    Row("packnet+mas", lambda: methods.PackNet() + methods.MAS(rows=16), plain_at_first=False, descends=False),
]

# The same methods where they serve another scenario, to beat plain descent there; nothing else is asked of these rows.
# (Regularisation keeps no old class; on the stages of tasks, A-GEM, SI and cumulative replay lead by too little.)
ELSEWHERE = [
    Row("joint-domain", methods.Joint, CONTRARY, STORED),
    Row("joint-task", methods.Joint, PRODUCTS, (emptied,)),
    Row("ewc-task", lambda: methods.EWC(0.1, rows=64), PRODUCTS, (powerless, shuffled)),
    Row("mas-task", lambda: methods.MAS(3.0, rows=64), PRODUCTS, (powerless, shuffled)),
    Row("lwf-domain", methods.LwF, CONTRARY, (powerless, emptied, shuffled, taught_by_itself)),
    Row("replay-domain", lambda: methods.Replay(30), CONTRARY, STORED),
    Row("replay-task", lambda: methods.Replay(300), PRODUCTS, STORED),
    Row("balanced-domain", lambda: methods.Replay(30, policy="balanced"), CONTRARY, STORED),
    Row("balanced-task", lambda: methods.Replay(300, policy="balanced"), PRODUCTS, (emptied,)),
    Row("ring-domain", lambda: methods.Replay(30, policy="ring"), CONTRARY, STORED),
    Row("ring-task", lambda: methods.Replay(300, policy="ring"), PRODUCTS, (emptied,)),
    Row("der-class", lambda: methods.DER(30), CLASSES, STORED),
    Row("der-task", lambda: methods.DER(100), PRODUCTS, (emptied,)),
    Row("derpp-domain", lambda: methods.DERpp(30), CONTRARY, STORED),
    Row("derpp-task", lambda: methods.DERpp(100), PRODUCTS, STORED),
    Row("agem-domain", lambda: methods.AGEM(60, rows=30), CONTRARY, STORED),
    Row("cumulative-domain", methods.Cumulative, CONTRARY, STORED),
    Row("gdumb-domain", lambda: methods.GDumb(120), CONTRARY, STORED),
    Row("gdumb-task", lambda: methods.GDumb(400), PRODUCTS, (emptied,)),
    Row("generative-domain", lambda: generative("vae", lr=0.03), CONTRARY, STORED),
    Row("slda-domain", methods.SLDA, CONTRARY, STORED),
    Row("ranpac-domain", lambda: methods.RanPAC(projection=64), CONTRARY, STORED),
]
