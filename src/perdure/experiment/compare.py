"""Several runs as one table: means, 95 % intervals over seeds, and what is no more than noise."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from perdure.experiment.results import CellPart, Results
from perdure.experiment.settings import RequestError
from perdure.metrics import difference, interval

Interval = tuple[float, float | None]  # a mean, and the half width of its 95 % interval where there is one
SHARES = {"average_accuracy": "average accuracy", "forgetting": "forgetting", "backward_transfer": "backward transfer"}
SECONDS = {"train_seconds": "train s", "consolidate_seconds": "consolidate s"}


@dataclass(frozen=True)
class Line:
    """One method of one run in one scenario: what each seed reached (`accuracy`), and means over the finished seeds."""

    run: str
    benchmark: str
    scenario: str
    method: str
    upper_bound: bool
    accuracy: dict[int, float]
    means: dict[str, Interval]

    @property
    def score(self) -> float:
        """The mean of the average accuracy."""
        return self.means["average_accuracy"][0]


def compare(paths: Sequence[Path]) -> str:
    """The runs in these folders (or results files) as one Markdown table, the best first in each scenario."""
    named = _names(paths)
    found = [line for path in paths for line in lines(Results.read(path), named[path])]
    if not found:
        raise RequestError(f"no finished cell in {', '.join(map(str, paths))}; run them to the end first")
    several = len({line.benchmark for line in found}) > 1
    head = ["benchmark"] * several + ["scenario", "run", "method", "seeds", *SHARES.values(), "to the best"]
    head += [*SECONDS.values(), "memory MB"]
    table = [head, ["---"] * len(head)]
    groups = dict.fromkeys((line.benchmark, line.scenario) for line in found)
    for group in groups:
        members = [line for line in found if (line.benchmark, line.scenario) == group]
        members.sort(key=lambda line: (not line.upper_bound, -line.score))
        best = next((line for line in members if not line.upper_bound), None)
        for line in members:
            table.append([line.benchmark] * several + _columns(line, best))
    return "\n".join(f"| {' | '.join(row)} |" for row in table) + "\n"


def lines(results: Results, run: str = "") -> list[Line]:
    """One line for each scenario and method of a run, in the order of its cells; unfinished cells are left out."""
    groups: dict[tuple[str, str], list[CellPart]] = {}
    for cell in results.cells:
        if cell.complete and cell.metrics and cell.metrics.average_accuracy is not None:
            groups.setdefault((cell.scenario, cell.method), []).append(cell)
    settings = results.benchmark.settings
    benchmark = " ".join([results.benchmark.name, *(f"{key}={json.dumps(value)}" for key, value in settings.items())])
    return [
        Line(run, benchmark, scenario, method, cells[0].upper_bound, _accuracy(cells), _means(results, cells))
        for (scenario, method), cells in groups.items()
    ]


def verdict(line: Line, best: Line | None) -> str:
    """What separates a line from the best one: paired over the seeds that both have, else Welch's interval."""
    if line.upper_bound:
        return "upper bound, sees all"
    if best is None or line is best:
        return "best"
    common = sorted(line.accuracy.keys() & best.accuracy.keys())
    paired = len(common) > 1
    if paired:
        found = difference([line.accuracy[s] for s in common], [best.accuracy[s] for s in common], paired=True)
    else:
        found = difference(list(line.accuracy.values()), list(best.accuracy.values()), paired=False)
    how = f"paired, {len(common)} seeds" if paired else "Welch"
    if found[1] is None:
        return f"{percent(found)}; noise unknown, one seed"
    noise = "within noise, " if abs(found[0]) <= found[1] else ""
    return f"{percent(found)} ({noise}{how})"


def percent(value: Interval | None) -> str:
    """`92.6 ± 0.4`, in per cent; a dash where nothing is known."""
    return "-" if value is None else _spread(value[0] * 100, None if value[1] is None else value[1] * 100)


def seconds(value: Interval | None) -> str:
    """`4.2 ± 0.3`."""
    return "-" if value is None else _spread(*value)


def megabytes(value: Interval | None) -> str:
    """Bytes as megabytes (a million bytes), `1.57`."""
    return "-" if value is None else f"{value[0] / 1e6:.2f}"


def _spread(mean: float, half: float | None) -> str:
    mean = round(mean, 1) + 0.0  # no "-0.0"
    return f"{mean:.1f}" if half is None else f"{mean:.1f} ± {half:.1f}"


def _columns(line: Line, best: Line | None) -> list[str]:
    return [
        line.scenario,
        line.run,
        line.method.replace("|", "/"),
        str(len(line.accuracy)),
        *(percent(line.means.get(name)) for name in SHARES),
        verdict(line, best),
        *(seconds(line.means.get(name)) for name in SECONDS),
        megabytes(line.means.get("memory_bytes")),
    ]


def _accuracy(cells: Iterable[CellPart]) -> dict[int, float]:
    scores = {cell.seed: cell.metrics.average_accuracy for cell in cells if cell.metrics}
    return {seed: score for seed, score in scores.items() if score is not None}


def _means(results: Results, cells: Sequence[CellPart]) -> dict[str, Interval]:
    taken = [part for cell in cells if (part := results.seconds(cell))]
    numbers: dict[str, list[float | None]] = {name: [getattr(cell.metrics, name) for cell in cells] for name in SHARES}
    numbers |= {name: [getattr(part, name) for part in taken] for name in SECONDS}
    numbers["memory_bytes"] = [float(cell.memory_bytes) for cell in cells]
    known = {name: [value for value in values if value is not None] for name, values in numbers.items()}
    return {name: interval(values) for name, values in known.items() if values}


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """Each run by the name of its folder; by its whole path where two folders share a name."""
    short = {path: (path if path.is_dir() else path.parent).resolve().name for path in paths}
    shared = len(set(short.values())) < len(set(paths))
    return {path: str(path) if shared else name for path, name in short.items()}
