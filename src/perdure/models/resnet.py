"""The reduced ResNet-18 that the continual-learning literature compares on."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu

from perdure.models.head import Network, own_seed


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016): relu(f(x) + x); a 1x1 convolution where shapes differ.

    Shapes: [n, inputs, h, w] -> [n, outputs, ceil(h / stride), ceil(w / stride)].
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return relu(self.body(x) + self.shortcut(x))


def resnet18(shape: Sequence[int] = (3, 32, 32), width: int = 20) -> Network:
    """ResNet-18 for small images, narrowed as in GEM (Lopez-Paz and Ranzato 2017): 1.09 M parameters at width 20.

    A 3x3 stem without max-pooling, two blocks each of widths `width` * (1, 2, 4, 8), average pooling over what is
    left of the image: 8 * `width` features. `shape` is (channels, height, width) of one image, of any size.
    """
    if width < 1 or len(shape) != 3 or min(shape) < 1:
        raise ValueError(
            f"resnet18: shape is (channels, height, width) and every number at least 1, found shape={list(shape)}, "
            f"width={width}"
        )
    settings = {"shape": list(shape), "width": width}
    with own_seed(0):
        layers: list[nn.Module] = [
            nn.Conv2d(shape[0], width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        inputs = width
        for outputs, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
            layers += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
            inputs = outputs
        body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return Network({"name": "resnet18", "settings": settings}, body, inputs)
