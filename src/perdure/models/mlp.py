"""The multi-layer perceptron, for rows of numbers and small images."""

from collections.abc import Sequence

from torch import nn

from perdure.models.blocks import linear_block
from perdure.models.head import Network, own_seed


def mlp(inputs: int, hidden: Sequence[int] = (400, 400), *, dropout: float = 0.0, norm: bool = False) -> Network:
    """Fully connected layers with ReLU; x is flattened, [n, ...] -> [n, inputs].

    `norm` puts batch norm after each linear layer, `dropout` follows each ReLU. No hidden layer makes a linear model.
    """
    if min([inputs, *hidden]) < 1:
        raise ValueError(f"mlp: every width must be at least 1, found inputs={inputs}, hidden={list(hidden)}")
    settings = {"inputs": inputs, "hidden": list(hidden), "dropout": dropout, "norm": norm}
    with own_seed(0):
        layers: list[nn.Module] = [nn.Flatten()]
        width = inputs
        for size in hidden:
            layers += linear_block(width, size, dropout=dropout, norm=norm)
            width = size
        return Network({"name": "mlp", "settings": settings}, nn.Sequential(*layers), width)
