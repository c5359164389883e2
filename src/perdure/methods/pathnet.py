"""PathNet: paths through a network of modules compete for a task; the winner's are frozen, later paths may use them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from perdure import models
from perdure.data import Batch, Columns, Task
from perdure.method import Host, Method, Trainer, memory
from perdure.models.modular import BASES, Modular, check


@dataclass(eq=False)
class PathNet(Method):
    """PathNet (Fernando et al. 2017): for each task a path is evolved through a network of modules, then frozen.

        h_l = sum over the modules m of layer l that are on the path of relu(W_lm h_(l-1) + b_lm)

    `perdure.models.Modular` takes the place of the mlp or convnet that the Learner is given: L layers of `modules`
    modules, a head for each task; a path is int64 [L, active]. A task begins with `population` random paths. In each
    tournament two of them are trained for `trial` steps each, one after the other, from the weights as they are.
    Fitness is the objective's grade (accuracy) on the rows of these steps. The loser becomes a copy of the winner, each
    of whose entries moves with probability `mutation` (default 1 / (active * L)) by an integer in [-2, 2], modulo
    `modules`. When the task is over, the winner's modules and the head are frozen for good, and before the next one all
    other modules are drawn anew. Later paths may run frozen modules: that is the transfer. `paths` has the paths of the
    tasks that are over, `shared` tells which have modules in common.

    The paper goes on until a path has an accuracy of 0.998. Here a task of n steps has (1 - settle) n / (2 trial)
    tournaments, rounded down: 10 of 2 000 steps, in which 20 of the 64 paths are tried at most, and none below 200,
    when a random path is trained, with a warning. In the last share, `settle`, the last winner alone is trained
    (task-incremental Split MNIST, 500 steps a task, 3 seeds: 0.992, without it 0.985; a random path without evolution,
    settle=1: 0.989).

    Cost: a step runs active / modules of the network. Memory: the population. Once most modules of a layer are frozen,
    a task has little to learn with: take more `modules` for more tasks. Use it for tasks that are revealed and must not
    be forgotten at all, where progressive networks grow too large; a task is learnt once.
    """

    name: ClassVar[str] = "pathnet"
    title: ClassVar[str] = "PathNet"
    paper: ClassVar[str] = "Fernando et al. 2017, arXiv:1701.08734"
    cost: ClassVar[str] = "a step on a part of the network; no row is kept"
    scenarios: ClassVar[tuple[str, ...]] = ("task",)
    heads: ClassVar[tuple[str, ...]] = ("separate",)

    modules: int = 10
    active: int = 3
    width: int | None = None
    population: int = 64
    trial: int = 50
    mutation: float | None = None
    settle: float = 0.5
    paths: dict[str, list[list[int]]] = memory(dict)
    genotypes: Tensor = memory(lambda: torch.zeros(0))
    pair: list[int] = memory(list)
    first: float = memory(float)
    tally: Tensor = memory(lambda: torch.zeros(()))
    rows: int = memory(int)

    def __post_init__(self) -> None:
        check(self.modules, self.active, self.width)
        if self.population < 2:
            raise ValueError(f"population is {self.population}; a tournament is between 2 paths at least")
        if self.trial < 1:
            raise ValueError(f"trial is {self.trial}; a path is tried for 1 step at least")
        for name, share in (("mutation", self.mutation), ("settle", self.settle)):
            if share is not None and not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; it lies between 0 and 1")

    def remodel(self, model: nn.Module) -> nn.Module:
        """Modules like the layers of the given mlp or convnet. Raises ValueError for another or a trained one."""
        wanted = {"modules": self.modules, "active": self.active, "width": self.width}
        if isinstance(model, Modular):
            if any(model.settings[name] != value for name, value in wanted.items()):
                raise ValueError(f"the network has {model.settings}, and PathNet is set to {wanted}: make them agree")
            return model
        recipe = getattr(model, "recipe", None) or {}
        if recipe.get("name") not in BASES or not models.untouched(model):
            raise ValueError(
                "PathNet makes modules like the layers of an mlp or a convnet as models.mlp and models.convnet make "
                f"them, not yet trained; this {recipe.get('name') or type(model).__name__} is something else"
            )
        return Modular(recipe, self.modules, self.active, self.width)

    def begin(self, host: Host, task: Task | None) -> None:
        """Refuses a task that is over; draws anew what is not frozen, and a population."""
        assert task is not None
        if task.name in self.paths:
            raise ValueError(
                f"task {task.name!r} comes back, but its path is frozen: PathNet learns a task once; give it another "
                "name to learn it on a new path"
            )
        _check_heads(host)
        network, draws = _network(host), host.generator("paths", "cpu")
        network.renew(int(torch.randint(2**63 - 1, (), generator=draws)))
        host.optimizer.state.clear()
        size = (self.population, *network.path.shape)
        self.genotypes = torch.randint(self.modules, size, generator=draws)
        self.pair, self.tally, self.rows = [], torch.zeros((), device=host.device), 0

    def replay(self, host: Host, batch: Batch) -> Batch:
        """Where a trial begins, sets its path."""
        trial, step = self._stands(host)
        if trial == step == 0:
            _check_heads(host)
            self._warn(host)
            _network(host).run(self.genotypes[0])
        if step == 0 and trial % 2 == 0:
            draws, evolving = host.generator("paths", "cpu"), trial < self._trials(host)
            self.pair = torch.randperm(self.population, generator=draws)[:2].tolist() if evolving else []
        if step == 0 and self.pair:
            _network(host).run(self.genotypes[self.pair[trial % 2]])
        return batch

    def after_step(self, host: Host, batch: Batch, outputs: Tensor) -> None:
        """Adds to the fitness; after two trials the winner replaces the loser."""
        trial, step = self._stands(host)
        if not self.pair:
            return
        self.tally, self.rows = self.tally + host.objective.tally(outputs, batch), self.rows + len(batch)
        if step < self.trial - 1:
            return
        fitness = host.objective.grade(self.tally, self.rows)
        self.tally, self.rows = torch.zeros((), device=host.device), 0
        if trial % 2 == 0:
            self.first = fitness
        else:
            self.compete(host, self.first, fitness)

    def compete(self, host: Host, first: float, second: float) -> None:
        """The fitter path of the pair (the first, where they are equal) goes on, and the other is its mutant now."""
        winner, loser = self.pair if first >= second else self.pair[::-1]
        path = self.genotypes[winner].cpu()
        self.genotypes[loser] = self.mutated(path, host.generator("paths", "cpu")).to(self.genotypes.device)
        _network(host).run(path)

    def mutated(self, path: Tensor, draws: torch.Generator) -> Tensor:
        """A copy, some of whose entries have moved."""
        chance = 1 / path.numel() if self.mutation is None else self.mutation
        moves = torch.rand(path.shape, generator=draws) < chance
        return (path + moves * torch.randint(-2, 3, path.shape, generator=draws)) % self.modules

    def end(self, host: Host, task: Task) -> None:
        """The running path, the last winner, is the task's, and frozen."""
        if host.clock.taken == 0:
            raise ValueError("PathNet finds the path of a task by learning it: there is nothing to consolidate")
        network = _network(host)
        network.freeze(host.number)
        self.paths[task.name] = network.path.tolist()

    def predict(self, learner: Trainer, x: Columns, task: int | None) -> Tensor:
        """The scores along the path of the task; while it is open, along the running one."""
        scores: Tensor = learner.model(x, task)
        return scores

    def features(self, learner: Trainer, x: Columns, task: int | None) -> Tensor:
        """What the task's head sees."""
        assert isinstance(learner.model, Modular) and isinstance(x, Tensor)
        return learner.model.features(x, task)

    def shared(self) -> dict[str, dict[str, list[int]]]:
        """For any two tasks that are over, how many modules their paths have in common, a number a layer."""
        return {
            one: {
                other: [len(set(mine) & set(theirs)) for mine, theirs in zip(path, beside, strict=True)]
                for other, beside in self.paths.items()
            }
            for one, path in self.paths.items()
        }

    def _stands(self, host: Host) -> tuple[int, int]:
        """The trial, and the step in it."""
        return divmod(host.clock.taken, self.trial)

    def _trials(self, host: Host) -> int:
        """How many there are in the open task: two a tournament, in the steps that evolution has."""
        return self._evolving(host) // (2 * self.trial) * 2

    def _evolving(self, host: Host) -> int:
        """The steps of the open task that are not of the last share."""
        assert host.clock.steps is not None
        return round((1 - self.settle) * host.clock.steps)

    def _warn(self, host: Host) -> None:
        """Where evolution is wanted, and has no steps."""
        steps = self._evolving(host)
        if self.settle < 1 and not self._trials(host):
            advice = f"set trial to {steps // 2} at most" if steps > 1 else "set settle lower"
            warnings.warn(
                f"task {host.clock.name!r} has {steps} steps for evolution, and a tournament takes 2 x {self.trial}: "
                f"none is held, and a random path is trained; {advice}, or take more steps",
                RuntimeWarning,
                stacklevel=2,
            )


def _network(host: Host) -> Modular:
    assert isinstance(host.model, Modular)
    return host.model


def _check_heads(host: Host) -> None:
    """Every task that is known must have one head, and no other task the columns of it."""
    network = _network(host)
    if len(host.column_groups(network.columns)) != len(network.head):
        raise ValueError('PathNet keeps a head for each task: use heads="separate", and bring a task\'s labels at once')
