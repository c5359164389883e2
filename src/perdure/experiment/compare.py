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
MOST = 1.05  # of its budget may a line have spent and still be ranked: the last consolidation is not foreseen exactly
SECONDS = {"train_seconds": "train s", "consolidate_seconds": "consolidate s"}


@dataclass(frozen=True, eq=False)
class Line:
    """One method of one run in one scenario: what each seed reached (`accuracy`), and means over the finished seeds.

    `spent` is the share of the budget that was used up, where there was one.
    """

    run: str
    benchmark: str
    scenario: str
    method: str
    upper_bound: bool
    accuracy: dict[int, float]
    means: dict[str, Interval]
    spent: float | None = None

    @property
    def score(self) -> float:
        """The mean of the average accuracy."""
        return self.means["average_accuracy"][0]


def compare(paths: Sequence[Path], equal_budget: bool = False) -> str:
    """The runs in these folders (or results files) as one Markdown table, the best first in each scenario.

    `equal_budget` ranks by what the same budget brought: runs without one, or with another, are refused, and a line
    that took more than 1.05 times the budget (what reads every row once cannot be ended) is none to compare with.
    """
    named = _names(paths)
    read = {path: Results.read(path) for path in paths}
    if equal_budget:
        _same_budget({named[path]: results for path, results in read.items()})
    found = [line for path in paths for line in lines(read[path], named[path])]
    if not found:
        raise RequestError(f"no finished cell in {', '.join(map(str, paths))}; run them to the end first")
    several = len({line.benchmark for line in found}) > 1
    head = ["benchmark"] * several + ["scenario", "run", "method", "seeds", *SHARES.values(), "to the best"]
    head += ["of the budget"] * equal_budget + [*SECONDS.values(), "memory MB"]
    table = [head, ["---"] * len(head)]
    groups = dict.fromkeys((line.benchmark, line.scenario) for line in found)
    for group in groups:
        members = [line for line in found if (line.benchmark, line.scenario) == group]
        over = {line for line in members if equal_budget and (line.spent or 0) > MOST}
        members.sort(key=lambda line: (not line.upper_bound, line in over, -line.score))
        best = next((line for line in members if not line.upper_bound and line not in over), None)
        for line in members:
            table.append([line.benchmark] * several + _columns(line, best, equal_budget))
    return "\n".join(f"| {' | '.join(row)} |" for row in table) + "\n"


def lines(results: Results, run: str = "") -> list[Line]:
    """One line for each scenario and method of a run, in the order of its cells; unfinished cells are left out."""
    groups: dict[tuple[str, str], list[CellPart]] = {}
    for cell in results.cells:
        if cell.complete and cell.metrics and cell.metrics.average_accuracy is not None:
            groups.setdefault((cell.scenario, cell.method), []).append(cell)
    settings = results.benchmark.settings
    benchmark = " ".join([results.benchmark.name, *(f"{key}={json.dumps(value)}" for key, value in settings.items())])
    found = []
    for (scenario, method), cells in groups.items():
        accuracy, means, spent = _accuracy(cells), _means(results, cells), _spent(results, cells)
        found.append(Line(run, benchmark, scenario, method, cells[0].upper_bound, accuracy, means, spent))
    return found


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


def _columns(line: Line, best: Line | None, budget: bool) -> list[str]:
    return [
        line.scenario,
        line.run,
        line.method.replace("|", "/"),
        str(len(line.accuracy)),
        *(percent(line.means.get(name)) for name in SHARES),
        verdict(line, best),
        *(["-" if line.spent is None else f"{100 * line.spent:.0f} %"] if budget else []),
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


def _budget(results: Results) -> dict[str, float] | None:
    """What each task might take: `{"seconds": 60}`."""
    training = results.config.get("training", {})
    steps = training.get("steps")
    found: dict[str, float] | None = {"steps": steps} if steps else training.get("budget")
    return found


def _same_budget(runs: dict[str, Results]) -> None:
    """Refuses runs that are not comparable at an equal budget, by name."""
    budgets = {name: _budget(results) for name, results in runs.items()}
    without = [name for name, budget in budgets.items() if budget is None]
    if without:
        raise RequestError(
            f"{', '.join(without)}: trained by epochs, without a budget; run with "
            "--set 'training.budget={multiply_adds = 1e12}', or seconds = 60"
        )
    if len({json.dumps(budget) for budget in budgets.values()}) > 1:
        said = "; ".join(f"{name}: {json.dumps(budget)}" for name, budget in budgets.items())
        raise RequestError(f"the budgets differ ({said}); give all runs the same")


def _spent(results: Results, cells: Sequence[CellPart]) -> float | None:
    """The share of the budget that a mean cell used up."""
    budget = _budget(results)
    if budget is None:
        return None
    [(unit, amount)] = budget.items()
    taken = {"steps": lambda cell: cell.steps, "multiply_adds": lambda cell: cell.multiply_adds}
    used = [taken[unit](cell) if unit in taken else _seconds(results, cell) for cell in cells]
    return sum(used) / len(used) / (amount * len(results.benchmark.tasks))


def _seconds(results: Results, cell: CellPart) -> float:
    part = results.seconds(cell)
    return 0.0 if part is None else part.train_seconds + part.consolidate_seconds


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """Each run by the name of its folder; by its whole path where two folders share a name."""
    short = {path: (path if path.is_dir() else path.parent).resolve().name for path in paths}
    shared = len(set(short.values())) < len(set(paths))
    return {path: str(path) if shared else name for path, name in short.items()}
