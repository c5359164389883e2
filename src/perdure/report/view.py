"""The results as the page needs them: cells by scenario and method, with means and 95 % intervals over seeds."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from perdure.metrics import difference, interval

Cell = dict[str, Any]
Matrix = list[list[float | None]]

SCENARIOS = {
    "class": ("Class-incremental", "The task is hidden, and every class learnt so far competes for every row."),
    "domain": ("Domain-incremental", "The answers stay the same while the inputs change; the task is hidden."),
    "task": ("Task-incremental", "The task of each row is told, and only its own classes compete."),
}


@dataclass(frozen=True)
class Estimate:
    """A mean over ``count`` seeds and the half width of its 95 % interval, which a single seed doesn't have."""

    mean: float
    half: float | None
    count: int


@dataclass(frozen=True)
class Entry:
    """One method in one scenario: its finished cells, one a seed, and those that stopped early.

    Only finished cells enter a number; where none finished, the matrix and the charts show what there is.
    """

    method: str
    title: str
    style: str
    upper_bound: bool
    finished: tuple[Cell, ...]
    stopped: tuple[Cell, ...]

    @property
    def shown(self) -> tuple[Cell, ...]:
        """The cells behind the matrix and the charts."""
        return self.finished or self.stopped

    @property
    def samples(self) -> list[dict[str, Any]]:
        """What its generator made, of the first finished cell; nothing for methods without one."""
        return list(self.finished[0].get("samples") or []) if self.finished else []

    @property
    def parameters(self) -> list[dict[str, Any]]:
        """Parameters by task, which every seed has alike; nothing for methods whose network does not grow by tasks."""
        return list(self.finished[0].get("parameters") or []) if self.finished else []

    @property
    def shared(self) -> dict[str, dict[str, str]]:
        """Modules that two tasks have in common, by layer, of the first finished cell; by both names, in any order."""
        found: dict[str, dict[str, str]] = {}
        for pair in (self.finished[0].get("shared") or []) if self.finished else []:
            said = ", ".join(map(str, pair["modules"]))
            found.setdefault(pair["first"], {})[pair["second"]] = said
            found.setdefault(pair["second"], {})[pair["first"]] = said
        return found

    def values(self, name: str) -> dict[int, float]:
        """The named metric or cost by seed, finished cells only, nulls left out."""
        return {cell["seed"]: cell["numbers"][name] for cell in self.finished if cell["numbers"].get(name) is not None}

    def estimate(self, name: str) -> Estimate | None:
        """Mean and interval of the named metric or cost; None where no finished cell has it."""
        return estimate_of(list(self.values(name).values()))

    def mean(self, name: str) -> float | None:
        """Mean of the named metric or cost; None where no finished cell has it."""
        found = self.estimate(name)
        return None if found is None else found.mean

    def matrix(self) -> Matrix:
        """Mean accuracy over seeds: row i after task i, column j on task j; None where no cell has a number."""
        matrices = [cell["accuracy"] for cell in self.shown]
        rows, columns = max(map(len, matrices)), max((len(row) for rows in matrices for row in rows), default=0)
        return [
            [_mean([matrix[i][j] for matrix in matrices if i < len(matrix)]) for j in range(columns)]
            for i in range(rows)
        ]

    def initial(self) -> list[float | None]:
        """Mean accuracy on each task before anything is learnt; empty where nothing was examined."""
        rows = [cell["initial"] for cell in self.shown if cell.get("initial")]
        means = [_mean(list(column)) for column in zip(*rows, strict=True)]
        return means if any(value is not None for value in means) else []

    def seen_so_far(self) -> list[Estimate | None]:
        """Accuracy after each task, averaged over the tasks learnt by then."""
        return self._over_rows(lambda row, i: _mean(row[: i + 1]))

    def first_task(self) -> list[Estimate | None]:
        """Accuracy on the first task after each task."""
        return self._over_rows(lambda row, _: row[0])

    def _over_rows(self, pick: Callable[[list[float | None], int], float | None]) -> list[Estimate | None]:
        matrices = [cell["accuracy"] for cell in self.shown]
        picked = [[pick(m[i], i) for m in matrices if i < len(m)] for i in range(max(map(len, matrices)))]
        return [estimate_of([value for value in values if value is not None]) for values in picked]

    @property
    def traced(self) -> bool:
        """Whether accuracy was examined during training."""
        return bool(self.trace())

    def trace(self) -> dict[int, dict[int, float]]:
        """Accuracy by task and step from when its training begins, mean over the seeds examined at that step."""
        gathered: dict[int, dict[int, list[float]]] = {}
        for point in (point for cell in self.shown for point in cell["trace"] or ()):
            for task, accuracy in enumerate(point["accuracy"][: point["task"] + 1]):
                if accuracy is not None:
                    gathered.setdefault(task, {}).setdefault(point["step"], []).append(accuracy)
        return {
            task: {step: fmean(values) for step, values in sorted(steps.items())}
            for task, steps in sorted(gathered.items())
        }


