"""What methods on frozen features share: one pass over a task's rows adds to sums, and the sums answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perdure.batch import Columns, chunks, column_length, column_list, column_map
from perdure.data import Rows, Task
from perdure.method import Host, Method, Trainer, memory
from perdure.methods.sums import Sums, aligned, placed, plus
from perdure.models import evaluating
from perdure.structure import Work

CHUNK = 128
SIZE_IN_STEPS = 16


@dataclass(eq=False)
class Frozen(Method):
    """The body of the network never moves: linear scores are worked out from sums over the rows' features.

    Each row counts once, whatever the Learner's epochs or steps, in float64, in eval mode. A subclass says what rows
    add (`added`), and what linear scores follow from the sums (`classifier`), in one place for all scenarios.

    Exact in any order and any number of processes: features are rounded to steps of 2^-bits, so that their sums, and
    the sums of their products, are whole numbers of steps, which float64 adds without rounding until a sum of squares
    passes 2^(53 - 2 bits) (at 12 bits 5e8: a million rows of size 20; beyond that to 1e-16 a row). Rows go through the
    network `CHUNK` at a time, the last chunk filled up, so that a row's features do not depend on its neighbours.
    Columns go by what they stand for, not by their numbers, so that processes may open labels in different orders.
    `merge` adds the sums of another process, bit for bit those of one.

    `warm_start` learns the first task by plain gradient descent before the body is frozen, as the papers do that begin
    from no pretrained network; what is exact then begins with the second task. Measured on class-incremental Split
    MNIST (MLP 784-400-400, 2 000 steps, 3 seeds) it takes SLDA from 0.903 to 0.901 and NCM from 0.753 to 0.318, for
    the features of two digits know little of the others: it is off.

    Meant for a pretrained body: `models.adapt(network)`; if its old classes are to be answered too,
    `learner.consolidate(rows)`. Raises ValueError for features too small for `bits`, or whose number changes.
    """

    objectives: ClassVar[tuple[str, ...]] = ("classification",)

    bits: int = 12
    warm_start: bool = False
    sums: Sums = memory(dict)
    meanings: list[Any] = memory(list)  # of the sums' columns, in the host's words

    def __post_init__(self) -> None:
        if not 0 <= self.bits <= 40:
            raise ValueError(f"bits is {self.bits}; features are rounded to 0 to 40 bits after the point")
        self._answer: tuple[Sums, tuple[Tensor, Tensor]] | None = None

    @property
    def takes_steps(self) -> bool:  # type: ignore[override]
        """In the first task, with `warm_start`."""
        return self.warm_start

    # ---- what a subclass says ----

    def prepare(self, host: Host, features: Tensor) -> None:
        """Before the first rows are counted."""

    def expanded(self, features: Tensor) -> Tensor:
        """What the sums are taken of, float64 [n, k], from features [n, d]."""
        return features

    def added(self, seen: Tensor, member: Tensor) -> Sums:
        """What rows add: `seen` [n, k], `member` [n, columns] with a 1 in each row's column.

        "count" [columns] and "sum" [columns, k], at least; all but `sums.SQUARES` have a row a column.
        """
        return {"count": member.sum(0), "sum": member.T @ seen}

    def classifier(self) -> tuple[Tensor, Tensor]:
        """Weights [columns, k] and bias [columns] of the scores, from the sums."""
        raise NotImplementedError

    # ---- hooks ----

    def remodel(self, model: nn.Module) -> nn.Module:
        """The same; refused without features."""
        if not callable(getattr(model, "features", None)):
            raise ValueError(
                f"{self.name} answers from the features of the network, and {type(model).__name__} has no "
                "features(x): write it, or use models.adapt"
            )
        return model

    def fit(self, learner: Trainer, task: Task) -> None:
        """No steps; with `warm_start`, epochs over the first task."""
        if self.sums:
            return
        known = getattr(learner.model, "classes", ())
        if known:
            raise ValueError(
                f"the network knows {len(known)} classes of which {self.name} has counted no row and which it would "
                "never answer: learner.consolidate(rows) first, or models.adapt without classes"
            )
        if self.warm_start:
            super().fit(learner, task)

    def end(self, host: Host, task: Task) -> None:
        """Counts the task's rows, whether it was learnt or is consolidated, by the weights that it ends with."""
        meanings, places = aligned(self.meanings, host.meanings[: host.columns])
        self.sums = plus(self.sums, self._pass(host, task.train, places, len(meanings)))
        self.meanings = meanings
        with Work() as work:
            self._solved()
        host.spend(0, other=work.multiply_adds)

    @torch.no_grad()
    def predict(self, learner: Trainer, x: Columns, task: int | None) -> Tensor:
        """Linear scores, less the best of the columns that answer together: beside what all these have in common
        float32 would lose what tells them apart. A column of which no row was counted has the lowest finite one.
        """
        if not self.sums:
            return super().predict(learner, x, task)
        weights, bias = self._solved()
        found = self.expanded(_features(learner.model, x)) @ weights.T + bias
        _, places = aligned(self.meanings, learner.meanings)
        known = self.sums["count"].tolist()
        own = [column for column, place in enumerate(places) if place < len(known) and known[place]]
        scores = found.new_full((len(found), learner.width), -torch.inf)
        scores[:, own] = found[:, [places[column] for column in own]]
        for group in learner.column_groups(learner.width):
            scores[:, group] -= scores[:, group].amax(1, keepdim=True)
        silent = torch.ones(learner.width, dtype=torch.bool, device=scores.device)
        silent[own] = False
        return scores.float().masked_fill(silent, torch.finfo(torch.float32).min)

    # ---- sums ----

    def merge(self, other: Self) -> None:
        """Adds the rows that another learner's method has counted: same body, same settings, same scenario.

        Labels of its own are added. This one's learner answers them once it knows them: before anything is learnt, let
        both `open_ahead` all tasks.
        """
        if (type(self), self.settings()) != (type(other), other.settings()):
            raise ValueError(f"{self!r} and {other!r} count differently: merge methods with the same settings")
        meanings, places = aligned(self.meanings, other.meanings)
        self.sums = plus(self.sums, placed(other.sums, places, len(meanings)))
        self.meanings = meanings

    @property
    def mean(self) -> Tensor:
        """The mean of each column's rows, [columns, k]; 0 where there is none."""
        mean: Tensor = self.sums["sum"] / self.sums["count"].clamp(min=1)[:, None]
        return mean

    @torch.no_grad()
    def _solved(self) -> tuple[Tensor, Tensor]:
        """The classifier of these sums; sums are never changed in place, so that new ones are another dict."""
        if self._answer is None or self._answer[0] is not self.sums:
            self._answer = (self.sums, self.classifier())
        return self._answer[1]

    @torch.no_grad()
    def _pass(self, host: Host, rows: Rows, places: list[int], columns: int) -> Sums:
        """The sums over these rows; a host's column has its place among the sums' `columns`."""
        new: Sums = {}
        place = torch.tensor(places, device=host.device)
        squares = torch.zeros((), dtype=torch.float64, device=host.device)
        with evaluating(host.model):
            for index in chunks(torch.arange(len(rows)), CHUNK):
                batch = host.ready(host.read(rows, index))
                if batch.columns is None:
                    raise ValueError(f"{self.name} counts labelled rows, and these have no labels")
                features = _features(host.model, _filled_up(batch.x))[: len(index)]
                self.prepare(host, features)
                with Work() as work:
                    seen = self.expanded(features).mul(2.0**self.bits).round_().mul_(2.0**-self.bits)
                    member = F.one_hot(place[batch.columns], columns).to(seen.dtype)
                    for name, part in self.added(seen, member).items():
                        new[name] = new[name].add_(part) if name in new else part
                squares += seen.square().mean(1).sum()
                host.spend(forward=CHUNK, other=work.multiply_adds)
        self._check_size(math.sqrt(float(squares) / len(rows)))
        return new

    def _check_size(self, size: float) -> None:
        if not math.isfinite(size):
            raise ValueError(f"{self.name} found features that are NaN or infinite: the body is broken")
        if size < SIZE_IN_STEPS * 2.0**-self.bits:
            raise ValueError(
                f"the features are about {size:.1g} in size, too small for steps of 2^-{self.bits}: set bits higher, "
                f"so that 2^-bits is a {SIZE_IN_STEPS}th of that at most"
            )


def _features(model: nn.Module, x: Columns) -> Tensor:
    """What the head sees, float64 [n, d]; in full precision also where the Learner learns in bf16."""
    with torch.autocast(column_list(x)[0].device.type, enabled=False):
        found: Tensor = model.features(x)  # type: ignore[operator]
    return found.flatten(1).double()


def _filled_up(x: Columns) -> Columns:
    """`CHUNK` rows: the last one is repeated."""
    place = torch.arange(CHUNK).clamp(max=column_length(x) - 1)
    return column_map(lambda column: column[place.to(column.device)], x)
