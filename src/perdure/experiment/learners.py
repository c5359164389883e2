"""A cell's learner out of an experiment's settings: to run, to tune, and to see beforehand that it can be made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure import models
from perdure.augment import AUGMENTS
from perdure.callbacks import Callback
from perdure.learner import Learner
from perdure.method import Method
from perdure.streams import Stream

if TYPE_CHECKING:
    from perdure.experiment.config import Training


def make(
    training: Training,
    recipe: dict[str, Any],
    method: Method,
    scenario: str,
    stream: Stream,
    *,
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
    save_to: Path | None = None,
    save_every: float = 10.0,
) -> Learner:
    """A new learner, all outputs opened where the protocol says so. Raises ValueError for what does not go together."""
    learner = Learner(
        models.build(recipe),
        method,
        scenario=scenario,
        heads=training.heads or "separate",
        seed=seed,
        callbacks=callbacks,
        augment=AUGMENTS.get(training.augment or ""),
        save_to=save_to,
        save_every=save_every,
        **training.model_dump(exclude={"heads", "protocol", "augment"}),
    )
    if training.protocol == "all outputs":
        learner.open_ahead(stream)
    return learner


def attempt(training: Training, recipe: dict[str, Any], method: Method, scenario: str, stream: Stream) -> None:
    """Makes a learner and lets its method begin the first task, untrained: the ValueError of a cell that cannot be."""
    learner = make(training, recipe, method, scenario, stream)
    learner.method.begin(learner, stream[0])
