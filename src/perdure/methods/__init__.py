"""The methods: one file each, one row each in this table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perdure.host import Attached, attach
from perdure.method import Compose, Method
from perdure.methods.agem import AGEM
from perdure.methods.cumulative import Cumulative
from perdure.methods.der import DER, DERpp
from perdure.methods.er_ace import ErACE
from perdure.methods.ewc import EWC
from perdure.methods.finetune import Finetune
from perdure.methods.gdumb import GDumb
from perdure.methods.generative_replay import GenerativeReplay
from perdure.methods.icarl import ICaRL
from perdure.methods.joint import Joint
from perdure.methods.lwf import LwF
from perdure.methods.mas import MAS
from perdure.methods.ncm import NCM
from perdure.methods.packnet import PackNet
from perdure.methods.pathnet import PathNet
from perdure.methods.progressive import Progressive
from perdure.methods.ranpac import RanPAC
from perdure.methods.replay import Replay
from perdure.methods.si import SI
from perdure.methods.slda import SLDA
from perdure.spelling import hint

ALL: tuple[type[Method], ...] = (
    Finetune,
    Joint,
    EWC,
    MAS,
    SI,
    LwF,
    Replay,
    ErACE,
    DER,
    DERpp,
    AGEM,
    Cumulative,
    ICaRL,
    GDumb,
    GenerativeReplay,
    Progressive,
    PathNet,
    PackNet,
    NCM,
    SLDA,
    RanPAC,
)
METHODS: dict[str, type[Method]] = {method.name: method for method in ALL}


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
    "AGEM",
    "DER",
    "EWC",
    "MAS",
    "METHODS",
    "NCM",
    "SI",
    "SLDA",
    "Attached",
    "Compose",
    "Cumulative",
    "DERpp",
    "ErACE",
    "Finetune",
    "GDumb",
    "GenerativeReplay",
    "ICaRL",
    "Joint",
    "LwF",
    "Method",
    "PackNet",
    "PathNet",
    "Progressive",
    "RanPAC",
    "Replay",
    "attach",
    "build",
]