@dataclass(frozen=True)
class Scenario:
    """All entries of one scenario: upper bounds first, then by falling average accuracy, the unfinished last."""

    name: str
    title: str
    explanation: str
    entries: tuple[Entry, ...]

    @property
    def drawn(self) -> list[Entry]:
        """The entries with at least one examined task."""
        return [entry for entry in self.entries if any(entry.matrix())]

    @property
    def floor(self) -> float:
        """Where the accuracy axis of this scenario begins: 0, or a round value below all points when all are high."""
        return floor_of(value for entry in self.drawn for row in entry.matrix() for value in row)


def scenarios(results: dict[str, Any]) -> list[Scenario]:
    """Group the cells; a method keeps its colour in every scenario."""
    names = titles(results)
    measured = {_key(cell): cell for cell in results["measured"]["cells"]}
    cells = [
        {**cell, "numbers": {**cell, **measured.get(_key(cell), {}), **(cell["metrics"] or {})}}
        for cell in results["cells"]
    ]
    found = []
    for name in dict.fromkeys(cell["scenario"] for cell in cells):
        here = [cell for cell in cells if cell["scenario"] == name]
        entries = [_entry(method, names[method], number, here) for number, method in enumerate(names)]
        title, explanation = SCENARIOS.get(name, (name, ""))
        found.append(Scenario(name, title, explanation, tuple(sorted(filter(None, entries), key=_order))))
    return found


def titles(results: dict[str, Any]) -> dict[str, str]:
    """The title of every method, with its label where two methods share one: "Replay (replay-500)"."""
    found = {cell["method"]: cell["title"] for cell in results["cells"]}
    shared = list(found.values())
    return {label: f"{title} ({label})" if shared.count(title) > 1 else title for label, title in found.items()}


def floor_of(values: Iterable[float | None]) -> float:
    """The highest round value, 0 or at least one half, that no value lies below."""
    lowest = min((value for value in values if value is not None), default=0.0)
    if lowest < 0.5:
        return 0.0
    steps = 20 if lowest >= 0.9 else 10
    return min(math.floor(lowest * steps + 1e-9) / steps, 0.95)


def estimate_of(values: Sequence[float]) -> Estimate | None:
    """Mean and 95 % interval of some values, None where there are none."""
    if not values:
        return None
    mean, half = interval(values)
    return Estimate(mean, half, len(values))


def difference_of(left: Entry, right: Entry, name: str) -> Estimate | None:
    """Mean of left minus right over the seeds that both finished, with its paired 95 % interval."""
    ours, theirs = left.values(name), right.values(name)
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return None
    mean, half = difference([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds], paired=True)
    return Estimate(mean, half, len(seeds))


def told_apart(left: Entry, right: Entry, name: str) -> bool:
    """Whether the paired 95 % interval of the difference excludes zero; never with one seed."""
    gap = difference_of(left, right, name)
    return gap is not None and gap.half is not None and abs(gap.mean) > gap.half


def _entry(method: str, title: str, number: int, cells: Sequence[Cell]) -> Entry | None:
    own = [cell for cell in cells if cell["method"] == method]
    if not own:
        return None
    upper_bound = bool(own[0]["upper_bound"])
    style = "bound" if upper_bound else f"m{number % 8}" + (" again" if number >= 8 else "")
    finished, stopped = (tuple(cell for cell in own if bool(cell["complete"]) is done) for done in (True, False))
    return Entry(method, title, style, upper_bound, finished, stopped)


def _order(entry: Entry) -> tuple[bool, bool, float]:
    score = entry.estimate("average_accuracy")
    return (score is None, not entry.upper_bound, 0.0 if score is None else -score.mean)


def _key(cell: Cell) -> tuple[str, str, int]:
    return (cell["method"], cell["scenario"], cell["seed"])


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
