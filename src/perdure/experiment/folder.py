"""The folder of a run: what it was begun with, where each cell's state lies, and who may go on in it."""

import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import perdure
from perdure.checkpoint import replace_file
from perdure.experiment.results import MachinePart, Results
from perdure.experiment.settings import RequestError
from perdure.lock import BusyError, held


class FolderError(RequestError):
    """The folder holds something else than the experiment that was asked for."""


@dataclass(frozen=True)
class Folder:
    """`config.json` (settings, version, machine, start), `cells/NAME/state.perdure`, `results.json`, `report.html`."""

    path: Path

    @property
    def config(self) -> Path:
        """What the run was begun with."""
        return self.path / "config.json"

    @property
    def results(self) -> Path:
        """What came out so far."""
        return self.path / "results.json"

    @property
    def report(self) -> Path:
        """The same for reading."""
        return self.path / "report.html"

    def state(self, cell: str) -> Path:
        """Where a cell's learner lies."""
        return self.path / "cells" / cell / "state.perdure"

    @contextmanager
    def held(self) -> Iterator[None]:
        """No other process runs in the folder meanwhile; the lock dies with its process. Not on Windows."""
        if self.path.exists() and not self.path.is_dir():
            raise FolderError(f"{self.path} is a file; a run needs a folder, take another with --out")
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with held(self.path):
                for half_written in [*self.path.glob(".*.tmp"), *self.path.glob("cells/*/.*.tmp")]:
                    half_written.unlink()  # of a process that was killed: nobody else writes here now
                yield
        except BusyError:
            said = f"another process runs in {self.path}; wait for it, or take another folder with --out"
            raise FolderError(said) from None

    def claim(self, experiment: Mapping[str, Any], machine: MachinePart, fresh: bool) -> str:
        """Takes the folder for an experiment, new or the same as before; gives the time when it began.

        `experiment` is all that makes it this one and no other. Raises FolderError when another was begun there, unless
        `fresh`, which removes its cells, results and report.
        """
        if self.config.exists() and not fresh:
            begun = self._begun()
            other = differences(begun.get("config", {}), experiment)
            if other:
                raise FolderError(
                    f"{self.path} was begun with other settings: {'; '.join(other)}. "
                    "Take another folder with --out, or begin anew in this one with --fresh"
                )
            return str(begun["started"])
        # A kill may have left a temporary file beside a state, or instead of it.
        for cell in {file.parent for file in self.path.glob("cells/*/*state.perdure*")}:
            shutil.rmtree(cell)
        self.results.unlink(missing_ok=True)
        self.report.unlink(missing_ok=True)
        started = now()
        known = {"perdure": perdure.__version__, "started": started, "machine": machine.model_dump()}
        content = {**known, "config": experiment}
        replace_file(self.config, f"{json.dumps(content, indent=1)}\n".encode())
        return started

    def _begun(self) -> dict[str, Any]:
        try:
            begun: dict[str, Any] = json.loads(self.config.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FolderError(f"{self.config} is damaged ({error}); begin anew with --fresh") from None
        return begun

    def earlier_peak(self) -> int:
        """The peak of memory in earlier pieces of this run, bytes."""
        return Results.read(self.results).measured.peak_resident_bytes if self.results.exists() else 0


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """`training.epochs is 1 there and 2 here`, for every setting that differs."""
    there, here = dict(_leaves(before, "")), dict(_leaves(after, ""))
    return [
        f"{place} is {there.get(place, 'not set')} there and {here.get(place, 'not set')} here"
        for place in dict.fromkeys([*there, *here])
        if there.get(place) != here.get(place)
    ]


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{place}.{key}" if place else key)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{place}[{number}]")
    else:
        yield place, value


def now() -> str:
    """The time, to the second, with its zone."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine(threads: int, device: str) -> MachinePart:
    """What this process runs on."""
    sizes = ("SC_PAGE_SIZE", "SC_PHYS_PAGES")
    known = hasattr(os, "sysconf") and all(size in os.sysconf_names for size in sizes)
    return MachinePart(
        platform=platform.system(),
        processor=platform.machine(),
        cores=os.cpu_count() or 1,
        threads=threads,
        memory_bytes=os.sysconf(sizes[0]) * os.sysconf(sizes[1]) if known else None,
        python=platform.python_version(),
        torch=torch.__version__,
        device=device,
    )


def peak_resident_bytes() -> int:
    """The most memory that this process ever held; 0 on Windows, which does not tell."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes everywhere but there
