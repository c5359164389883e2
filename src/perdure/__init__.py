"""Perdure teaches PyTorch models new tasks without forgetting the old ones."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.budget import MultiplyAdds as MultiplyAdds
    from perdure.budget import Seconds as Seconds
    from perdure.budget import Steps as Steps
    from perdure.callbacks import Callback as Callback
    from perdure.data import Batch as Batch
    from perdure.data import Rows as Rows
    from perdure.data import Task as Task
    from perdure.experiment.advise import advise as advise
    from perdure.experiment.candidates import Needs as Needs
    from perdure.host import attach as attach
    from perdure.learner import Learner as Learner
    from perdure.method import Method as Method
    from perdure.several import Several as Several
    from perdure.store.store import Store as Store
    from perdure.streams import Stream as Stream

    __version__: str

# What `import perdure` gives is imported when it is first asked for: torch alone takes seconds.
_NAMES = {
    "Batch": "data",
    "Callback": "callbacks",
    "Learner": "learner",
    "Method": "method",
    "MultiplyAdds": "budget",
    "Needs": "experiment.candidates",
    "Rows": "data",
    "Seconds": "budget",
    "Several": "several",
    "Steps": "budget",
    "Store": "store.store",
    "Stream": "streams",
    "Task": "data",
    "advise": "experiment.advise",
    "attach": "host",
}
_ROOMS = (
    "budget",
    "callbacks",
    "checkpoint",
    "data",
    "datasets",
    "experiment",
    "importance",
    "integrations",
    "learner",
    "memory",
    "method",
    "methods",
    "metrics",
    "models",
    "objective",
    "recipes",
    "report",
    "several",
    "streams",
)

__all__ = sorted([*_NAMES, *_ROOMS])


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("perdure")
    if name in _ROOMS:
        return import_module(f"perdure.{name}")
    if name in _NAMES:
        return getattr(import_module(f"perdure.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'perdure' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
