"""One update in a process of its own, so that answers are not slowed: `python -m perdure.service.work '{...}'`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from perdure.recipes.tables import TableError
from perdure.service.feedback import Feedback
from perdure.store.arrival import RefusedError
from perdure.store.store import Store


def update(root: str, name: str, batch: str, build: str | None, accept_shift: bool) -> None:
    """Teaches a store a batch of feedback, and notes what became of it. Raises StoreError where the store is busy."""
    store = Store(name, root, build=None if build is None else named(build))
    feedback = Feedback(store.folder, store.settings["keep_rows"])
    try:
        outcome = store.update(feedback.table(batch), accept_shift=accept_shift)
    except (RefusedError, TableError) as error:
        feedback.note(batch, "refused", None, [str(error)])
        return
    feedback.note(batch, outcome.kind, outcome.version, outcome.why)


def named(build: str) -> Callable[[], Any]:
    """The function that "module:function" names; it comes from the command line, never from a request."""
    module, _, function = build.partition(":")
    found: Callable[[], Any] = getattr(import_module(module), function)
    return found


if __name__ == "__main__":
    update(**json.loads(sys.argv[1]))
