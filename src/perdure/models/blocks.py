"""The blocks that networks of ours are made of: one layer with what follows it."""

from torch import nn


def linear_block(inputs: int, outputs: int, *, dropout: float = 0.0, norm: bool = False) -> list[nn.Module]:
    """Linear layer, batch norm (`norm`), ReLU, dropout (where above 0): [n, inputs] -> [n, outputs]."""
    layers: list[nn.Module] = [nn.Linear(inputs, outputs)]
    if norm:
        layers.append(nn.BatchNorm1d(outputs))
    layers.append(nn.ReLU())
    if dropout:
        layers.append(nn.Dropout(dropout))
    return layers


def conv_block(inputs: int, outputs: int, *, norm: bool = True) -> list[nn.Module]:
    """Convolution 3x3, batch norm (`norm`), ReLU, max-pooling 2x2: [n, inputs, h, w] -> [n, outputs, h / 2, w / 2]."""
    # A bias in front of batch norm would be subtracted again.
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm)]
    if norm:
        layers.append(nn.BatchNorm2d(outputs))
    layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return layers
