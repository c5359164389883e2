"""A network of the user's own, given a head that grows."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from perdure.models.head import Head
from perdure.spelling import hint

USUAL_HEADS = re.compile(r"fc|head|classifier(\.\d+)?")


class Adapted(nn.Module):
    """A user's network whose output layer, at `path`, is a Head; `classes` are the labels of its first rows, in order.

    Shapes: forward gives [n, columns]; features [n, features] are what the head is called on. Raises RuntimeError
    when the network calls its head other than once, and TypeError when it doesn't return one score per column.
    """

    recipe: None = None

    def __init__(self, network: nn.Module, path: str, classes: tuple[int | str, ...]) -> None:
        super().__init__()
        self.network = network
        self.path = path
        self.classes = classes
        self.training = network.training

    @property
    def head(self) -> Head:
        """The output layer; it lives inside `network` and is registered only there."""
        head = self.network.get_submodule(self.path)
        assert isinstance(head, Head)
        return head

    def grow(self, columns: int, generator: torch.Generator) -> None:
        """Open columns of the head until there are `columns` in total."""
        self.head.grow(columns, generator)

    def features(self, x: Tensor | dict[str, Tensor]) -> Tensor:
        """What the head sees: [n, features]."""
        seen: list[Tensor] = []

        def look(_: nn.Module, inputs: tuple[Tensor]) -> None:
            seen.append(inputs[0])

        with self.head.register_forward_pre_hook(look):
            self.network(x)
        if len(seen) != 1:
            raise RuntimeError(
                f"the network called its head {self.path!r} {len(seen)} times in one pass, expected once"
            )
        return seen[0]

    def forward(self, x: Tensor | dict[str, Tensor]) -> Tensor:
        """Raw scores of every class known so far: [n, columns]."""
        scores = self.network(x)
        if not isinstance(scores, Tensor) or scores.shape[-1] != self.head.columns:
            found = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise TypeError(
                f"the network returned {found}, expected the scores of its head {self.path!r}, "
                f"[n, {self.head.columns}]; wrap it in a module that returns these alone"
            )
        return scores


def adapt(module: nn.Module, head: str | None = "fc", classes: Sequence[int | str] | None = None) -> Adapted:
    """Give a network of your own a head that grows, in place of the nn.Linear at the dotted path `head`.

    `classes` are the labels of the old layer's rows, in order: its weights stay, as the same parameters, and the
    outputs are bit for bit what they were. Without `classes` the old layer is dropped for an empty head. Nothing else
    of the network changes. `head=None` takes the last nn.Linear if it is called fc, head, classifier or classifier.N.

    Raises ValueError for a path that is wrong or classes that don't fit, TypeError for a layer or label of a wrong
    kind.
    """
    path = _usual_head(module) if head is None else head
    old = _linear_at(module, path)
    if classes is None:
        new = Head(old.in_features).to(old.weight)
    else:
        _check_classes(classes, path, old.out_features)
        new = Head(old.in_features, first=old)
    new.training = old.training
    module.set_submodule(path, new)
    return Adapted(module, path, tuple(classes or ()))


def _linear_layers(module: nn.Module) -> list[str]:
    return [path for path, layer in module.named_modules() if path and type(layer) is nn.Linear]


def _usual_head(module: nn.Module) -> str:
    found = _linear_layers(module)
    if found and USUAL_HEADS.fullmatch(found[-1]):
        return found[-1]
    raise ValueError(
        f"can't tell which layer of {type(module).__name__} is the output: its nn.Linear layers are "
        f"{', '.join(found) or 'none'}; pass head='...'"
    )


def _linear_at(module: nn.Module, path: str) -> nn.Linear:
    layers = {name: layer for name, layer in module.named_modules() if name}
    linear = _linear_layers(module)
    listing = f"the nn.Linear layers of {type(module).__name__} are {', '.join(linear) or 'none'}"
    if path not in layers:
        raise ValueError(f"the network has no layer {path!r}{hint(path, linear)} {listing}")
    found = layers[path]
    # A subclass, or a weight computed on the fly (weight norm), wouldn't give the same outputs as a plain layer.
    if type(found) is not nn.Linear or not isinstance(found.weight, nn.Parameter):
        raise TypeError(f"the layer {path!r} is a {type(found).__name__}, expected a plain nn.Linear; {listing}")
    return found


def _check_classes(classes: Sequence[int | str], path: str, rows: int) -> None:
    for label in classes:
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise TypeError(f"the label {label!r} is a {type(label).__name__}; pass plain ints or strings")
    if len(classes) != rows:
        raise ValueError(f"{len(classes)} classes were given, but the layer {path!r} has {rows} rows; name each row")
    repeated = sorted({str(label) for label in classes if list(classes).count(label) > 1})
    if repeated:
        raise ValueError(f"the classes {', '.join(repeated)} were given more than once; name each row differently")
