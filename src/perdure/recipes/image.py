"""Images: encoded ones in a column, as pixels of one size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from perdure.fields import memory
from perdure.models import CHOSEN, build
from perdure.recipes.contents import pixel_content
from perdure.recipes.pictures import decoded, is_image, resized
from perdure.recipes.recipe import Recipe, column, fitted
from perdure.recipes.tables import TableError
from perdure.spelling import one_of

if TYPE_CHECKING:
    import pyarrow as pa

LONGEST_SIDE = 128  # pixels to which larger images are brought, where size is not set
SMALL, LAST = 32, 8  # the longest side for which two blocks do, and that of what a convolutional network ends with
WIDTHS = (32, 64, 128, 128, 128, 128)


@dataclass
class Image(Recipe):
    """A column of encoded images, {bytes, path} or bytes: uint8 [n, channels, height, width].

    image    the column
    size     [height, width]; default: the commonest size among the first update's training rows, or, where that is
             larger, the like with a longest side of 128 pixels
    net      "auto", "mlp", "convnet" or "resnet18"; auto: mlp for grey images up to 32 x 32, else convnet

    One colour image among the first update's training rows makes all images three channels. Later ones are brought
    to the same shape: stretched, not cut.
    """

    name: ClassVar[str] = "image"
    training: ClassVar[dict[str, Any]] = {"epochs": 3, "batch_size": 64, "optimizer": {"name": "adam", "lr": 0.001}}

    image: str = "image"
    size: list[int] | None = None
    net: str = "auto"
    shape: list[int] = memory(list)

    def __post_init__(self) -> None:
        one_of("net", self.net, ["auto", *CHOSEN])
        if self.size is not None:
            self.size = list(self.size)
            if len(self.size) != 2 or min(self.size) < 4:
                raise ValueError(f"size is {self.size}; it is [height, width] in pixels, at least 4 each")
        if self.image == self.label:
            raise ValueError(f"image and label are both the column {self.image!r}")

    def check_inputs(self, table: pa.Table) -> None:
        """Every image is decoded."""
        kind = column(table, self.image).type
        if not is_image(kind):
            raise TableError(f"column {self.image!r} holds {kind}, no images: {{bytes, path}} or bytes")
        for _ in decoded(table, self.image):
            pass

    def contents(self, table: pa.Table) -> Iterator[bytes]:
        """The pixels as they are in the file, before they are brought to a size."""
        return (pixel_content(pixels.shape, pixels.tobytes()) for pixels in decoded(table, self.image))

    def fit(self, table: pa.Table) -> None:
        """Size and channels."""
        super().fit(table)
        found = Counter(pixels.shape for pixels in decoded(table, self.image))
        channels = max(shape[0] for shape in found)
        sizes = Counter[tuple[int, int]]()
        for (_, height, width), count in found.items():
            sizes[height, width] += count
        self.shape = [channels, *(self.size or _limited(*max(sizes, key=lambda size: (sizes[size], size))))]

    def inputs(self, table: pa.Table) -> Tensor:
        """Pixels, uint8 [n, channels, height, width]."""
        fitted(self, bool(self.shape))
        found = np.empty((table.num_rows, *self.shape), dtype=np.uint8)
        for row, pixels in enumerate(decoded(table, self.image)):
            found[row] = resized(pixels, self.shape)
        return torch.from_numpy(found)

    def network(self) -> nn.Module:
        """A built-in network for images of this shape."""
        fitted(self, bool(self.shape))
        channels, height, width = self.shape
        longest, shortest = max(height, width), min(height, width)
        chosen = self.net
        if chosen == "auto":
            chosen = "mlp" if channels == 1 and longest <= SMALL else "convnet"
        if chosen == "mlp":
            return build({"name": "mlp", "settings": {"inputs": channels * height * width}})
        if chosen == "resnet18":
            return build({"name": "resnet18", "settings": {"shape": self.shape}})
        blocks = 2
        while longest >> blocks > LAST:
            blocks += 1
        while shortest >> blocks < 1:
            blocks -= 1
        return build({"name": "convnet", "settings": {"shape": self.shape, "widths": list(WIDTHS[:blocks])}})


def _limited(height: int, width: int) -> tuple[int, int]:
    """A size of the same form whose longest side is within the limit; no side below 4."""
    shrink = min(1.0, LONGEST_SIDE / max(height, width))
    return max(4, round(height * shrink)), max(4, round(width * shrink))
