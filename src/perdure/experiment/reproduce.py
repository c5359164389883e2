"""Reproducing a published table: its lines run side by side, each in a folder of its own, and can be gone on with."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from rich.console import Console

from perdure import report
from perdure.experiment import proof, wrong
from perdure.experiment.results import CellPart, Results
from perdure.experiment.run import run
from perdure.experiment.settings import RequestError
from perdure.experiment.table import Line, Table, load, names
from perdure.experiment.workers import end_with


def reproduce(
    name: str, out: Path, console: Console, jobs: int = 2, only: Sequence[str] = (), fresh: bool = False
) -> list[str]:
    """Runs what is still to be run of a table, `jobs` lines at a time, and writes what there is; the lines that failed.

    `out`/results/tables/NAME holds a folder a line, and results.json and report.html of all lines; `out`/RESULTS.md is
    written from all tables there. `only` names some lines (by their folders) or rows (by their labels). Stopped at any
    instant, the same call goes on. Raises RequestError for names that are not known.
    """
    table = load(name)
    chosen = [line for line in table.lines() if not only or line.slug in only or line.row.label in only]
    if not chosen:
        known = ", ".join(line.slug for line in table.lines())
        raise RequestError(f"no line of {name} is called {', '.join(only)}; there are {known}")
    console.print(f"{name}: {len(chosen)} lines, about {table.hours} hours for the whole table on two cores")
    failed: list[str] = []
    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_quietly) as pool:
        work = {pool.submit(_run, name, line.slug, folder(out, line), fresh): line for line in chosen}
        try:
            for number, done in enumerate(as_completed(work), 1):
                error = done.exception()
                said = done.result() if error is None else f"failed: {error}"
                failed += [work[done].slug] * (error is not None)
                console.print(f"{number} of {len(chosen)}: {work[done].slug}: {said}", highlight=False, markup=False)
                write(table, out)
        except KeyboardInterrupt:
            for process in (pool._processes or {}).values():
                os.kill(process.pid or 0, signal.SIGTERM)
            pool.shutdown(cancel_futures=True)
            console.print("stopped; the same command goes on from the last save points")
            raise
    console.print(f"report: {place(out, table) / 'report.html'}; table: {out / 'RESULTS.md'}")
    if failed:
        console.print(
            f"{len(failed)} of {len(chosen)} lines failed: {', '.join(failed)}", highlight=False, markup=False
        )
    return failed


def folder(out: Path, line: Line) -> Path:
    """Where a line runs."""
    return place(out, line.table) / "lines" / line.slug


def place(out: Path, table: Table) -> Path:
    """Where a table's results lie."""
    return out / "results" / "tables" / table.name


def write(table: Table, out: Path) -> None:
    """The table's results and report from the lines that are there, and RESULTS.md from all tables."""
    wrong.register()
    merged = gather(table, out)
    if merged is not None:
        merged.write(place(out, table) / "results.json")
        report.write(merged.model_dump(mode="json", by_alias=True), place(out, table) / "report.html")
    tables = [load(name) for name in names()]
    tables += [] if table.name in names() else [table]
    run_so_far = [table for table in tables if (place(out, table) / "results.json").exists()]
    found = {table.name: Results.read(place(out, table)) for table in run_so_far}
    proof.write(tables, found, out)


def gather(table: Table, out: Path) -> Results | None:
    """The finished cells of all lines as one experiment's results; None where nothing is there."""
    there = [line for line in table.lines() if (folder(out, line) / "results.json").exists()]
    parts = [_of_variant(Results.read(folder(out, line)), line.variant) for line in there]
    if not parts:
        return None
    cells: list[CellPart] = [cell for part in parts for cell in part.cells]
    measured = parts[0].measured.model_copy(
        update={
            "started": min(part.measured.started for part in parts),
            "finished": max(part.measured.finished for part in parts),
            "peak_resident_bytes": max(part.measured.peak_resident_bytes for part in parts),
            "cells": [cell for part in parts for cell in part.measured.cells],
        }
    )
    config = {**table.experiment, "lines": [part.config for part in parts]}
    return parts[0].model_copy(update={"name": table.name, "cells": cells, "measured": measured, "config": config})


def _of_variant(results: Results, variant: int) -> Results:
    """The results with seeds that tell variants apart: seed 2 of variant 3 (counted from 0) is 302."""
    cells = [cell.model_copy(update={"seed": cell.seed + 100 * variant}) for cell in results.cells]
    taken = [cell.model_copy(update={"seed": cell.seed + 100 * variant}) for cell in results.measured.cells]
    measured = results.measured.model_copy(update={"cells": taken})
    return results.model_copy(update={"cells": cells, "measured": measured})


def _quietly() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    wrong.register()


def _run(name: str, slug: str, out: Path, fresh: bool) -> str:
    """One line to its end, in a process of its own; what it reached, in words."""
    line = next(line for line in load(name).lines() if line.slug == slug)
    results = run(line.plan(), out, Console(file=io.StringIO()), fresh)
    return proof.summary(line.table, results)
