"""The configuration of an experiment: a document, checked as a whole before anything runs, becomes a plan."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import nn

from perdure import budget, methods, models, optim
from perdure.experiment import learners, settings
from perdure.experiment.benchmarks import BENCHMARKS, Benchmark
from perdure.experiment.document import read
from perdure.experiment.results import Scenario
from perdure.experiment.settings import ConfigError, Problem
from perdure.method import Method
from perdure.streams import Stream

Shape = tuple[int, ...]
FROM_DATA = ("inputs", "shape")  # settings of models that follow from the data


class Training(BaseModel):
    """How every cell is trained; what each setting means stands at `perdure.Learner`."""

    model_config = settings.CHECKED

    epochs: PositiveInt = 1
    steps: PositiveInt | None = None
    budget: dict[str, float] | None = None
    batch_size: PositiveInt = 128
    optimizer: str | dict[str, Any] = {}
    schedule: str | dict[str, Any] | None = None
    clip: PositiveFloat | None = None
    accumulate: PositiveInt = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "auto"
    validation: float | None = Field(default=None, gt=0, lt=1)
    patience: PositiveInt | None = None
    heads: Literal["separate", "shared"] | None = None
    protocol: Literal["as they come", "all outputs"] = "as they come"
    augment: Literal["crop and flip"] | None = None


class Experiment(BaseModel):
    """A whole experiment: every scenario x method x seed is one cell.

    skip        tasks at the beginning of the stream that are left out: those on which settings were chosen
    eval_every  steps between evaluations within a task; 0 for none
    infer       ways of task inference to grade at the end, in scenario "task"
    """

    model_config = settings.CHECKED

    name: str = Field(pattern=r"^[\w.-]+$")
    benchmark: str | dict[str, Any]
    scenarios: tuple[Scenario, ...] = Field(min_length=1)
    methods: tuple[str | dict[str, Any], ...] = Field(min_length=1)
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    skip: NonNegativeInt = 0
    eval_every: NonNegativeInt = 0
    infer: tuple[Literal["entropy", "nearest-mean"], ...] = ()
    save_every: PositiveFloat = 10.0
    threads: PositiveInt = 1
    model: str | dict[str, Any] | None = None
    training: Training = Training()


@dataclass(frozen=True)
class Entry:
    """One method of an experiment: the label by which it goes, and what `methods.build` makes it from."""

    label: str
    title: str
    spec: dict[str, Any]

    @property
    def slug(self) -> str:
        """The label as part of a folder's name: `replay-ewc`."""
        return re.sub(r"\W+", "-", self.label.lower()).strip("-")

    def build(self) -> Method:
        """A method that has seen nothing."""
        return methods.build(self.spec)


@dataclass(frozen=True)
class Plan:
    """A checked experiment: all settings with defaults filled in, its stream, methods and model."""

    experiment: Experiment
    stream: Stream
    entries: tuple[Entry, ...]
    recipe: dict[str, Any]

    @property
    def document(self) -> dict[str, Any]:
        """The experiment in JSON's words, every default spelt out; planning it again gives it again."""
        return self.experiment.model_dump(mode="json", exclude_none=True)


