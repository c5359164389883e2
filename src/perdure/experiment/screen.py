"""What a person sees of a run: a live bar in a terminal, plain lines elsewhere, and a table at the end."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from perdure.experiment.compare import SECONDS, SHARES, lines, megabytes, percent, seconds
from perdure.experiment.results import Results

Key = tuple[str, str, int]  # scenario, method and seed of a cell
REFRESH = 0.2  # seconds between two updates of the bar


@dataclass
class Forecast:
    """Time left: each cell's expected steps times the seconds a step takes in its method, once that was seen.

    A method that was not seen yet counts with the mean of those that were.
    """

    expected: dict[Key, int]
    done: dict[Key, int] = field(default_factory=dict)
    spent: dict[str, list[float]] = field(default_factory=dict)  # method -> [seconds, steps] of this session

    def advance(self, cell: Key, steps: int, took: float) -> None:
        """The cell stands at `steps`, and took this many seconds since the last call."""
        spent = self.spent.setdefault(cell[1], [0.0, 0.0])
        spent[0] += took
        spent[1] += max(steps - self.done.get(cell, 0), 0)
        self.done[cell] = steps
        self.expected[cell] = max(self.expected[cell], steps)

    def finish(self, cell: Key, steps: int) -> None:
        """The cell is over, after perhaps other steps than expected."""
        self.done[cell] = self.expected[cell] = steps

    @property
    def seconds_left(self) -> float | None:
        """None before anything was measured."""
        rates = {method: took / steps for method, (took, steps) in self.spent.items() if steps}
        if not rates:
            return None
        mean = sum(rates.values()) / len(rates)
        left = {cell: steps - self.done.get(cell, 0) for cell, steps in self.expected.items()}
        return sum(steps * rates.get(cell[1], mean) for cell, steps in left.items())

    @property
    def share(self) -> float:
        """The share of all expected steps that is done."""
        return sum(self.done.values()) / max(sum(self.expected.values()), 1)


class Screen:
    """Follows a run: `with Screen(console, expected) as screen`. Nothing is read off the device between two updates."""

    def __init__(self, console: Console, expected: dict[Key, int]) -> None:
        self.console = console
        self.forecast = Forecast(dict(expected))
        self.cell = ("", "", 0)
        self.accuracy: float | None = None
        self.updated = 0.0
        self.bar: Progress | None = None
        if console.is_terminal:
            words = TextColumn("{task.fields[left]}  {task.description}")
            columns = (BarColumn(), TaskProgressColumn(), words)
            self.bar = Progress(*columns, console=console, transient=True, auto_refresh=False)
            self.line = self.bar.add_task("", total=1.0, left="")

    def __enter__(self) -> "Screen":
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def begin(self, cell: Key, steps: int) -> None:
        """A cell begins, or goes on from `steps`."""
        self.cell, self.accuracy, self.updated = cell, None, time.monotonic()
        self.forecast.done[cell] = steps
        self._show(None)

    def step(self, steps: int, loss: Callable[[], float | None]) -> None:
        """A step was taken; `loss` is called only when the bar moves."""
        if time.monotonic() - self.updated >= REFRESH:
            self._advance(steps)
            self._show(loss() if self.bar else None)

    def task(self, number: int, name: str, steps: int, row: Sequence[float | None]) -> None:
        """A task is learnt; `row` is the accuracy on every task."""
        self._advance(steps)
        known = [value for value in row[: number + 1] if value is not None]
        self.accuracy = sum(known) / len(known) if known else None
        if self.bar is None:
            scenario, method, seed = self.cell
            done = f"task {number + 1} of {len(row)} ({name}) learnt, accuracy so far {percent_of(self.accuracy)}"
            left = duration(self.forecast.seconds_left)
            self.say(f"{scenario}, {method}, seed {seed}: {done}; {left}")
        self._show(None)

    def finish(self, cell: Key, steps: int) -> None:
        """A cell is over, now or in an earlier session."""
        self.forecast.finish(cell, steps)

    def say(self, sentence: str) -> None:
        """A line that stays."""
        self.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def _advance(self, steps: int) -> None:
        now = time.monotonic()
        self.forecast.advance(self.cell, steps, now - self.updated)
        self.updated = now

    def _show(self, loss: float | None) -> None:
        if self.bar is None:
            return
        scenario, method, seed = self.cell
        words = [f"{scenario} {method} seed {seed}"]
        words += [f"loss {loss:.3f}"] if loss is not None else []
        words += [f"accuracy {percent_of(self.accuracy)}"] if self.accuracy is not None else []
        left = duration(self.forecast.seconds_left)
        self.bar.update(self.line, completed=self.forecast.share, description="  ".join(words), left=left, refresh=True)


def percent_of(share: float | None) -> str:
    """`92.6 %`."""
    return "unknown" if share is None else f"{share * 100:.1f} %"


def duration(left: float | None) -> str:
    """`3 min left`, roughly."""
    if left is None:
        return "time left unknown"
    if left < 90:
        return f"{left:.0f} s left"
    return f"{left / 60:.0f} min left" if left < 5400 else f"{left / 3600:.1f} h left"


def table(results: Results) -> list[Table]:
    """The results as one table a scenario."""
    found = lines(results)
    tables = []
    for scenario in dict.fromkeys(line.scenario for line in found):
        members = [line for line in found if line.scenario == scenario]
        title = f"scenario {scenario}: per cent, mean ± 95 % interval over seeds"
        caption = "* upper bound, sees all" if any(line.upper_bound for line in members) else None
        here = Table(
            title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0)
        )
        here.title_justify = here.caption_justify = "left"
        here.add_column("method")
        for head in (*SHARES.values(), *SECONDS.values(), "memory MB"):
            here.add_column(head, justify="right", min_width=max(map(len, head.split())))
        for line in members:
            name = f"{line.method} *" if line.upper_bound else line.method
            shares = [percent(line.means.get(key)) for key in SHARES]
            times = [seconds(line.means.get(key)) for key in SECONDS]
            here.add_row(name, *shares, *times, megabytes(line.means.get("memory_bytes")))
        tables.append(here)
    return tables
