"""Which layer of a user's network is its output, and the reasons why a layer cannot become a head that grows."""

import re
from collections.abc import Sequence

from torch import nn

from perdure.spelling import hint

# As torchvision, timm and Hugging Face call the layer that gives the scores.
USUAL_HEADS = re.compile(r"fc|head|head\.fc|heads\.head|classifier(\.\d+|\.out_proj)?|score|logits|output")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def found(module: nn.Module) -> str:
    """The dotted path of the output layer.

    That which `get_classifier()` gives (timm); else the last nn.Linear, if it is called as output layers are; else the
    only nn.Linear that is. Raises ValueError, which lists the candidates.
    """
    named = _named_by_itself(module)
    if named is not None:
        return named
    linear = linear_layers(module)
    usual = [path for path in linear if USUAL_HEADS.fullmatch(path)]
    if usual and (usual[-1] == linear[-1] or len(usual) == 1):
        return usual[-1]
    raise ValueError(
        f"can't tell which layer of {type(module).__name__} is the output: {_listing(module)}; pass head='...'"
        f"{_of_convolutions(module)}"
    )


def linear_at(module: nn.Module, path: str) -> nn.Linear:
    """The plain nn.Linear at the path. Raises ValueError or TypeError, with the reason, for any other layer."""
    layers = {name: layer for name, layer in module.named_modules(remove_duplicate=False) if name}
    if path not in layers:
        near = hint(path, linear_layers(module))
        raise ValueError(f"the network has no layer {path!r}{near} {_listing(module)}{_of_convolutions(module)}")
    layer = layers[path]
    if isinstance(layer, CONVOLUTIONS):
        raise TypeError(
            f"the layer {path!r} is a {type(layer).__name__}: a head takes one vector a row, and a convolution scores "
            "every place. Pool first, as in nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), "
            f"nn.Linear({layer.in_channels}, {layer.out_channels})), and name that nn.Linear"
        )
    if nn.utils.parametrize.is_parametrized(layer):
        computed = ", ".join(layer.parametrizations)
        raise TypeError(
            f"the layer {path!r} is a {type(layer).__name__}, whose {computed} is computed anew on every pass, so that "
            "rows added to it would not be what they are drawn as: take the parametrization off "
            "(torch.nn.utils.parametrize.remove_parametrizations)"
        )
    # A subclass, or a weight set by a hook (the older weight norm), wouldn't give the same outputs as a plain layer.
    if type(layer) is not nn.Linear or not isinstance(layer.weight, nn.Parameter):
        raise TypeError(
            f"the layer {path!r} is a {type(layer).__name__}, expected a plain nn.Linear; {_listing(module)}"
        )
    _refuse_shared(module, path, layer)
    return layer


def linear_layers(module: nn.Module) -> list[str]:
    """The paths of all plain nn.Linear layers, in the order in which they were registered."""
    return [path for path, layer in module.named_modules() if path and type(layer) is nn.Linear]


def check_classes(classes: Sequence[int | str], path: str, rows: int) -> None:
    """Raises where the classes are no names of the layer's rows."""
    for label in classes:
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise TypeError(f"the label {label!r} is a {type(label).__name__}; pass plain ints or strings")
    if len(classes) != rows:
        raise ValueError(f"{len(classes)} classes were given, but the layer {path!r} has {rows} rows; name each row")
    repeated = sorted({str(label) for label in classes if list(classes).count(label) > 1})
    if repeated:
        raise ValueError(f"the classes {', '.join(repeated)} were given more than once; name each row differently")


def _named_by_itself(module: nn.Module) -> str | None:
    asked = getattr(module, "get_classifier", None)
    layer = asked() if callable(asked) else None
    return next((path for path, other in module.named_modules() if path and other is layer), None)


def _refuse_shared(module: nn.Module, path: str, layer: nn.Linear) -> None:
    """A layer that stands in two places, or whose parameters do, cannot be replaced in one of them."""
    places = [name for name, other in module.named_modules(remove_duplicate=False) if other is layer]
    if len(places) > 1:
        raise ValueError(
            f"the layer {path!r} is registered in several places ({', '.join(places)}): one of them would keep the old "
            "layer. Register it once, or give each place a layer of its own"
        )
    own = {id(p) for p in layer.parameters()}
    tied = [name for name, p in module.named_parameters(remove_duplicate=False) if id(p) in own]
    others = [name for name in tied if not name.startswith(f"{path}.")]
    if others:
        raise ValueError(
            f"the weight of the layer {path!r} is tied to {', '.join(others)}: growing one would not grow the other. "
            "Untie it first: layer.weight = nn.Parameter(layer.weight.detach().clone())"
        )


def _listing(module: nn.Module) -> str:
    return f"its nn.Linear layers are {', '.join(linear_layers(module)) or 'none'}"


def _of_convolutions(module: nn.Module) -> str:
    """Where a convolution with one place a kernel comes last (SqueezeNet), a word on it."""
    layers = [(path, layer) for path, layer in module.named_modules() if isinstance(layer, (nn.Linear, *CONVOLUTIONS))]
    if not layers or not isinstance(layers[-1][1], CONVOLUTIONS) or max(layers[-1][1].kernel_size) > 1:
        return ""
    return f"; the 1x1 convolution {layers[-1][0]!r} is no head: pool first, and score by an nn.Linear"
