"""All benchmarks: each file in a process of its own; BENCHMARKS.md and its pictures.

make bench            all of them
make bench ONLY=steps one of them; the rows of the others stay as they were
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

from harness import BUILD, HERE, Row, alone

HOME = HERE.parent
PICTURES = HOME / "docs" / "benchmarks"
# file: its title, and what its numbers are
PARTS = {
    "steps": "Steps and evaluation",
    "importances": "The Fisher information",
    "buffers": "The buffer",
    "disk": "Larger than RAM",
    "growth": "A step at task 100",
    "curves": "How cost grows",
    "saves": "Save points",
    "images": "Images",
    "program": "The program",
    "peers": "Against Avalanche",
}
HEAD = """# Benchmarks

Written by `make bench`; do not edit. Each file of `benchmarks/` runs in a process of its own, on one thread, its cases
in turns. A number is the median over the rounds of one run, ± the distance between their quartiles; ratios are of CPU
seconds (in brackets: of wall seconds), taken within a round, so that a busy machine slows both sides. A row misses only
if its median misses by more than that spread.
"""


def measured(name: str) -> dict:
    """A file's rows, with the machine's load before and after."""
    before, begun = os.getloadavg()[0], time.time()
    rows = json.loads(alone(f"{name}.py"))
    return {
        "rows": rows, "load": [before, os.getloadavg()[0]], "seconds": time.time() - begun,
        "date": time.strftime("%Y-%m-%d"), "machine": machine(),
    }  # fmt: skip


def machine() -> str:
    """Processor, cores, torch."""
    import torch

    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = names[0].split(":")[1].strip() if names else platform.processor()
    return f"{processor}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"


def number(row: Row) -> str:
    """`1.04 ± 0.02 (1.05)`."""
    digits = 2 if row.median < 100 else 0
    shown = f"{row.median:.0e}" if 0 < row.median < 0.001 else f"{row.median:.{digits}f} ± {row.spread:.{digits}f}"
    unit = {"x": "", "": ""}.get(row.unit, f" {row.unit}")
    wall = f" ({sorted(row.wall)[len(row.wall) // 2]:.2f})" if row.wall else ""
    return f"{shown}{unit}{wall}"


def written(found: dict[str, dict]) -> str:
    """The page."""
    lines = [HEAD]
    for name, title in PARTS.items():
        if name not in found:
            continue
        part = found[name]
        rows = [Row(**row) for row in part["rows"]]
        load = " to ".join(f"{value:.1f}" for value in part["load"])
        about = f"{part['date']}, {part['seconds']:.0f} s, load {load}; {part['machine']}"
        lines.append(f"## {title}\n\n`benchmarks/{name}.py`, {about}.\n")
        lines.append("| work | against | measured | reach | |\n| --- | --- | --- | --- | --- |")
        for row in rows:
            reach = "" if row.reach is None else f"{row.direction} {row.reach:g}"
            verdict = row.verdict + (f"; {row.note}" if row.note else "")
            lines.append(f"| {row.work} | {row.against} | {number(row)} | {reach} | {verdict} |")
        lines.append(f"\n![{title}](docs/benchmarks/{name}.svg)\n")
    return "\n".join(lines)


def drawn(name: str, rows: list[Row]) -> None:
    """The picture of a part."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "perdure"
    from matplotlib import pyplot

    figure = curves(pyplot, rows) if name == "curves" else bars(pyplot, rows)
    PICTURES.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURES / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)


def bars(pyplot: Any, rows: list[Row]) -> Any:
    """A bar for each row that has something to reach: how much of it was needed."""
    rows = [row for row in rows if row.reach] or rows
    reached = any(row.reach for row in rows)
    share = [row.median / (row.reach or 1) if row.direction == "at most" else row.reach / row.median for row in rows]
    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.36 * len(rows)))
    colours = ["#b3452c" if row.verdict.startswith("misses") else "#2a7d4f" for row in rows]
    axes.barh(range(len(rows)), share, color=colours, height=0.62)
    axes.axvline(1.0, color="#555555", linewidth=1)
    axes.set_yticks(range(len(rows)), [row.work for row in rows], fontsize=8)
    axes.invert_yaxis()
    label = "share of what was to be reached; left of the line is better" if reached else "measured"
    axes.set_xlabel(label, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def curves(pyplot: Any, rows: list[Row]) -> Any:
    """Milliseconds a step and megabytes against what grows: two panels each, one line a method."""
    kinds: dict[str, list[tuple[str, list[list[float]]]]] = {}
    for row in rows:
        name, _, what = row.work.partition(", ")
        numbers = [[float(n) for n in re.findall(r"[\d.]+(?:e[+-]?\d+)?", point)] for point in row.note.split("; ")]
        kinds.setdefault(what.split(" from ")[0], []).append((name, numbers))
    figure, panels = pyplot.subplots(2, len(kinds), figsize=(3.4 * len(kinds), 5.6))
    for place, (what, lines) in enumerate(kinds.items()):
        for row, unit in enumerate(("ms a step", "MB of model and memory")):
            axes = panels[row][place]
            for name, points in lines:
                axes.plot([p[0] for p in points], [p[1 + row] for p in points], marker="o", markersize=3, label=name)
            axes.set_xscale("log")
            axes.set_ylim(bottom=0)
            axes.set_title(unit, fontsize=8)
            axes.set_xlabel(what, fontsize=8)
            axes.tick_params(labelsize=7)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0][place].legend(fontsize=6, frameon=False)
    figure.tight_layout()
    return figure


def main(only: list[str]) -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    kept = PICTURES / "results.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for name in only or PARTS:
        print(f"== {PARTS[name]}", flush=True)
        found[name] = measured(name)
        for row in (Row(**row) for row in found[name]["rows"]):
            print(f"{row.work}, against {row.against}: {number(row)}: {row.verdict}", flush=True)
        drawn(name, [Row(**row) for row in found[name]["rows"]])
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found, indent=1) + "\n")
        (HOME / "BENCHMARKS.md").write_text(written(found))
    rows = [Row(**row) for part in found.values() for row in part["rows"]]
    missed = [row.work for row in rows if row.verdict.startswith("misses")]
    print(f"{len(rows)} rows, {len(missed)} miss: {', '.join(missed) or 'none'}")


if __name__ == "__main__":
    main(sys.argv[1:])
