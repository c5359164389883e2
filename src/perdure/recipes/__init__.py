"""Recipes: a person's table into rows and back, and the network for it."""

from collections.abc import Mapping
from typing import Any

from perdure.recipes.image import Image
from perdure.recipes.plain import Plain
from perdure.recipes.recipe import Recipe
from perdure.recipes.tables import TableError, read, write
from perdure.recipes.tabular import Tabular
from perdure.recipes.text import Text
from perdure.spelling import hint

RECIPES: dict[str, type[Recipe]] = {"image": Image, "plain": Plain, "tabular": Tabular, "text": Text}


def build(settings: Mapping[str, Any]) -> Recipe:
    """Make a recipe from its settings, {"name": "text", "text": "review", "label": "sentiment"}.

    Raises ValueError for an unknown name or setting, with the nearest spelling.
    """
    name = settings.get("name", "")
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}{hint(name, RECIPES)}")
    given = {key: value for key, value in settings.items() if key != "name"}
    known = [f.name for f in RECIPES[name].fields()]
    for key in given:
        if key not in known:
            raise ValueError(f"recipe {name!r} has no setting {key!r}{hint(key, known)}")
    return RECIPES[name](**given)


__all__ = ["RECIPES", "Image", "Plain", "Recipe", "TableError", "Tabular", "Text", "build", "read", "write"]
