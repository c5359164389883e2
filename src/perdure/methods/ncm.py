"""The nearest class mean on frozen features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from perdure.methods.frozen import Frozen


@dataclass(eq=False)
class NCM(Frozen):
    """Nearest class mean (Mensink et al. 2013; for continual learning Janson et al. 2022).

    score_c = f . mu_c - |mu_c|^2 / 2, which is -|f - mu_c|^2 / 2 but for a part that all columns share: f are the
    features of a row, mu_c their mean over the rows of column c, [columns, features].

    Cost: a forward pass a row. Memory: a mean a column. The first thing to try with a pretrained body, and the bar
    for everything that trains: frozen ViT features and this reach 0.84 on 10-task Split CIFAR-100 (Janson). With a
    body that is not pretrained use `SLDA`, which knows which features go together.
    """

    name: ClassVar[str] = "ncm"
    title: ClassVar[str] = "Nearest class mean"
    paper: ClassVar[str] = "Mensink et al. 2013 (TPAMI); Janson et al. 2022, arXiv:2210.04428"
    cost: ClassVar[str] = "one forward pass over the rows; a mean a class"

    def classifier(self) -> tuple[Tensor, Tensor]:
        """The means, and minus half their squared lengths."""
        mean = self.mean
        return mean, -mean.square().sum(1) / 2
