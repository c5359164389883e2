"""Random changes to images that keep their label, drawn anew whenever a row is seen, on the device of the images."""

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


AUGMENTS: dict[str, Callable[[Columns, torch.Generator], Columns]] = {"crop and flip": crop_and_flip}
