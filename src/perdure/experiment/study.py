"""Methods side by side on a stream of your own, from Python: `study(stream, learners, out=...)`, a table, a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

import perdure
from perdure import report
from perdure.experiment import compare
from perdure.experiment.config import Entry
from perdure.experiment.folder import Folder, machine, now, peak_resident_bytes
from perdure.experiment.results import BenchmarkPart, CellPart, MachinePart, MeasuredPart, Results, SecondsPart
from perdure.experiment.run import Cell, outcome
from perdure.experiment.workers import side_by_side
from perdure.learner import Learner
from perdure.metrics import Record, interval
from perdure.spelling import hint
from perdure.streams import Stream

Makes = Callable[[int], Learner]
Streams = Stream | Callable[[int], Stream]
Looks = Callable[[Learner, Stream], Mapping[str, float | None]]
Found = dict[tuple[str, int], tuple[CellPart, SecondsPart]]


def study(
    stream: Streams,
    learners: Mapping[str, Makes],
    *,
    out: str | Path,
    seeds: Sequence[int] = (0, 1, 2),
    look: Looks | None = None,
    say: Callable[[str], None] | None = None,
    fresh: bool = False,
    workers: int = 1,
) -> Results:
    """Teaches the stream to every learner with every seed, and examines all tasks after each.

    stream     or a function of the seed that makes one, where rows are divided anew for each: tasks of the same names
    learners   by name: a function of the seed that makes a new Learner
    out        a folder: results.json after every learner, and report.html; stopped, the same call goes on with the next
    look       numbers of your own, by name, asked after every task: `look(learner, stream)`
    say        told a sentence after every learner: `say=print`
    fresh      begins anew in a folder that holds another study
    workers    learners at work side by side, in processes of one thread each; for the CPU, where processes can fork

    A learner that diverges has a cell without metrics. Raises FolderError where `out` holds another study, ValueError
    for streams with different tasks.
    """
    streams = {seed: stream if isinstance(stream, Stream) else stream(seed) for seed in seeds}
    made = {name: make(seeds[0]) for name, make in learners.items()}
    cells = {(name, seed): _cell(name, seed, made[name]) for seed in seeds for name in learners}
    folder, config = Folder(Path(out)), _config(streams, made)
    place = machine(torch.get_num_threads(), str(next(iter(made.values())).device))
    with folder.held():
        started = folder.claim(config, place, fresh)
        found = _recalled(folder)

        def work(key: tuple[str, int]) -> tuple[CellPart, SecondsPart]:
            return _learn(streams[key[1]], learners[key[0]](key[1]), cells[key], look)

        for key, brought in side_by_side(work, [key for key in cells if key not in found], workers):
            found[key] = brought
            _write(streams[seeds[0]], config, [found[key] for key in cells if key in found], place, started, folder)
            if say:
                say(f"{key[0]}, seed {key[1]}: {_score(found[key][0])} ({len(found)} of {len(cells)})")
    return Results.read(folder.path)


def table(results: Results, columns: Sequence[str] = ("average accuracy", "forgetting")) -> str:
    """A study as a Markdown table: means over seeds and the half widths of their 95 % intervals.

    `columns` are those of `columns_of`; shares are in per cent.
    """
    head = ["method", "seeds", *columns]
    rows = [head, ["---"] * len(head)]
    for line in compare.lines(results):
        cells = [cell for cell in results.cells if cell.method == line.method and cell.complete]
        rows.append([line.method, str(len(cells)), *(columns_of(results, cells).get(name, "-") for name in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def course(results: Results, task: str) -> str:
    """Accuracy on one task, by name, after every task of the stream, as a Markdown table: what is left of it.

    Means over seeds and the half widths of their 95 % intervals, in per cent.
    """
    names = results.benchmark.tasks
    if task not in names:
        raise ValueError(f"there is no task {task!r}{hint(task, names)}")
    head = [f"accuracy on {task}, %", *(f"after {name}" for name in names)]
    rows = [head, ["---"] * len(head)]
    for line in compare.lines(results):
        found = [c.accuracy for c in results.cells if c.method == line.method and c.complete]
        grades = [[row[names.index(task)] for row in matrix] for matrix in found]
        steps = [[100 * value for value in step if value is not None] for step in zip(*grades, strict=True)]
        rows.append([line.method, *(_spread(step) if step else "-" for step in steps)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def columns_of(results: Results, cells: Sequence[CellPart]) -> dict[str, str]:
    """What a table may say of the cells of one method: accuracy, cost, and what `look` saw after the last task."""
    values: dict[str, list[float | None]] = {}
    for cell in cells:
        taken = results.seconds(cell)
        shares = {} if cell.metrics is None else cell.metrics.model_dump()
        numbers: dict[str, float | None] = {
            name: value if value is None else 100 * value for name, value in shares.items()
        }
        numbers |= {
            "train s": None if taken is None else taken.train_seconds,
            "consolidate s": None if taken is None else taken.consolidate_seconds,
            "multiply-adds (10^9)": cell.multiply_adds / 1e9,
            "memory MB": cell.memory_bytes / 1e6,
            "model MB": cell.parameter_bytes / 1e6,
        }
        numbers |= {name: seen[-1] for name, seen in (cell.looked or {}).items()}
        for name, value in numbers.items():
            values.setdefault(name.replace("_", " "), []).append(value)
    known = {name: [value for value in found if value is not None] for name, found in values.items()}
    return {name: _spread(found) for name, found in known.items() if found}


def picture(results: Results, path: str | Path, *, first_task: bool = False) -> None:
    """Average accuracy on the tasks learnt so far, or on the first alone, a line a method, as an SVG file."""
    report.picture(results.model_dump(mode="json", by_alias=True), Path(path), first_task)


def _cell(name: str, seed: int, learner: Learner) -> Cell:
    spec = {key: value for key, value in learner.method.settings().items() if key != "name"}
    return Cell(learner.settings.scenario, Entry(name, name, spec), seed)  # type: ignore[arg-type]


def _config(streams: Mapping[int, Stream], made: Mapping[str, Learner]) -> dict[str, object]:
    """What makes it this study and no other."""
    first, *others = streams.values()
    for other in others:
        if [task.name for task in other] != [task.name for task in first]:
            raise ValueError(f"every seed's stream has the same tasks, found {first} and {other}")
    rows = [{task.name: task.fingerprint[:16] for task in stream} for stream in streams.values()]
    settings = {name: asdict(learner.settings) | {"seed": None} for name, learner in made.items()}
    return {
        "stream": {"name": first.name, **(rows[0] if all(one == rows[0] for one in rows) else {"seeds": rows})},
        "learners": {name: {"method": made[name].method.settings(), **settings[name]} for name in made},
        "seeds": list(streams),
    }


def _recalled(folder: Folder) -> Found:
    """What is finished already."""
    if not folder.results.exists():
        return {}
    earlier = Results.read(folder.results)
    taken = {(part.method, part.seed): earlier.seconds(part) for part in earlier.cells}
    return {(p.method, p.seed): (p, seconds) for p in earlier.cells if (seconds := taken[p.method, p.seed])}


def _learn(stream: Stream, learner: Learner, cell: Cell, look: Looks | None) -> tuple[CellPart, SecondsPart]:
    """One learner through the whole stream."""
    record, looked = Record(stream), dict[str, list[float | None]]()
    learner.callbacks.append(record)
    try:
        for task in stream:
            learner.learn(task)
            for name, value in (look(learner, stream) if look else {}).items():
                looked.setdefault(name, []).append(value)
    except FloatingPointError:  # it diverges, every time: a result
        pass
    part, taken = outcome(cell, learner, record, len(stream))
    return part.model_copy(update={"looked": looked or None}), taken


def _write(
    stream: Stream,
    config: dict[str, object],
    found: Sequence[tuple[CellPart, SecondsPart]],
    place: MachinePart,
    started: str,
    folder: Folder,
) -> None:
    """Writes what was found so far, and the report on it."""
    results = Results(
        schema=1,
        perdure=perdure.__version__,
        name=stream.name,
        benchmark=BenchmarkPart(
            name=stream.name,
            settings={},
            description=stream.description,
            tasks=[task.name for task in stream],
            train_rows=[len(task.train) for task in stream],
            test_rows=[0 if task.test is None else len(task.test) for task in stream],
        ),
        config=config,
        cells=[part for part, _ in found],
        measured=MeasuredPart(
            started=started,
            finished=now(),
            machine=place,
            peak_resident_bytes=max(peak_resident_bytes(), folder.earlier_peak()),
            cells=[seconds for _, seconds in found],
        ),
    )
    results.write(folder.results)
    report.write(results.model_dump(mode="json", by_alias=True), folder.report)


def _score(cell: CellPart) -> str:
    return (
        "broke off"
        if cell.metrics is None
        else f"average accuracy {compare.percent((cell.metrics.average_accuracy or 0.0, None))} %"
    )


def _spread(values: Sequence[float]) -> str:
    """`92.6 ± 0.4`, with as many digits as its size asks for."""
    mean, half = interval(list(values))
    digits = 1 if abs(mean) >= 10 else 2 if abs(mean) >= 1 else 3
    return f"{mean:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")
