"""Fine-tuning: plain gradient descent on each task, the baseline that forgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from perdure.method import Method


@dataclass(eq=False)
class Finetune(Method):
    """Every hook's default. Any method worth its cost beats it."""

    name: ClassVar[str] = "finetune"
    title: ClassVar[str] = "Fine-tuning"
    paper: ClassVar[str] = "McCloskey & Cohen 1989 (what it shows: catastrophic interference)"
    cost: ClassVar[str] = "nothing"
