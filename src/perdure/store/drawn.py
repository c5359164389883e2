"""Exams where no row may be kept: of each label its statistics are stored, and rows are drawn from them when asked.

A drawn row is no row of anybody. It is not a real one either: the network's inputs are drawn as if, within a label,
numbers were normal with one covariance for all labels (as in linear discriminant analysis; Fisher 1936), values of
which there are few independent, and texts bags of words. So an answer to it says little, and that two versions answer
differently says that something was lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perdure.data import Columns, Rows
from perdure.seeds import seeded

ROWS = 200  # drawn of each label
LEAST = 10  # rows of a label, or with a value or a word, below which nothing of it is stored
MOST = 2000  # rows of a label that are counted
FEW = 16  # different values of a place, up to which their shares are stored
NAMES = 256  # different whole numbers of a column, above which it is a text
WIDE = 1024  # numbers of a row, above which their covariance is not stored, and only variances are
ENDING = "-drawn"


@dataclass(frozen=True)
class Drawn:
    """What was counted of the rows of one update: `labels`, of each column its statistics, and how many rows each had.

    columns   name -> tree of tensors; the name is "" where x is one tensor
    """

    name: str
    labels: list[int | str]
    counts: list[int]
    columns: dict[str, dict[str, Any]]

    def __len__(self) -> int:
        return ROWS * len(self.labels)

    @staticmethod
    def of(update: str, rows: Rows, labels: Sequence[int | str]) -> Drawn:
        """Counts rows as the network is given them, 2000 of a label at most; labels of fewer than 10 are left out."""
        numbers: dict[int | str, list[int]] = {}
        for row, label in enumerate(labels):
            numbers.setdefault(label, []).append(row)
        taken = {label: found[:: -(-len(found) // MOST)] for label, found in numbers.items() if len(found) >= LEAST}
        x = rows.read(torch.tensor([row for found in taken.values() for row in found])) if taken else {}
        named = {"": x} if isinstance(x, Tensor) else x
        counts = [len(found) for found in taken.values()]
        groups = torch.split(torch.arange(sum(counts)), counts)
        columns = {name: _counted(column, groups) for name, column in named.items()}
        return Drawn(update + ENDING, list(taken), counts, columns)

    def draw(self, key: str) -> tuple[Rows, list[int | str]]:
        """200 rows of each label, and the labels: the same ones whenever asked with the store's key."""
        chance = torch.Generator().manual_seed(seeded(int(key, 16) % 2**63, self.name))
        found = {name: _drawn(column, len(self.labels), chance) for name, column in self.columns.items()}
        x: Columns = found.get("", found)
        return Rows(x), [label for label in self.labels for _ in range(ROWS)]

    def tree(self) -> dict[str, Any]:
        """For a file."""
        return dict(vars(self))

    @staticmethod
    def read(tree: Mapping[str, Any]) -> Drawn:
        """What `tree` gave."""
        return Drawn(tree["name"], tree["labels"], tree["counts"], tree["columns"])


