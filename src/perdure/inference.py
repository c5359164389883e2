"""Task inference: which task a row belongs to, where nobody says, for learners that answer a task at a time.

"entropy"       the task whose answer is surest: least entropy of its probabilities, divided by the log of their number
"nearest-mean"  the task that has the nearest mean of features of a label, each task's features as its own network sees
                them, distances in units of the task's own mean distance

Every known task is asked once a row, so that it costs as many predictions as there are tasks.
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

if TYPE_CHECKING:
    from perdure.learner import Learner

HOW = ("entropy", "nearest-mean")
ROWS = 2000


@dataclass(eq=False)
class Means:
    """The mean features of each label of each task, and how far rows lie from them; noted when the task has ended."""

    means: dict[str, Tensor] = memory(dict)
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
                    seen.append(learner.method.features(learner, batch.x, number).float())
                except AttributeError:
                    return
                labels.append(batch.y)
                learner.spend(forward=len(batch))
        features, y = torch.cat(seen).flatten(1), torch.cat([part for part in labels if part is not None])
        present = torch.unique(y)
        means = torch.stack([features[y == label].mean(0) for label in present])
        self.means[task.name] = means
        self.spread[task.name] = torch.cdist(features, means).min(1).values.mean().clamp(min=1e-12)


def strangeness(learner: Learner, how: str) -> Callable[[Columns, Tensor, int], Tensor]:
    """How little a row seems to be of a task, [n]: a function of its inputs, its probabilities there and the task."""
    names = list(learner.labels.tasks)
    if how == "entropy":
        alone = [name for name, classes in learner.labels.tasks.items() if len(classes) < 2]
        if alone:
            raise ValueError(f'task {alone[0]!r} has one label, of which it is always sure: use task="nearest-mean"')
        return lambda x, p, number: -(p * p.clamp(min=1e-38).log()).sum(1) / math.log(p.shape[1])
    missing = [name for name in names if name not in learner.means.means]
    if missing:
        raise ValueError(f'no mean features are known of task {missing[0]!r}: use task="entropy"')

    def distance(x: Columns, p: Tensor, number: int) -> Tensor:
        name = names[number]
        features = learner.method.features(learner, x, number).float().flatten(1)
        return torch.cdist(features, learner.means.means[name]).min(1).values / learner.means.spread[name]

    return distance
