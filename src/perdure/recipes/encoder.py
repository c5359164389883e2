"""A frozen Hugging Face encoder: texts to vectors. Needs the extra `text`; files are hashed, and none is a pickle."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from perdure import sealed
from perdure.models.head import own_seed
from perdure.recipes.tables import TableError

WEIGHTS = ".safetensors"
USED = (".json", ".model", ".spm", ".txt", WEIGHTS)  # what configures, cuts words, and holds weights
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
TEXTS = 32  # at a time


class Encoder:
    """Mean of the last hidden states over a text's tokens, divided by its length: float32 [n, width], norm 1.

    The encoder is in eval mode and never learns. A text's vector depends on the texts beside it by rounding alone
    (1e-6). `pin` is a SHA-256 over names and bytes of the files that were read.
    """

    def __init__(self, folder: Path) -> None:
        self.pin = pinned(folder)
        transformers = optional("transformers")
        with own_seed(0):
            self.cut = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            self.model, found = transformers.AutoModel.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
        lacking = sorted(name for name in found["missing_keys"] if "pooler" not in name)  # which a mean does not use
        if lacking:
            raise TableError(f"{folder} has no weights for {lacking[0]} and {len(lacking) - 1} others of its encoder")
        self.model.float().eval().requires_grad_(False)
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.width = int(self.model.config.hidden_size)
        self.longest = int(getattr(self.model.config, "max_position_embeddings", 2**31))

    @torch.no_grad()
    def features(self, texts: Sequence[str], most: int) -> Tensor:
        """Vectors of texts, of the first `most` tokens of each, on the CPU."""
        order = sorted(
            range(len(texts)), key=lambda row: len(texts[row])
        )  # alike in length, so that little is filled up
        found = torch.zeros(len(texts), self.width, device=self.model.device)
        for start in range(0, len(order), TEXTS):
            rows = order[start : start + TEXTS]
            read = self.cut(
                [texts[row] for row in rows], padding=True, truncation=True, max_length=min(most, self.longest),
                return_tensors="pt",
            ).to(self.model.device)  # fmt: skip
            there = read["attention_mask"].unsqueeze(2).float()
            hidden = self.model(**read).last_hidden_state
            mean = (hidden * there).sum(1) / there.sum(1).clamp(min=1)
            found[torch.tensor(rows, device=found.device)] = F.normalize(mean, dim=1)
        return found.cpu()


@functools.lru_cache(maxsize=2)
def open_encoder(name: str) -> Encoder:
    """The encoder in a folder, or by its name on the hub; read once in a process.

    Raises TableError for a folder without safetensors: a pickle can run code when it is read.
    """
    folder = Path(name)
    if not folder.is_dir():
        patterns = [f"*{ending}" for ending in USED]
        try:
            folder = Path(optional("huggingface_hub").snapshot_download(name, allow_patterns=patterns))
        except (OSError, ValueError) as error:
            raise TableError(f"there is no folder {name}, and no such encoder on the hub: {error}") from error
    return Encoder(folder)


def pinned(folder: Path) -> str:
    """SHA-256 over the names and hashes of the files that are read. Raises TableError for weights that are pickles."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and path.suffix in USED)
    if not any(name.endswith(WEIGHTS) for name in names):
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        found = f"{pickles[0]}, a pickle, which can run code" if pickles else "no weights"
        raise TableError(f"{folder} holds {found}; save the encoder as {WEIGHTS} (safe_serialization=True)")
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\0{sealed.file_digest(folder / name)}\n".encode())
    return digest.hexdigest()


def optional(module: str) -> Any:
    """A module of the extra `text`; ImportError says how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError("an encoder needs transformers: pip install 'perdure[text]'") from error