def _counted(column: Tensor, groups: Sequence[Tensor]) -> dict[str, Any]:
    """The statistics of a column [n, ...] in each group of rows."""
    flat = column.reshape(len(column), -1)
    known: dict[str, Any] = {"dtype": str(column.dtype).removeprefix("torch."), "shape": list(column.shape[1:])}
    whole = not column.is_floating_point() and column.dtype != torch.uint8
    if whole and len(set(flat.flatten().tolist())) > NAMES:
        return known | _words(flat, groups)
    few: list[int] = []
    values, shares = [], []
    for place in range(flat.shape[1]):
        found, rows = torch.unique(flat[:, place], return_counts=True)
        if whole or len(found) <= min(FEW, len(flat) // LEAST):
            few.append(place)
            values.append(found[rows >= LEAST])
            shares.append(torch.stack([(flat[rows, place, None] == values[-1]).double().mean(0) for rows in groups]))
    many = sorted(set(range(flat.shape[1])).difference(few))
    known |= {"few": torch.tensor(few), "values": values, "shares": shares, "many": torch.tensor(many)}
    return known | (_normal(flat[:, many].double(), groups) if many else {})


def _normal(numbers: Tensor, groups: Sequence[Tensor]) -> dict[str, Tensor]:
    """Means of each group, and what all groups have in common: how far rows are from their mean."""
    means = torch.stack([numbers[rows].mean(0) for rows in groups])
    away = torch.cat([numbers[rows] - mean for rows, mean in zip(groups, means, strict=True)])
    free = max(1, len(away) - len(groups))
    spread = away.T @ away / free if numbers.shape[1] <= WIDE else away.square().sum(0) / free
    return {"means": means.float(), "spread": spread.float()}


def _words(flat: Tensor, groups: Sequence[Tensor]) -> dict[str, Any]:
    """The lengths of each group's texts by tenths, and how often each word comes that is in at least 10 texts."""
    tenths = torch.linspace(0, 1, 11, dtype=torch.float64)
    lengths = [torch.quantile((flat[rows] > 0).sum(1).double(), tenths).round().long() for rows in groups]
    words, shares = [], []
    for rows in groups:
        texts = [torch.unique(text[text > 0]) for text in flat[rows]]
        once, in_texts = torch.unique(torch.cat(texts), return_counts=True)
        every, often = torch.unique(flat[rows][flat[rows] > 0], return_counts=True)
        common = torch.isin(every, once[in_texts >= LEAST])
        words.append(every[common])
        shares.append(often[common].double())
    return {"lengths": torch.stack(lengths), "words": words, "often": shares}


def _drawn(column: Mapping[str, Any], groups: int, chance: torch.Generator) -> Tensor:
    """`ROWS` values of each group, in the column's shape and type."""
    dtype, shape = getattr(torch, column["dtype"]), column["shape"]
    parts = [
        _text(column, group, chance) if "words" in column else _row(column, group, chance) for group in range(groups)
    ]
    flat = torch.cat(parts)
    if dtype == torch.uint8:
        flat = flat.round().clamp(0, 255)
    return flat.to(dtype).reshape(groups * ROWS, *shape)


def _row(column: Mapping[str, Any], group: int, chance: torch.Generator) -> Tensor:
    found = torch.zeros(ROWS, len(column["few"]) + len(column["many"]), dtype=torch.float64)
    for place, values, shares in zip(column["few"].tolist(), column["values"], column["shares"], strict=True):
        if len(values):
            likely = shares[group] + 1e-12  # of a group that has none of them, any
            found[:, place] = values.double()[torch.multinomial(likely, ROWS, replacement=True, generator=chance)]
    if len(column["many"]):
        noise = torch.randn(ROWS, len(column["many"]), generator=chance, dtype=torch.float64)
        found[:, column["many"]] = column["means"][group].double() + _spread(column["spread"].double(), noise)
    return found


def _spread(spread: Tensor, noise: Tensor) -> Tensor:
    """Noise [n, d] with a covariance, or with variances."""
    if spread.dim() == 1:
        return noise * spread.sqrt()
    values, vectors = torch.linalg.eigh(spread)
    return torch.mm(noise * values.clamp(min=0).sqrt(), vectors.T)


def _text(column: Mapping[str, Any], group: int, chance: torch.Generator) -> Tensor:
    words, most = column["words"][group], column["shape"][0]
    found = torch.zeros(ROWS, most, dtype=torch.int64)
    if not len(words):
        return found
    tenths = column["lengths"][group].double()
    place = 10 * torch.rand(ROWS, generator=chance, dtype=torch.float64)
    low = place.floor().long().clamp(max=9)
    lengths = (tenths[low] + (place - low) * (tenths[low + 1] - tenths[low])).round().long()
    picked = torch.multinomial(column["often"][group], ROWS * most, replacement=True, generator=chance)
    found[:] = words[picked].reshape(ROWS, most)
    return found.where(torch.arange(most) < lengths[:, None], 0)
