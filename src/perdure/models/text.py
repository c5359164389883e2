"""The text network: a bag of hashed words and word pairs, for texts that are learnt from scratch in seconds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perdure.models.blocks import linear_block
from perdure.models.head import Network, own_seed

SCALE = 16.0  # a mean of many vectors is small, and learns slowly
MIXER = 0x9E3779B97F4A7C15 - (1 << 64)  # the golden ratio's bits: Knuth's multiplicative hash


class Bag(nn.EmbeddingBag):
    """The mean over a text's n-grams of a learnt vector each (Joulin et al. 2017, fastText).

    x holds hashed words, int [n, words], 0 where a text has ended. Runs of 1 to `ngrams` words are hashed to one of
    `buckets` vectors of `width` numbers: [n, words] -> [n, width]. A text without words is all zeros.
    """

    def __init__(self, buckets: int, width: int, ngrams: int) -> None:
        self.buckets, self.ngrams = buckets, ngrams
        super().__init__(buckets + 1, width, mode="sum", padding_idx=0)

    def reset_parameters(self) -> None:
        """Draws small vectors: what is learnt soon outweighs what was drawn."""
        super().reset_parameters()
        with torch.no_grad():
            self.weight.mul_(0.1)

    def ids(self, x: Tensor) -> Tensor:
        """The buckets of all n-grams, int64 [n, words * ngrams], 0 for none."""
        words = x.long()
        run, found = words, [torch.where(words == 0, 0, 1 + (_mixed(words) & (self.buckets - 1)))]
        for size in range(1, self.ngrams):
            run = F.pad((_mixed(run) + words.roll(-size, 1))[:, :-size], (0, size))
            whole = F.pad(words[:, size:], (0, size)) != 0
            found.append(torch.where(whole, 1 + (_mixed(run) & (self.buckets - 1)), 0))
        return torch.cat(found, 1)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """The mean, times 16: [n, words] -> [n, width]."""
        ids = self.ids(x)
        return super().forward(ids) * self._share(ids)[:, None]

    def share(self, x: Tensor) -> Tensor:
        """What each vector counts in a text's sum: 16 / n-grams, [n]."""
        return self._share(self.ids(x))

    def _share(self, ids: Tensor) -> Tensor:
        return SCALE / (ids != 0).sum(1).clamp(min=1).to(self.weight.dtype)


def _mixed(value: Tensor) -> Tensor:
    """A hash's bits spread over the lower ones, int64; products wrap around."""
    spread = value * MIXER
    return spread ^ (spread >> 29)


def text(
    buckets: int = 2**16, width: int = 32, ngrams: int = 2, hidden: Sequence[int] = (32,), *, dropout: float = 0.0
) -> Network:
    """A bag of hashed n-grams and fully connected layers: hashed words, int [n, words] (0: none) -> [n, columns].

    `buckets`, a power of two, is how many vectors there are; n-grams that share one are not told apart.
    """
    if buckets < 2 or buckets & (buckets - 1) or min([width, ngrams, *hidden]) < 1:
        raise ValueError(
            f"text: buckets is a power of two and every other number at least 1, found buckets={buckets}, "
            f"width={width}, ngrams={ngrams}, hidden={list(hidden)}"
        )
    settings = {"buckets": buckets, "width": width, "ngrams": ngrams, "hidden": list(hidden), "dropout": dropout}
    with own_seed(0):
        layers: list[nn.Module] = [Bag(buckets, width, ngrams)]
        for size in hidden:
            layers += linear_block(width, size, dropout=dropout)
            width = size
        return Network({"name": "text", "settings": settings}, nn.Sequential(*layers), width)
