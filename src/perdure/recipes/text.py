"""Texts: their words, hashed, for a bag of words that is learnt from scratch in seconds; or a frozen encoder."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from perdure.fields import memory
from perdure.models import build
from perdure.recipes.contents import text_content
from perdure.recipes.encoder import Encoder, open_encoder
from perdure.recipes.recipe import Recipe, column, fitted
from perdure.recipes.tables import TableError
from perdure.recipes.values import named

if TYPE_CHECKING:
    import pyarrow as pa

# A word; of scripts that write no spaces between words (Chinese, Japanese) a character.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
BITS = 2**31 - 1

# Vectors of norm 1 hold small numbers, which learn slowly (chosen on train rows: docs/language.md).
ABOVE_AN_ENCODER = {"epochs": 3, "batch_size": 128, "optimizer": {"name": "adam", "lr": 0.03}}


@dataclass
class Text(Recipe):
    """A column of texts: lower-cased words, hashed to 31 bits, int32 [n, most]; 0 where a text has ended.

    text     the column
    ngrams   longest run of words that has a vector of its own
    buckets  vectors, a power of two: the network hashes each run of words to one of them
    most     words kept of each text, the first ones; a stored row takes 4 bytes a word
    encoder  a folder, or a name on the Hugging Face hub: float32 [n, width] of that frozen encoder instead, of the
             first `most` tokens, and a linear layer as network (see `recipes.encoder`)

    Nothing is fitted: a hash needs no vocabulary, so that words of later updates have their place already. An encoder
    is pinned by the hash of its files: with others later rows are refused.
    """

    name: ClassVar[str] = "text"
    training: ClassVar[dict[str, Any]] = {"epochs": 3, "batch_size": 128, "optimizer": {"name": "adam", "lr": 0.003}}

    text: str = "text"
    ngrams: int = 2
    buckets: int = 2**16
    most: int = 512
    encoder: str | None = None
    pin: str = memory(str)
    width: int = memory(int)

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"most is {self.most}; it is how many words of a text are kept, at least 1")
        if self.text == self.label:
            raise ValueError(f"text and label are both the column {self.text!r}")
        if self.encoder is None:
            self.network()
        else:
            self.training = ABOVE_AN_ENCODER  # type: ignore[misc]

    @property
    def frozen(self) -> bool:
        """With an encoder."""
        return self.encoder is not None

    def fit(self, table: pa.Table) -> None:
        """Notes which encoder it is."""
        super().fit(table)
        if self.encoder is not None:
            found = open_encoder(self.encoder)
            self.pin, self.width = found.pin, found.width

    def pins(self) -> dict[str, str]:
        """The encoder."""
        return {} if self.encoder is None else {self.encoder: self.pin}

    def load_state(self, state: dict[str, Any]) -> None:
        """Puts back what `state` gave, also before there were encoders."""
        super().load_state({**self.state(), **state})

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
        """Hashed words, int32 [n, most], or the encoder's vectors, float32 [n, width]."""
        self.check_inputs(table)
        texts = column(table, self.text).to_pylist()
        if self.encoder is not None:
            return self._encoder().features(texts, self.most)
        found, known = np.zeros((len(texts), self.most), dtype=np.int32), dict[str, int]()
        for row, text in enumerate(texts):
            words = WORD.findall(text.lower())[: self.most]
            found[row, : len(words)] = [known.get(word) or known.setdefault(word, hashed(word)) for word in words]
        return torch.from_numpy(found)

    def network(self) -> nn.Module:
        """The built-in text network; above an encoder, a linear layer."""
        if self.encoder is not None:
            fitted(self, bool(self.width))
            return build({"name": "mlp", "settings": {"inputs": self.width, "hidden": []}})
        return build({"name": "text", "settings": {"buckets": self.buckets, "ngrams": self.ngrams}})

    def _encoder(self) -> Encoder:
        """The encoder that was fitted. Raises TableError for another of its name."""
        fitted(self, bool(self.pin))
        found = open_encoder(str(self.encoder))
        if found.pin != self.pin:
            raise TableError(
                f"the encoder {self.encoder} is another one than was learnt with: its files' hash is {found.pin[:12]}, "
                f"then {self.pin[:12]}; bring the old files back"
            )
        return found


def hashed(word: str) -> int:
    """A word's number, from 1 to 2^31 - 1: the same in every process and on every machine."""
    return (zlib.crc32(word.encode()) & BITS) or 1
