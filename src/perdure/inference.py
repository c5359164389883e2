"""Task inference: which task a row belongs to, where nobody says, for learners that answer a task at a time.

"entropy"       the task whose answer is surest: least entropy of its probabilities, divided by the log of their number
"nearest-mean"  the task that has the nearest mean of features of a label, each task's features as its own network sees
                them, distances in units of the task's own mean distance

Every task that was begun is asked once a row, so that it costs as many predictions as there are tasks. The task found
answers by its own head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from perdure.data import Columns, Task
from perdure.method import memory, sampled
from perdure.models import evaluating
from perdure.spelling import one_of

if TYPE_CHECKING:
    from perdure.learner import Learner

HOW = ("entropy", "nearest-mean")
ROWS = 2000

Strangeness = Callable[[Columns, Tensor, int], Tensor]


@dataclass(eq=False)
class Means:
    """The mean features of each label of each task, and how far rows lie from them; noted when the task has ended.

    By task: `means` [k, features] of the labels at `positions` [k], `spread` the mean distance of a row to its nearest
    one. Labels that are not among the rows of a task that comes back keep the means that they had.
    """

    means: dict[str, Tensor] = memory(dict)
    positions: dict[str, Tensor] = memory(dict)
    spread: dict[str, Tensor] = memory(dict)

    @torch.no_grad()
    def note(self, learner: Learner, task: Task) -> None:
        """From up to 2 000 random train rows; nothing where the task is hidden, or the network has no features."""
        number = learner.labels.revealed(task.name)
        if number is None or learner.objective.dense or not task.train.classes:
            return
        seen, labels = [], []
        with evaluating(learner.model):
            for batch in sampled(learner, task.train, ROWS, "means"):
                try:
                    seen.append(learner.method.features(learner, batch.x, number).float().flatten(1))
                except Exception:  # `features` is the network's own affair: without it only "nearest-mean" is refused
                    return
                labels.append(batch.y)
                learner.spend(forward=len(batch))
        features, y = torch.cat(seen), torch.cat([part for part in labels if part is not None])
        positions = torch.unique(y)
        means = torch.stack([features[y == position].mean(0) for position in positions])
        spread = _nearest(features, means).mean().clamp(min=1e-12)
        if task.name in self.means and self.means[task.name].shape[1] == means.shape[1]:
            absent = ~torch.isin(self.positions[task.name], positions)
            means = torch.cat([self.means[task.name][absent], means])
            positions = torch.cat([self.positions[task.name][absent], positions])
        self.means[task.name], self.positions[task.name], self.spread[task.name] = means, positions, spread


def strangeness(learner: Learner, how: str) -> Strangeness:
    """How little a row seems to be of a task, [n]: a function of its inputs, its probabilities there and the task.

    Raises ValueError for an unknown way, in scenarios that hide the task, and for a task that this way cannot judge.
    """
    one_of("infer", how, HOW)
    if learner.labels.scenario != "task" or learner.objective.name != "classification":
        raise ValueError(f'{how!r} infers the task, which needs scenario "task" and classification')
    names = list(learner.labels.tasks)
    if how == "entropy":
        alone = [name for name in learner.labels.begun if len(learner.labels.tasks[name]) < 2]
        if alone:
            raise ValueError(f'task {alone[0]!r} has one label, of which it is always sure: use "nearest-mean"')
        return lambda x, p, number: torch.special.entr(p).sum(1) / math.log(p.shape[1])
    missing = [name for name in learner.labels.begun if name not in learner.means.means]
    if missing:
        raise ValueError(
            f"no mean features are known of task {missing[0]!r}; they are noted when a task ends, of networks with "
            '`features(x)`: use "entropy"'
        )

    def distance(x: Columns, p: Tensor, number: int) -> Tensor:
        name = names[number]
        features = learner.method.features(learner, x, number).float().flatten(1)
        return _nearest(features, learner.means.means[name]) / learner.means.spread[name]

    return distance


def _nearest(features: Tensor, means: Tensor) -> Tensor:
    """The distance of each row to its nearest mean, [n]; by differences, as products are coarse where it is small."""
    return torch.cdist(features, means, compute_mode="donot_use_mm_for_euclid_dist").min(1).values
