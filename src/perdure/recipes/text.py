"""Texts: their words, hashed, and a bag of words and word pairs that is learnt from scratch in seconds."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from perdure.models import build
from perdure.recipes.contents import text_content
from perdure.recipes.recipe import Recipe, column
from perdure.recipes.tables import TableError
from perdure.recipes.values import named

if TYPE_CHECKING:
    import pyarrow as pa

# A word; of scripts that write no spaces between words (Chinese, Japanese) a character.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
BITS = 2**31 - 1


@dataclass
class Text(Recipe):
    """A column of texts: lower-cased words, hashed to 31 bits, int32 [n, most]; 0 where a text has ended.

    text     the column
    ngrams   longest run of words that has a vector of its own
    buckets  vectors, a power of two: the network hashes each run of words to one of them
    most     words kept of each text, the first ones; a stored row takes 4 bytes a word

    Nothing is fitted: a hash needs no vocabulary, so that words of later updates have their place already.
    """

    name: ClassVar[str] = "text"
    training: ClassVar[dict[str, Any]] = {"epochs": 3, "batch_size": 128, "optimizer": {"name": "adam", "lr": 0.003}}

    text: str = "text"
    ngrams: int = 2
    buckets: int = 2**16
    most: int = 512

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"most is {self.most}; it is how many words of a text are kept, at least 1")
        if self.text == self.label:
            raise ValueError(f"text and label are both the column {self.text!r}")
        self.network()

    def check_inputs(self, table: pa.Table) -> None:
        """A column of strings without a missing one; an empty text is a text."""
        for row, value in enumerate(column(table, self.text).to_pylist()):
            if value is None:
                raise TableError(f"row {row} has no text in column {self.text!r}; drop the row")
            if not isinstance(value, str):
                raise TableError(f"column {self.text!r} holds {named(value)} in row {row}, which is no text")

    def contents(self, table: pa.Table) -> Iterator[bytes]:
        """The texts without case, spaces and other ways to write the same character."""
        return (text_content(text) for text in column(table, self.text).to_pylist())

    def inputs(self, table: pa.Table) -> Tensor:
        """Hashed words, int32 [n, most]."""
        self.check_inputs(table)
        texts = column(table, self.text).to_pylist()
        found, known = np.zeros((len(texts), self.most), dtype=np.int32), dict[str, int]()
        for row, text in enumerate(texts):
            words = WORD.findall(text.lower())[: self.most]
            found[row, : len(words)] = [known.get(word) or known.setdefault(word, hashed(word)) for word in words]
        return torch.from_numpy(found)

    def network(self) -> nn.Module:
        """The built-in text network."""
        return build({"name": "text", "settings": {"buckets": self.buckets, "ngrams": self.ngrams}})


def hashed(word: str) -> int:
    """A word's number, from 1 to 2^31 - 1: the same in every process and on every machine."""
    return (zlib.crc32(word.encode()) & BITS) or 1
