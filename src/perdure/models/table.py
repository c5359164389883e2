"""The table of built-in models: made from a recipe, drawn anew, and told apart from trained ones."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from perdure.models.columns import columns
from perdure.models.convnet import convnet
from perdure.models.head import own_seed
from perdure.models.mlp import mlp
from perdure.models.modular import Modular
from perdure.models.ratings import ratings
from perdure.models.resnet import resnet18
from perdure.models.tabular import tabular
from perdure.models.text import text
from perdure.spelling import hint

CHOSEN: dict[str, Callable[..., nn.Module]] = {"convnet": convnet, "mlp": mlp, "resnet18": resnet18}
# Made out of a chosen one by the methods that bring an architecture, Progressive and PathNet; and by recipes.
BROUGHT: dict[str, Callable[..., nn.Module]] = {
    "columns": columns,
    "modular": Modular,
    "ratings": ratings,
    "tabular": tabular,
    "text": text,
}
MODELS = {**CHOSEN, **BROUGHT}


def build(recipe: Mapping[str, Any]) -> nn.Module:
    """Make a built-in model from its recipe, {"name": "mlp", "settings": {"inputs": 784}}.

    Raises ValueError for an unknown name or setting, with the nearest spelling.
    """
    name, settings = recipe["name"], recipe.get("settings", {})
    if name not in MODELS:
        raise ValueError(f"no model is called {name!r}{hint(name, MODELS)} Known are {', '.join(sorted(MODELS))}")
    known = inspect.signature(MODELS[name]).parameters
    for setting in settings:
        if setting not in known:
            raise ValueError(f"{name} has no setting {setting!r}{hint(setting, known)}")
    for setting, parameter in known.items():
        if parameter.default is parameter.empty and setting not in settings:
            raise ValueError(f"{name} needs the setting {setting!r}, found {', '.join(settings) or 'none'}")
    return MODELS[name](**settings)


def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Draw every weight of a built-in model anew, in place, as its factory would from a seed out of `generator`.

    Drawn on the CPU, so that the same generator gives the same weights on every device. Raises ValueError for a model
    that has no recipe, or whose head has grown.
    """
    recipe = getattr(model, "recipe", None)
    if recipe is None:
        raise ValueError(f"{type(model).__name__} has no recipe; only a built-in model can be initialised")
    if model.grown:
        raise ValueError("the model knows classes already; initialise it before it grows")
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))
    fresh = build(recipe)
    with own_seed(seed):
        for module in fresh.modules():  # in the order of definition, which is the order in which factories draw
            reset = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
    model.load_state_dict(fresh.state_dict())


def untouched(model: nn.Module) -> bool:
    """Tell whether a model is a built-in as its factory made it: nothing trained, loaded or grown."""
    recipe = getattr(model, "recipe", None)
    if recipe is None or model.grown:
        return False
    fresh, state = build(recipe).state_dict(), model.state_dict()
    return fresh.keys() == state.keys() and all(
        torch.equal(tensor.cpu(), fresh[name].to(tensor.dtype)) for name, tensor in state.items()
    )
