"""What a method that brings an architecture has built: parameters by task, and the modules that tasks share."""

from __future__ import annotations

from perdure import methods, models
from perdure.experiment.results import ParametersPart, SharedPart
from perdure.learner import Learner
from perdure.method import Compose


def parameters(learner: Learner) -> list[ParametersPart] | None:
    """Of progressive networks, by task; None for other networks."""
    if not isinstance(learner.model, models.Columns):
        return None
    rows = zip(learner.tasks, learner.model.table(), strict=True)
    return [ParametersPart.model_validate({**row, "task": name}) for name, row in rows]


def shared(learner: Learner) -> list[SharedPart] | None:
    """Of PathNet, for every task with itself and with each one after it; None for other methods."""
    method = learner.method
    parts = method.parts if isinstance(method, Compose) else [method]
    found = next((part.shared() for part in parts if isinstance(part, methods.PathNet)), None)
    if found is None:
        return None
    tasks = list(found)
    pairs = [(one, other) for place, one in enumerate(tasks) for other in tasks[place:]]
    return [SharedPart(first=one, second=other, modules=found[one][other]) for one, other in pairs]
