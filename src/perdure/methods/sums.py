"""Sums over rows: they add up, whatever the order, and grow with the columns; columns go by what they stand for."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

Sums = dict[str, Tensor]
SQUARES = ("gram", "held_gram")  # features by features; all other sums have a row a column


def plus(one: Sums, other: Sums) -> Sums:
    """The sums over both; where one knows fewer columns, it has 0 there. Neither is changed."""
    if not one or not other:
        return {**one, **other}
    same_features(one["sum"].shape[1], other["sum"].shape[1])
    return {name: _widened(one[name], other[name]) + _widened(other[name], one[name]) for name in one}


def aligned(mine: list[Any], theirs: list[Any]) -> tuple[list[Any], list[int]]:
    """The columns of both by their meanings, mine first, and where each of theirs stands among them.

    Raises ValueError for meanings of different kinds, and where a task's labels have other positions (scenario
    "domain", in which columns are positions).
    """
    both, places = list(mine), {repr(meaning): place for place, meaning in enumerate(mine)}
    if len({type(meaning) if isinstance(meaning, dict | list) else None for meaning in [*mine, *theirs]}) > 1:
        raise ValueError(f"columns stand for {mine} and for {theirs}: merge what learners of one scenario have counted")
    if any(isinstance(meaning, dict) for meaning in theirs):
        pairs: list[tuple[dict[str, Any], dict[str, Any]]] = list(zip_longest(mine, theirs, fillvalue={}))
        if any(one[task] != other[task] for one, other in pairs for task in one.keys() & other.keys()):
            raise ValueError(f"a task has its labels in two orders, {mine} and {theirs}: give both the same `classes`")
        return [{**one, **other} for one, other in pairs], list(range(len(theirs)))
    for meaning in theirs:
        if repr(meaning) not in places:
            places[repr(meaning)] = len(both)
            both.append(meaning)
    return both, [places[repr(meaning)] for meaning in theirs]


def placed(sums: Sums, places: list[int], columns: int) -> Sums:
    """The sums with their columns at these places of `columns`."""

    def moved(part: Tensor) -> Tensor:
        index = torch.tensor(places, dtype=torch.long, device=part.device)
        return part.new_zeros(columns, *part.shape[1:]).index_copy_(0, index, part)

    return {name: part if name in SQUARES else moved(part) for name, part in sums.items()}


def same_features(before: int, now: int) -> None:
    """Refuses a body that changed."""
    if before != now:
        raise ValueError(f"rows were counted by {before} features, and now have {now}: the body must stay as it was")


def _widened(part: Tensor, like: Tensor) -> Tensor:
    """With zeros for the columns that only `like` has."""
    missing = max(0, like.shape[0] - part.shape[0])
    return torch.cat([part, part.new_zeros(missing, *part.shape[1:])])
