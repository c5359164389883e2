"""The methods: one file each, one row each in this table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perdure.host import Attached, attach
from perdure.method import Compose, Method
from perdure.methods.ewc import EWC
from perdure.methods.finetune import Finetune
from perdure.methods.joint import Joint
from perdure.methods.lwf import LwF
from perdure.methods.mas import MAS
from perdure.methods.replay import Replay
from perdure.spelling import hint

METHODS: dict[str, type[Method]] = {method.name: method for method in (Finetune, Joint, EWC, MAS, LwF, Replay)}


def build(settings: Mapping[str, Any]) -> Method:
    """The method that `Method.settings()` describes: {"name": "ewc", "strength": 2.0} or {"parts": [...]}.

    Raises ValueError for an unknown name or setting, with the nearest spelling.
    """
    if "parts" in settings:
        return Compose([build(part) for part in settings["parts"]])
    name = settings.get("name", "")
    if name not in METHODS:
        raise ValueError(f"there is no method {name!r}{hint(name, METHODS)}")
    given = {key: value for key, value in settings.items() if key != "name"}
    known = [f.name for f in METHODS[name].fields()]
    for key in given:
        if key not in known:
            raise ValueError(f"method {name!r} has no setting {key!r}{hint(key, known)}")
    return METHODS[name](**given)


__all__ = [
    "EWC",
    "MAS",
    "METHODS",
    "Attached",
    "Compose",
    "Finetune",
    "Joint",
    "LwF",
    "Method",
    "Replay",
    "attach",
    "build",
]
