"""A small convolutional network, for images that a perceptron is too blunt for."""

from collections.abc import Sequence

from torch import nn

from perdure.models.blocks import conv_block
from perdure.models.head import Network, own_seed


def convnet(shape: Sequence[int] = (1, 28, 28), widths: Sequence[int] = (32, 64), *, norm: bool = True) -> Network:
    """One block for each of `widths`: convolution 3x3, batch norm (`norm`), ReLU, max-pooling 2x2; then flattened.

    `shape` is (channels, height, width) of one image; every block halves height and width.
    """
    if len(shape) != 3 or not widths or min(*shape, *widths) < 1:
        raise ValueError(
            f"convnet: shape is (channels, height, width), widths has at least one number, and every number is at "
            f"least 1; found shape={list(shape)}, widths={list(widths)}"
        )
    channels, height, breadth = shape
    if min(height, breadth) < 2 ** len(widths):
        raise ValueError(
            f"convnet: {len(widths)} blocks halve an image of {height}x{breadth} to nothing; use fewer widths"
        )
    settings = {"shape": list(shape), "widths": list(widths), "norm": norm}
    with own_seed(0):
        layers: list[nn.Module] = []
        for size in widths:
            layers += conv_block(channels, size, norm=norm)
            channels, height, breadth = size, height // 2, breadth // 2
        body = nn.Sequential(*layers, nn.Flatten())
        return Network({"name": "convnet", "settings": settings}, body, channels * height * breadth)