def load(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """The plan in a TOML file, after `--set key=value`; a ConfigError lists everything that is wrong."""
    return plan(read(path, overrides), str(path))


def plan(document: Mapping[str, Any], source: str = "the configuration") -> Plan:
    """The plan that a document describes; a ConfigError lists everything that is wrong with it."""
    problems: list[Problem] = []
    experiment = settings.validate(Experiment, document, "", "experiment", problems)
    benchmark = _benchmark(document.get("benchmark"), problems)
    row = BENCHMARKS[benchmark["name"]] if benchmark else None
    model = _model(document.get("model", row.model if row else None), problems)
    if row and model and row.shape:
        _recipe(model, row.shape, problems)
    entries = _entries(document.get("methods"), problems)
    if experiment:
        training = _training(experiment.training, problems)
        _scenarios(experiment, row, entries, problems)
    if problems or not (experiment and benchmark and row and model):
        raise ConfigError(problems, source)
    stream = _stream(row, benchmark, problems)
    if stream is not None and experiment.skip >= len(stream):
        message = f"{experiment.skip} tasks left out of {len(stream)} leave none"
        raise ConfigError([*problems, Problem("skip", message)], source)
    stream = stream[experiment.skip :] if stream is not None else None
    recipe = _recipe(model, stream[0].train.shape, problems) if stream else None
    if stream is not None and recipe is not None:
        _learners(experiment, training, recipe, entries, stream, problems)
    if problems or stream is None or recipe is None:
        raise ConfigError(problems, source)
    specs = tuple({**entry.spec, **_label(given)} for entry, given in zip(entries, experiment.methods, strict=True))
    parts = {"benchmark": benchmark, "methods": specs, "model": model, "training": training}
    filled = experiment.model_copy(update=parts)
    return Plan(filled, stream, entries, recipe)


def _named(value: Any, place: str, kind: str, table: Mapping[str, Any], problems: list[Problem]) -> Any:
    """`{"name": ...}` from a name or a table with a known name; None when it is neither."""
    if not isinstance(value, str | Mapping):
        return None  # pydantic has said so, or there is nothing
    named = {"name": value} if isinstance(value, str) else dict(value)
    where = place if isinstance(value, str) else f"{place}.name"
    if "name" not in named:
        problems.append(Problem(place, f"it has no name; add name = ..., one of {', '.join(table)}"))
    elif named["name"] not in table:
        problems.append(Problem(where, settings.unknown(kind, named["name"], table)))
    else:
        return named
    return None


def _benchmark(value: Any, problems: list[Problem]) -> dict[str, Any] | None:
    named = _named(value, "benchmark", "benchmark", BENCHMARKS, problems)
    if named is None:
        return None
    name = named.pop("name")
    row = BENCHMARKS[name]
    filled = settings.fill(named, settings.of_callable(row.build), "benchmark", name, problems)
    if filled is None:
        return None
    tasks = filled.get("tasks")
    if row.classes and tasks and tasks > row.classes:
        problems.append(Problem("benchmark.tasks", f"{tasks} tasks, but {name} has {row.classes} classes to share"))
    return {"name": name, **filled}


def _stream(row: Benchmark, benchmark: Mapping[str, Any], problems: list[Problem]) -> Stream | None:
    given = {key: value for key, value in benchmark.items() if key != "name"}
    try:
        return row.build(**given)
    except (ValueError, TypeError, OSError, ImportError) as error:
        problems.append(Problem("benchmark", str(error)))
        return None


def _model(value: Any, problems: list[Problem]) -> dict[str, Any] | None:
    named = _named(value, "model", "model", models.CHOSEN, problems)
    if named is None:
        return None
    name = named.pop("name")
    follows = [key for key in FROM_DATA if key in named]
    problems += [Problem(f"model.{key}", "follows from the data; leave it out") for key in follows]
    given = {key: item for key, item in named.items() if key not in follows}
    accepted = settings.of_callable(models.CHOSEN[name], FROM_DATA)
    filled = settings.fill(given, accepted, "model", name, problems)
    return None if filled is None else {"name": name, **filled}


def _recipe(model: Mapping[str, Any], shape: Any, problems: list[Problem]) -> dict[str, Any] | None:
    """The model's recipe with the settings that follow from the shape of a row; None when they do not fit."""
    name = model["name"]
    given = {key: value for key, value in model.items() if key != "name"}
    accepted = {setting.name for setting in settings.of_callable(models.CHOSEN[name])}
    if isinstance(shape, Mapping):
        message = f"{name} reads one tensor, but the rows have the columns {', '.join(shape)}"
    elif "shape" in accepted and len(shape) != 3:
        message = f"{name} reads images (channels, height, width), but a row has shape {list(shape)}; take mlp"
    else:
        derived = {"inputs": math.prod(shape), "shape": list(shape)}
        recipe = {"name": name, "settings": {**given, **{key: derived[key] for key in FROM_DATA if key in accepted}}}
        try:
            models.build(recipe)
            return recipe
        except ValueError as error:
            message = str(error)
    problems.append(Problem("model", message))
    return None


def _entries(value: Any, problems: list[Problem]) -> tuple[Entry, ...]:
    """The methods that are right, each under its label; a problem for every one that is not."""
    entries: dict[str, Entry] = {}
    for number, item in enumerate(value if isinstance(value, list | tuple) else ()):
        place = f"methods[{number}]"
        entry = _entry(item, place, problems)
        if entry and entry.slug in entries:
            message = f"another method is called {entries[entry.slug].label!r}; tell them apart with label = ..."
            problems.append(Problem(place, message))
        elif entry:
            entries[entry.slug] = entry
    return tuple(entries.values())


def _entry(value: Any, place: str, problems: list[Problem]) -> Entry | None:
    label = _label(value).get("label")
    if label is not None and not (isinstance(label, str) and re.search(r"\w", label)):
        problems.append(Problem(f"{place}.label", f"expected a word or more, found {label!r}"))
        return None
    given = {key: item for key, item in value.items() if key != "label"} if isinstance(value, Mapping) else value
    spec = _spec(given, place, problems)
    if spec is None:
        return None
    try:
        method = methods.build(spec)
    except (ValueError, TypeError) as error:
        problems.append(Problem(place, str(error)))
        return None
    return Entry(label or method.name, label or method.title, spec)


def _label(value: Any) -> dict[str, Any]:
    return {"label": value["label"]} if isinstance(value, Mapping) and "label" in value else {}


def _spec(value: Any, place: str, problems: list[Problem]) -> dict[str, Any] | None:
    """What `methods.build` takes, defaults filled in: one method, or the parts of a composition."""
    if isinstance(value, Mapping) and "parts" in value:
        parts = value["parts"]
        if len(value) > 1 or not isinstance(parts, list | tuple) or len(parts) < 2:
            problems.append(Problem(place, "a composition is { parts = [two methods or more], label = ... }"))
            return None
        specs = [_spec(part, f"{place}.parts[{number}]", problems) for number, part in enumerate(parts)]
        return None if None in specs else {"parts": specs}
    named = _named(value, place, "method", methods.METHODS, problems)
    if named is None:
        return None
    name = named.pop("name")
    owner = methods.METHODS[name]
    filled = settings.fill(named, settings.of_fields(owner, owner.fields()), place, name, problems)
    return None if filled is None else {"name": name, **filled}


def _training(training: Training, problems: list[Problem]) -> Training:
    """The settings of the training with optimizer and schedule spelt out; a problem for each that is impossible."""
    optimizer = {"name": training.optimizer} if isinstance(training.optimizer, str) else training.optimizer
    optimizer = {**optim.DEFAULT, **optimizer}
    attempts: dict[str, Callable[[], object]] = {
        "optimizer": lambda: optim.make(optimizer, nn.Linear(1, 1)),
        "schedule": lambda: optim.Schedule.of(training.schedule),
        "budget": lambda: budget.of(training.budget),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except (ValueError, TypeError) as error:
            problems.append(Problem(f"training.{name}", str(error)))
    try:
        torch.empty(0, device="cpu" if training.device == "auto" else training.device)
    except (RuntimeError, AssertionError):  # torch says so at length, in either
        message = f"there is no {training.device!r} here; take auto, cpu, or cuda where there is one"
        problems.append(Problem("training.device", message))
    if training.steps is not None and training.budget is not None:
        problems.append(Problem("training.budget", "steps and a budget are two answers to one question: give one"))
    if training.patience is not None and training.validation is None:
        problems.append(Problem("training.patience", "needs rows to judge by; add training.validation = 0.1"))
    return training.model_copy(update={"optimizer": optimizer})


def _scenarios(
    experiment: Experiment, row: Benchmark | None, entries: Sequence[Entry], problems: list[Problem]
) -> None:
    """Which scenarios, seeds, heads and methods go together."""
    if experiment.training.heads is not None and "task" not in experiment.scenarios:
        message = f'needs the scenario "task", which has heads; scenarios are {", ".join(experiment.scenarios)}'
        problems.append(Problem("training.heads", message))
    for place, values in (("scenarios", experiment.scenarios), ("seeds", experiment.seeds)):
        if len(set(values)) < len(values):
            problems.append(Problem(place, f"one of them stands there twice: {', '.join(map(str, values))}"))
    for scenario in experiment.scenarios:
        if row and scenario not in row.scenarios:
            message = f"{scenario!r} makes no sense on this benchmark; it offers {', '.join(row.scenarios)}"
            problems.append(Problem("scenarios", message))
    for entry in entries:
        method = entry.build()
        for scenario in experiment.scenarios:
            if scenario not in method.scenarios:
                message = f"{entry.label} does not work in scenario {scenario!r}, only in {', '.join(method.scenarios)}"
                problems.append(Problem("methods", message))


def _learners(
    experiment: Experiment,
    training: Training,
    recipe: dict[str, Any],
    entries: Sequence[Entry],
    stream: Stream,
    problems: list[Problem],
) -> None:
    """A problem for every reason why a cell could not be learnt, before the first one is."""
    refused: dict[str, list[str]] = {}
    for entry in entries:
        for scenario in experiment.scenarios:
            try:
                learners.attempt(training, recipe, entry.build(), scenario, stream)
            except (ValueError, TypeError) as error:
                refused.setdefault(str(error), []).append(f"{entry.label} in scenario {scenario!r}")
    problems += [Problem("methods", f"{', '.join(cells)}: {reason}") for reason, cells in refused.items()]
