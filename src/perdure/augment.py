"""Random changes to inputs that keep their label, drawn anew whenever a row is seen, on the device of the inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from perdure.batch import Columns

PADDING = 4


def crop_and_flip(x: Columns, draws: torch.Generator) -> Columns:
    """Images [n, channels, height, width], each moved by up to 4 pixels (0 comes in) and mirrored half of the time.

    As in the papers on CIFAR-10: a random crop of the image padded by 4 pixels, then a random horizontal flip. Raises
    ValueError for what is no image.
    """
    if not isinstance(x, Tensor) or x.ndim != 4:
        found = list(x.shape) if isinstance(x, Tensor) else "named columns"
        raise ValueError(f"crop and flip takes images [n, channels, height, width], found {found}")
    count, _, height, width = x.shape
    top, left = torch.randint(2 * PADDING + 1, (2, count, 1), generator=draws, device=x.device)
    flipped = torch.randint(2, (count, 1), generator=draws, device=x.device).bool()
    rows = top + torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device).expand(count, width)
    columns = left + torch.where(flipped, columns.flip(1), columns)
    padded = F.pad(x, [PADDING] * 4).permute(0, 2, 3, 1)
    image = torch.arange(count, device=x.device)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class Unseen:
    """Names beside each item another that its user was not seen with, {"other": int64 [n]}, for objective "ranking".

    As `augment=` it draws anew whenever a row is seen, uniformly among the items added so far, as BPR does (Rendle et
    al. 2009). The Learner shows it the rows of each task before they are learnt, so that nothing is known of the
    future; it is no part of a learner's state: `add` the rows of the past to the one that is given to `Learner.load`.
    A user who was seen with nearly everything may, after `tries` draws, get an item that was seen.
    """

    def __init__(self, tries: int = 16) -> None:
        if tries < 1:
            raise ValueError(f"tries is {tries}; it is how many items are drawn for each row, at least 1")
        self.tries = tries
        self.seen = torch.empty(0, 2, dtype=torch.long)
        self._tables: tuple[Tensor, Tensor, Tensor] = (self.seen[:, 0], self.seen[:, 0], self.seen[:, 0])

    def add(self, x: Columns) -> None:
        """Users and the items that they were seen with: {"user": [n], "item": [n]}."""
        pairs = torch.stack([_named(x, "user"), _named(x, "item")], 1).cpu()
        self.seen = torch.unique(torch.cat([self.seen, pairs]), dim=0)
        users, user = torch.unique(self.seen[:, 0], return_inverse=True)
        items, item = torch.unique(self.seen[:, 1], return_inverse=True)
        self._tables = users, items, (user * len(items) + item).sort().values

    def meet(self, x: Columns, generator: torch.Generator) -> None:
        """What the Learner calls: `add`."""
        self.add(x)

    @property
    def users(self) -> list[int]:
        """Who was added, in ascending order."""
        found: list[int] = self._tables[0].tolist()
        return found

    def items(self, user: int) -> list[int]:
        """What a user was seen with, in ascending order."""
        found: list[int] = self.seen[self.seen[:, 0] == user, 1].tolist()
        return found

    def __call__(self, x: Columns, draws: torch.Generator) -> Columns:
        """The inputs with "other"; ValueError before anything was added."""
        if len(self.seen) == 0:
            raise ValueError("no items are known to draw from: call add(x) with the rows that are to be learnt")
        users, items, keys = (table.to(_named(x, "user").device) for table in self._tables)
        user = torch.searchsorted(users, _named(x, "user").contiguous()).clamp(max=len(users) - 1)
        strange = users[user] != _named(x, "user")
        drawn = torch.randint(len(items), (len(user), self.tries), generator=draws, device=user.device)
        found = user[:, None] * len(items) + drawn
        near = torch.searchsorted(keys, found).clamp(max=len(keys) - 1)
        free = (keys[near] != found) | strange[:, None]
        first = free.int().argmax(1, keepdim=True)  # of the first that is free; the first where none is
        return {**dict(x), "other": items[drawn.gather(1, first)[:, 0]]}


def _named(x: Columns, name: str) -> Tensor:
    if not isinstance(x, dict) or name not in x:
        raise ValueError(f'rows of ratings are {{"user": ..., "item": ...}}; found no {name!r}')
    return x[name]


AUGMENTS: dict[str, Callable[[Columns, torch.Generator], Columns]] = {"crop and flip": crop_and_flip}
