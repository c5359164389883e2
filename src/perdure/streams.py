"""Streams: labelled rows cut into tasks that come one after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, overload

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from perdure.corruptions import CLEAR, CONDITIONS, Corruption
from perdure.data import Columns, Label, Rows, Task, class_names

TEST_SHARE = 0.2  # of each period, where a dataset has no test rows


class Source(Protocol):
    """What can be cut into tasks: a `perdure.datasets.Dataset`, or a Task."""

    @property
    def name(self) -> str:
        """What the data is called."""

    @property
    def train(self) -> Rows:
        """Rows to learn."""

    @property
    def test(self) -> Rows | None:
        """Rows to be examined on."""


class Stream(Sequence[Task]):
    """Tasks in order: has a length, an index, slices, and can be walked through any number of times.

    `description` is the protocol in one or two plain sentences.
    """

    def __init__(self, tasks: Iterable[Task], *, name: str = "stream", description: str = "") -> None:
        self._tasks = tuple(tasks)
        for task in self._tasks:
            if not isinstance(task, Task):
                raise TypeError(f"a stream holds tasks, not {type(task).__name__}; make them with Task(train, test)")
        self.name = name
        self.description = description

    def __len__(self) -> int:
        return len(self._tasks)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> Stream: ...
    def __getitem__(self, index: int | slice) -> Task | Stream:
        if isinstance(index, int):
            return self._tasks[index]
        part = self._tasks[index]
        note = f" Of these {len(self)} tasks, {len(part)} are taken: {'; '.join(task.name for task in part)}."
        description = self.description if part == self._tasks else (self.description + note).strip()
        return Stream(part, name=self.name, description=description)

    def __repr__(self) -> str:
        return f"Stream({self.name!r}, {len(self)} tasks: {'; '.join(task.name for task in self)})"


def split(
    dataset: Source,
    tasks: int = 5,
    *,
    seed: int | None = None,
    classes: Sequence[Label] | Sequence[Sequence[Label]] | None = None,
) -> Stream:
    """Each task brings some of the classes, consecutive labels unless told otherwise.

    seed     shuffles the order of the classes
    classes  the order of the classes (others are left out), or a list of lists: the classes of each task
    """
    groups, order = _groups(dataset, tasks, seed, classes)
    made = []
    for group in groups:
        train, test = _with_labels(dataset.train, group), _test_with_labels(dataset.test, group)
        made.append(Task(train, test, name=_joined(group), classes=group))
    return Stream(
        made,
        name=f"split-{dataset.name}",
        description=f"{dataset.name} cut into {len(groups)} tasks of {_sizes(groups)}, {order}.",
    )


def blurry(dataset: Source, tasks: int = 5, *, blur: float = 0.1, seed: int = 0) -> Stream:
    """Like `split`, but a share `blur` of each task's train rows comes from the other tasks' classes.

    Every task gives that share of its rows away, drawn at random and dealt evenly to the other tasks, so that each
    train row still comes exactly once; with tasks of unequal size the share received is blur on average.
    A task's test rows are of its own classes alone.
    """
    if not 0 <= blur < 1:
        raise ValueError(f"blur is the share of rows from other tasks, from 0 up to but not 1; got {blur}")
    groups, order = _groups(dataset, tasks, None, None)
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[] for _ in groups]
    for own, group in enumerate(groups):
        rows = _rows_with(dataset.train, group).cpu()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        given = round(blur * len(rows)) if len(groups) > 1 else 0
        parts[own].append(rows[given:])
        for step in range(1, len(groups)):
            parts[(own + step) % len(groups)].append(rows[:given][step - 1 :: len(groups) - 1])
    made = []
    for group, indices in zip(groups, parts, strict=True):
        train = dataset.train.select(torch.cat(indices).sort().values)
        made.append(Task(train, _test_with_labels(dataset.test, group), name=_joined(group)))
    return Stream(
        made,
        name=f"blurry-{dataset.name}",
        description=f"{dataset.name} cut into {tasks} tasks of {_sizes(groups)}, {order}; each gives {blur:.0%} of its "
        f"train rows to the others (seed {seed}) and is tested on its own classes.",
    )


def permuted(dataset: Source, tasks: int = 10, *, seed: int = 0, identity: bool = True) -> Stream:
    """Each task shows the same rows with their values shuffled by one fixed permutation.

    identity  the first task is not shuffled, as in the papers; False where all shall be strange, to tune on others
    """
    _check_source(dataset, tasks)
    shape = _tensor_shape(dataset.train, "permuted")
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(tasks):
        order = torch.randperm(math.prod(shape), generator=generator) if number or not identity else None
        made.append(_mapped(dataset, None if order is None else _Permutation(order), f"permutation {number}"))
    return Stream(
        made,
        name=f"permuted-{dataset.name}",
        description=f"{tasks} tasks, each all of {dataset.name} under one fixed shuffle of the values of a row "
        f"(seed {seed})" + ("; the first task is not shuffled." if identity else "."),
    )


def rotated(dataset: Source, tasks: int = 5, *, degrees: float = 180.0) -> Stream:
    """Task i shows the same images turned counter-clockwise by degrees * i / tasks (bilinear, filled up with 0)."""
    _check_source(dataset, tasks)
    if len(_tensor_shape(dataset.train, "rotated")) != 3:
        raise ValueError(f"rotated needs images of shape [c, h, w]; these rows have shape {dataset.train.shape}")
    angles = [degrees * number / tasks for number in range(tasks)]
    made = [_mapped(dataset, _Rotation(angle) if angle else None, f"{angle:g} degrees") for angle in angles]
    return Stream(
        made,
        name=f"rotated-{dataset.name}",
        description=f"{tasks} tasks, each all of {dataset.name} turned by a fixed angle: "
        f"{', '.join(f'{angle:g}' for angle in angles)} degrees.",
    )


def corrupted(
    dataset: Source,
    conditions: Sequence[str] = tuple(CONDITIONS),
    *,
    severity: int = 3,
    seed: int = 0,
    apart: bool = False,
) -> Stream:
    """Each task shows the images in one condition: "clear", "fog", "night", "rain", "blur" (`perdure.corruptions`).

    severity  1 to 5
    seed      of the weather, and of the dealing
    apart     train rows are dealt out, so that every task brings photographs of its own; test rows are the same in all
    """
    _check_source(dataset, len(conditions))
    if len(_tensor_shape(dataset.train, "corrupted")) != 3:
        raise ValueError(f"corrupted needs images of shape [c, h, w]; these rows have shape {dataset.train.shape}")
    changes = [Corruption(condition, severity, seed) for condition in conditions]
    if apart and len(dataset.train) < len(changes):
        raise ValueError(f"{len(dataset.train)} train rows cannot be dealt to {len(changes)} tasks; leave apart out")
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(seed))
    made = []
    for number, change in enumerate(changes):
        train = dataset.train.select(order[number :: len(changes)].sort().values) if apart else dataset.train
        made.append(_mapped(dataset, None if change.condition == CLEAR else change, change.condition, train))
    part = "some of the train rows" if apart else "all"
    return Stream(
        made,
        name=f"corrupted-{dataset.name}",
        description=f"{len(made)} tasks, each {part} of {dataset.name} as it looks in one condition of severity "
        f"{severity} (seed {seed}): {', '.join(task.name for task in made)}.",
    )


def held(stream: Stream) -> Stream:
    """The same stream with every row read once and kept in memory: faster where rows are mapped or lie on a disk."""
    made = []
    for task in stream:
        test, validation = (None if rows is None else _held(rows) for rows in (task.test, task.validation))
        made.append(Task(_held(task.train), test, validation=validation, name=task.name, classes=task.classes))
    return Stream(made, name=stream.name, description=stream.description)


def by_column(dataset: Source, column: str) -> Stream:
    """One task per distinct value of a named column, in sorted order; every task may carry every label."""
    _check_source(dataset, 1)
    values = _column(dataset.train, column)
    test_values = None if dataset.test is None else _column(dataset.test, column)
    made = []
    for value in np.unique(values):
        test = None
        if dataset.test is not None and test_values is not None:
            test = dataset.test.select(test_values == value)
            if not len(test):
                raise ValueError(f"no test row has {column} = {value}; add some, or leave those train rows out")
        train = dataset.train.select(values == value)
        made.append(Task(train, test, name=str(value), classes=dataset.train.classes))
    if test_values is not None and not np.isin(test_values, values).all():
        extra = test_values[~np.isin(test_values, values)][0]
        raise ValueError(f"some test rows have {column} = {extra}, which no train row has; leave them out")
    return Stream(
        made,
        name=f"{dataset.name}-by-{column}",
        description=f"{dataset.name} cut into {len(made)} tasks, one per value of {column}, in sorted order.",
    )


def by_time(dataset: Source, column: str, tasks: int = 5) -> Stream:
    """Rows sorted by a named column (ties keep their order) and cut into periods of equal counts.

    Test rows are cut likewise; without any, the last fifth of each period is its test.
    Every task may carry every label.
    """
    _check_source(dataset, tasks)
    periods = _periods(dataset.train, column, tasks)
    if dataset.test is None:
        cuts = [len(period) - max(1, round(TEST_SHARE * len(period))) for period in periods]
        if min(cuts) < 1:
            raise ValueError(f"{len(dataset.train)} rows are too few for {tasks} periods with a test part each")
        tests = [dataset.train.select(period[cut:]) for period, cut in zip(periods, cuts, strict=True)]
        periods = [period[:cut] for period, cut in zip(periods, cuts, strict=True)]
        how = f"the last {TEST_SHARE:.0%} of each period is its test"
    else:
        tests = [dataset.test.select(period) for period in _periods(dataset.test, column, tasks)]
        how = "test rows are cut likewise"
    made = [
        Task(dataset.train.select(period), test, name=f"period {number}", classes=dataset.train.classes)
        for number, (period, test) in enumerate(zip(periods, tests, strict=True), start=1)
    ]
    return Stream(
        made,
        name=f"{dataset.name}-by-{column}",
        description=f"{dataset.name} sorted by {column} and cut into {tasks} periods of equal counts; {how}.",
    )


def by_month(dataset: Source, column: str, least: int = 1) -> Stream:
    """Calendar months (UTC) of a named column of Unix seconds; one of fewer than `least` rows joins the next.

    What is left at the end is a task of its own, however small. Every fifth row of a month, in the order of time, is
    its test. Every task may carry every label.
    """
    _check_source(dataset, 1)
    if dataset.test is not None:
        raise ValueError(f"{dataset.name} has test rows; by_month takes a fifth of each month: pass one table")
    if least < 1:
        raise ValueError(f"least is {least}; a month has at least 1 row")
    rows, tasks = dataset.train, []
    for name, month in _months(rows.column(column), least).items():
        if len(month) < 5:
            raise ValueError(f"{name} has {len(month)} rows, too few for a test part: raise least")
        tested = np.arange(len(month)) % 5 == 4
        tasks.append(Task(rows.select(month[~tested]), rows.select(month[tested]), name=name, classes=rows.classes))
    return Stream(
        tasks,
        name=f"{dataset.name}-by-month",
        description=f"{dataset.name} by calendar month; months of fewer than {least} rows join the next; every fifth "
        "row of a month, in the order of time, is its test.",
    )


def _months(seconds: npt.NDArray[Any], least: int) -> dict[str, npt.NDArray[np.int64]]:
    """The rows of each month, in the order of time: "1997-10", or "1997-09 to 1997-10" where months were joined."""
    order = np.argsort(seconds, kind="stable")
    calendar = seconds[order].astype("datetime64[s]").astype("datetime64[M]")
    found, open_rows, first = dict[str, npt.NDArray[np.int64]](), list[npt.NDArray[np.int64]](), ""
    names = np.unique(calendar)
    for name in names:
        first = first or str(name)
        open_rows.append(order[calendar == name])
        if sum(map(len, open_rows)) >= least or name == names[-1]:
            found[first if first == str(name) else f"{first} to {name}"] = np.concatenate(open_rows)
            open_rows, first = [], ""
    return found


@dataclass(frozen=True, eq=False)
class _Permutation:
    """Shuffles the values of a row: new[i] = old[order[i]]."""

    order: Tensor

    def __call__(self, x: Columns) -> Columns:
        tensor = cast(Tensor, x)
        return tensor.flatten(1).index_select(1, self.order.to(tensor.device)).reshape(tensor.shape)


@dataclass(frozen=True)
class _Rotation:
    """Turns images [n, c, h, w] counter-clockwise about their centre."""

    degrees: float

    def __call__(self, x: Columns) -> Columns:
        images = cast(Tensor, x)
        height, width = images.shape[-2:]
        cos, sin = math.cos(math.radians(self.degrees)), math.sin(math.radians(self.degrees))
        # The grid's axes both run from -1 to 1, whatever the sides: the ratio keeps an oblong image from shearing.
        turn = torch.tensor([[[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]]])
        grid = F.affine_grid(turn.to(images.device), [1, 1, height, width], align_corners=False)
        values = images if images.is_floating_point() else images.float()
        grid = grid.to(values.dtype).expand(len(images), -1, -1, -1)
        turned = F.grid_sample(values, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        return turned if images.is_floating_point() else turned.round().to(images.dtype)


def _check_source(dataset: Any, tasks: int) -> None:
    if not isinstance(getattr(dataset, "train", None), Rows):
        raise TypeError(f"cannot cut a {type(dataset).__name__} into tasks; make a dataset: datasets.arrays(x, y, ...)")
    if tasks < 1:
        raise ValueError(f"tasks must be at least 1; got {tasks}")


def _groups(
    dataset: Source, tasks: int, seed: int | None, classes: Sequence[Any] | None
) -> tuple[list[tuple[Label, ...]], str]:
    """The classes of each task, and in what order they come, in words."""
    _check_source(dataset, tasks)
    known = dataset.train.classes
    if dataset.train.dense or not known:
        raise ValueError("only rows with one label each can be cut by class; y is a float or missing")
    if dataset.test is not None and not set(dataset.test.classes) <= set(known):
        extra = next(label for label in dataset.test.classes if label not in known)
        raise ValueError(f"test rows bring label {extra!r}, which no train row has; leave them out")
    if classes is not None and seed is not None:
        raise ValueError("seed shuffles the classes and classes=... gives their order; pass one of them")
    if classes is not None and len(classes) and all(isinstance(group, list | tuple) for group in classes):
        groups = [class_names(group) for group in classes]
        order = "in the order given"
    else:
        labels, order = (
            (known, "in the order of the labels") if classes is None else (class_names(classes), "in the order given")
        )
        if seed is not None:
            shuffled = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed)).tolist()
            labels, order = tuple(known[place] for place in shuffled), f"in an order drawn with seed {seed}"
        if tasks > len(labels):
            raise ValueError(f"{tasks} tasks cannot share {len(labels)} classes; ask for at most {len(labels)} tasks")
        groups = [tuple(labels[place] for place in part) for part in np.array_split(np.arange(len(labels)), tasks)]
    for label in (label for group in groups for label in group):
        if label not in known:
            raise ValueError(f"classes name {label!r}, which no train row has; the labels are {known}")
    return groups, order


def _rows_with(rows: Rows, labels: tuple[Label, ...]) -> Tensor:
    """Numbers of the rows that carry one of the labels."""
    wanted = torch.tensor([label in labels for label in rows.classes])
    positions = rows.positions(rows.classes)
    return wanted.to(positions.device)[positions].nonzero()[:, 0]


def _with_labels(rows: Rows, labels: tuple[Label, ...]) -> Rows:
    return rows.select(_rows_with(rows, labels))


def _test_with_labels(rows: Rows | None, labels: tuple[Label, ...]) -> Rows | None:
    if rows is None:
        return None
    chosen = _with_labels(rows, labels)
    if not len(chosen):
        raise ValueError(f"no test row carries any of the labels {labels}; add some, or leave the test rows out")
    return chosen


def _tensor_shape(rows: Rows, name: str) -> tuple[int, ...]:
    if isinstance(rows.shape, dict):
        raise ValueError(f"{name} needs x to be one tensor; these rows have the columns {sorted(rows.shape)}")
    return rows.shape


def _mapped(dataset: Source, fn: Callable[[Columns], Columns] | None, name: str, train: Rows | None = None) -> Task:
    train, test = dataset.train if train is None else train, dataset.test
    if fn is not None:
        train, test = train.map(fn), None if test is None else test.map(fn)
    return Task(train, test, name=name, classes=dataset.train.classes)


def _held(rows: Rows) -> Rows:
    y = None if not rows.classes else torch.tensor(rows.labels) if rows.dense else rows.labels
    columns = {name: rows.column(name) for name in rows.column_names}
    return Rows(rows.read(slice(0, len(rows))), y, columns=columns, classes=rows.classes if rows.dense else None)


def _column(rows: Rows, column: str) -> npt.NDArray[Any]:
    values = rows.column(column)
    missing = values != values  # NaN, or no date
    if missing.any():
        raise ValueError(f"column {column!r} has no value in {missing.sum()} rows (first: row {missing.argmax()})")
    return values


def _periods(rows: Rows, column: str, tasks: int) -> list[npt.NDArray[np.intp]]:
    if tasks > len(rows):
        raise ValueError(f"{len(rows)} rows cannot be cut into {tasks} periods; ask for fewer")
    return np.array_split(np.argsort(_column(rows, column), kind="stable"), tasks)


def _joined(labels: tuple[Label, ...]) -> str:
    return ", ".join(str(label) for label in labels)


def _sizes(groups: list[tuple[Label, ...]]) -> str:
    sizes = sorted({len(group) for group in groups}, reverse=True)
    return " or ".join(str(size) for size in sizes) + (" class" if sizes == [1] else " classes")
