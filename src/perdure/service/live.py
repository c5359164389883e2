"""What answers now, and the updates that run beside it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from perdure.checkpoint import CheckpointError
from perdure.service.feedback import Feedback
from perdure.store import drift
from perdure.store.folder import StoreError
from perdure.store.store import Store, predicted

if TYPE_CHECKING:
    import pyarrow

    from perdure.store.update import Answerer

EVERY = 1.0  # seconds between two looks at which version is in production
AGAIN = 30  # looks until a version that could not be loaded is tried again
ROWS, BYTES = 1000, 20_000_000  # of the rows asked last, that drift is judged on; they are never on disk


@dataclass(frozen=True)
class Version:
    """A loaded version. It is never changed: a new one takes its place."""

    number: int
    answerer: Answerer


class Live:
    """The version in production, loaded; a newer one is loaded beside it and then takes its place.

    `trouble` says why the version that should answer cannot: the one before it goes on answering.
    """

    def __init__(self, store: Store) -> None:
        self.store, self.trouble = store, ""
        number = store.folder.production()
        if number is None:
            raise StoreError(f"the store {store.settings['name']!r} has no version yet, and nothing to serve")
        self.version = self._loaded(number)
        self._failed: tuple[int, int] | None = None
        self._one_at_a_time, self._one_judge = threading.Lock(), threading.Lock()
        self._recent = deque["pyarrow.Table"]()
        self._stop = threading.Event()
        self._judged: tuple[tuple[int, int], list[str]] | None = None
        self._asked = 0

    def follow(self) -> None:
        """Looks every second which version is in production, until `stop`."""
        while not self._stop.wait(EVERY):
            self.look()

    def stop(self) -> None:
        """Ends `follow`."""
        self._stop.set()

    def look(self) -> None:
        """Loads the version that is in production now, if it is another one."""
        number = -1
        try:
            number = self.store.folder.production() or 0
            if number == self.version.number:
                self.trouble, self._failed = "", None
                return
            if self._failed is not None and self._failed[0] == number and self._failed[1] > 0:
                self._failed = (number, self._failed[1] - 1)
                return
            self.version = self._loaded(number)
            self.trouble, self._failed = "", None
        except Exception as error:  # whatever is wrong with the new one, the old one answers
            self.trouble, self._failed = str(error) or type(error).__name__, (number, AGAIN)

    def predict(self, table: pyarrow.Table, min_confidence: float) -> tuple[int, pyarrow.Table]:
        """The number of the version that answered, and the rows with its answers. Raises StoreError."""
        version = self.version  # one for the whole request
        with self._one_at_a_time:  # a model's training flags and a method's caches are no affair of several threads
            found = predicted(version.answerer, table, min_confidence)
            self._remember(table)
        return version.number, found

    def drift(self) -> list[str]:
        """Sentences on the rows asked last against those that were learnt; nothing is computed twice."""
        with self._one_judge:
            with self._one_at_a_time:
                version, asked, recent = self.version, self._asked, list(self._recent)
            if self._judged is None or self._judged[0] != (version.number, asked):
                self._judged = ((version.number, asked), self._judge(version, recent))
            return self._judged[1]

    def _judge(self, version: Version, recent: list[pyarrow.Table]) -> list[str]:
        if not recent:
            return ["nothing was asked yet"]
        import pyarrow

        try:
            table = pyarrow.concat_tables(recent, promote_options="permissive")
            return drift.compared(self.store, version.answerer, table).sentences
        except (StoreError, pyarrow.ArrowException) as error:
            return [str(error)]

    def _remember(self, table: pyarrow.Table) -> None:
        self._asked += table.num_rows
        self._recent.append(table.slice(max(0, table.num_rows - ROWS)))
        while len(self._recent) > 1 and (
            sum(part.num_rows for part in self._recent) - self._recent[0].num_rows >= ROWS
            or sum(part.nbytes for part in self._recent) > BYTES
        ):
            self._recent.popleft()

    def _loaded(self, number: int) -> Version:
        if not number:
            raise CheckpointError("no version is in production any more")
        answerer = self.store.answerer(number)
        answerer.learner.model.eval()
        return Version(number, answerer)


class Updates:
    """Updates in a process of their own, one at a time."""

    def __init__(self, store: Store, feedback: Feedback, build: str | None, done: Callable[[], None]) -> None:
        self.store, self.feedback, self.build, self.done = store, feedback, build, done
        self.failure = ""
        self._alone = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether one is under way."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, rows: list[dict[str, Any]] | None, accept_shift: bool) -> str | None:
        """Begins one: the name of its rows; None where there are none to learn. Raises BlockingIOError for a second."""
        with self._alone:
            if self.running:
                raise BlockingIOError
            batch = self.feedback.batch(rows)
            if batch is None:
                return None
            root, name = self.store.folder.path.parent.resolve(), self.store.settings["name"]
            request = {"root": str(root), "name": name, "batch": batch, "build": self.build}
            words = json.dumps({**request, "accept_shift": accept_shift})
            self._thread = threading.Thread(target=self._run, args=(words,), daemon=True)
            self._thread.start()
            return batch

    def _run(self, words: str) -> None:
        polite = ["nice", "-n", "10"] if shutil.which("nice") else []
        half = str(max(1, (os.cpu_count() or 2) // 2))
        try:
            ended = subprocess.run(
                [*polite, sys.executable, "-m", "perdure.service.work", words], capture_output=True, text=True,
                env={"OMP_NUM_THREADS": half, **os.environ}, stdin=subprocess.DEVNULL, check=False,
            )  # fmt: skip
            self.failure = "" if ended.returncode == 0 else _last(ended.stderr, ended.returncode)
        except OSError as error:
            self.failure = str(error)
        self.done()


def _last(said: str, code: int) -> str:
    """Of a failed process the last line that it said."""
    return ([f"ended with {code}", *(line for line in said.splitlines() if line.strip())])[-1]
