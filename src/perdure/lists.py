"""Lists of recommendations: pairs to learn them from, the best of a catalogue for each user, and their grades."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from perdure.answers import proba
from perdure.augment import Unseen
from perdure.data import Rows, Task
from perdure.metrics import ndcg_at, recall_at
from perdure.streams import Stream

if TYPE_CHECKING:
    from perdure.learner import Learner


def pairs(stream: Sequence[Task], least: float, seed: int = 0) -> Stream:
    """A stream of ratings as pairs for objective "ranking": rows of at least `least`, and beside each another item.

    The other is drawn among what was rated so high up to then, and not by this user: see `augment.Unseen`, which as the
    learner's `augment` draws anew at every step. Raises ValueError for a task of which no row is left.
    """
    unseen, draws, tasks = Unseen(), torch.Generator().manual_seed(seed), []
    for task in stream:
        parts = []
        for rows in (task.train, task.test):
            liked = None if rows is None else rows.select((rows.positions(rows.classes) >= least).all(1))
            if liked is not None and not len(liked):
                raise ValueError(f"task {task.name!r} has no row of at least {least:g} in one of its parts")
            x = None if liked is None else liked.read(slice(None))
            if x is not None and rows is task.train:
                unseen.add(x)
            parts.append(None if x is None else (unseen(x, draws), torch.ones(len(liked or ()), 1)))
        tasks.append(Task(parts[0], parts[1], name=task.name))
    return Stream(tasks, name="pairs", description=f"Ratings of at least {least:g}, each beside another item.")


def recommend(
    learner: Learner,
    users: Sequence[int],
    items: Sequence[int],
    k: int = 10,
    without: Mapping[int, Collection[int]] | None = None,
) -> list[list[int]]:
    """For each user the k best of `items` by the model's scores (see `models.ratings`), best first.

    `without` says for each user what to leave out, as a rule what the user has seen. Of equal scores the first of
    `items` comes first.
    """
    catalogue, found = torch.tensor(list(items)), list[list[int]]()
    column = {item: place for place, item in enumerate(catalogue.tolist())}
    for user in users:
        x = {"user": torch.full_like(catalogue, user), "item": catalogue}
        scores = proba(learner, x, None)[0][:, 0]
        hidden = [column[item] for item in (without or {}).get(user, ()) if item in column]
        scores[hidden] = -torch.inf
        best = scores.argsort(descending=True, stable=True)[: min(k, len(catalogue) - len(hidden))]
        found.append(catalogue[best].tolist())
    return found


def graded(learner: Learner, rows: Rows, seen: Unseen, k: int = 10) -> dict[str, float]:
    """Means over the people of `rows` of recall@k and NDCG@k (see `metrics`): what these rows name is to be found.

    A list is of the items added to `seen`, without those that this person was seen with. What was never added cannot
    be hit, and counts as missed. Raises ValueError without rows.
    """
    wanted = Unseen()
    wanted.add(rows.read(slice(None)))
    users = wanted.users
    if not users:
        raise ValueError("there are no rows, so nobody's list can be graded")
    catalogue = sorted(set(seen.seen[:, 1].tolist()))
    ranked = recommend(learner, users, catalogue, k, {user: seen.items(user) for user in users})
    return {
        f"{name}@{k}": fmean(metric(best, wanted.items(user), k) for best, user in zip(ranked, users, strict=True))
        for name, metric in (("recall", recall_at), ("NDCG", ndcg_at))
    }
