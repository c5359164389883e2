"""Choosing a method's settings without looking at what it will be judged on; the search itself is Optuna's."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from perdure import methods, models
from perdure.augment import AUGMENTS
from perdure.checkpoint import replace_file
from perdure.experiment import pieces
from perdure.experiment.config import Entry, Plan
from perdure.experiment.run import threads
from perdure.experiment.settings import RequestError, unknown
from perdure.learner import Learner
from perdure.metrics import average_accuracy
from perdure.streams import Stream

ON = ("first-task", "first-three")


@dataclass(frozen=True)
class Range:
    """The values that a setting may take: from `low` to `high` on a logarithmic scale, or one of `choices`."""

    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()

    def holds(self, value: Any) -> bool:
        """Whether the value is one of them."""
        return value in self.choices if self.choices else isinstance(value, float) and self.low <= value <= self.high

    @classmethod
    def parse(cls, text: str) -> Range:
        """From "0.01..100", or a comma-separated list of values."""
        low, dots, high = text.partition("..")
        try:
            if dots:
                found = cls(float(low), float(high))
                if not 0 < found.low < found.high:
                    raise ValueError
                return found
        except ValueError:
            raise RequestError(
                f"{text!r} is no range; write 0.01..100 (above 0, logarithmic) or values: 1,2,4"
            ) from None
        return cls(choices=tuple(_value(part.strip()) for part in text.split(",")))


# Where a method's own scale is known: the range that is searched unless another is given.
USUAL: dict[str, dict[str, Range]] = {
    "ewc": {"strength": Range(0.003, 30)},
    "mas": {"strength": Range(1, 3000)},
    "si": {"strength": Range(0.003, 30)},
    "lwf": {"strength": Range(0.1, 30)},
    "der": {"alpha": Range(0.1, 10)},
    "derpp": {"alpha": Range(0.1, 10), "beta": Range(0.1, 10)},
}


def tune(
    plan: Plan,
    method: str,
    scenario: str,
    out: Path,
    console: Console,
    *,
    ranges: Mapping[str, Range] | None = None,
    on: str = "first-task",
    trials: int = 20,
    seeds: Sequence[int] = (0,),
) -> dict[str, Any]:
    """The best settings of one of the plan's methods, by the average accuracy at the end of a stream made for tuning.

    on="first-task" cuts the first task's train rows into three pieces; "first-three" takes the train rows of the first
    three tasks, which then do not count. Test rows are never read. `out` gets trials.log (the search can be gone on
    with), trials.json (what was tried) and method.json (what was chosen). Raises RequestError.
    """
    if plan.experiment.skip:
        raise RequestError("skip leaves out the very tasks to tune on: take it out while tuning")
    entry = _entry(plan, method)
    space = dict(ranges or USUAL.get(str(entry.spec.get("name")), {}))
    _check(entry, space)
    stream = pieces.first_task(plan.stream, scenario) if on == "first-task" else pieces.first_three(plan.stream)
    out.mkdir(parents=True, exist_ok=True)
    study = _study(out / "trials.log", f"{entry.label} {scenario} {on}", space, entry)

    def ask(trial: Any) -> float:
        chosen = {name: _suggest(trial, name, values) for name, values in space.items()}
        scores = [grade(plan, entry, chosen, scenario, stream, seed) for seed in seeds]
        console.print(f"trial {trial.number + 1}: {chosen}: {100 * fmean(scores):.2f} %", highlight=False, markup=False)
        return fmean(scores)

    with threads(plan.experiment.threads):
        tried = sum(trial.state.is_finished() for trial in study.trials)
        study.optimize(ask, n_trials=max(0, trials - tried), catch=(FloatingPointError,))
    done = [{"settings": t.params, "accuracy": t.value} for t in study.trials if t.value is not None]
    if not done:
        raise RequestError(f"every one of {len(study.trials)} trials diverged; lower the learning rate")
    best = max(done, key=lambda trial: trial["accuracy"])
    chosen = {**entry.spec, **best["settings"]}
    note = {"on": on, "stream": stream.description, "scenario": scenario, "seeds": list(seeds), "trials": done}
    replace_file(out / "trials.json", f"{json.dumps(note, indent=1)}\n".encode())
    replace_file(out / "method.json", f"{json.dumps(chosen, indent=1)}\n".encode())
    console.print(f"best of {len(done)}: {100 * best['accuracy']:.2f} % with {chosen}", highlight=False, markup=False)
    if on == "first-three":
        console.print("chosen on the first three tasks, which must not count: run with --set skip=3")
    return chosen


def grade(plan: Plan, entry: Entry, chosen: Mapping[str, Any], scenario: str, stream: Stream, seed: int) -> float:
    """The average accuracy of the method with these settings at the end of a stream."""
    training = plan.experiment.training.model_dump(exclude={"heads", "protocol", "augment"})
    method = methods.build({**entry.spec, **chosen})
    heads = plan.experiment.training.heads or "separate"
    augment = AUGMENTS.get(plan.experiment.training.augment or "")
    learner = Learner(
        models.build(plan.recipe), method, scenario=scenario, heads=heads, seed=seed, augment=augment, **training
    )
    for task in stream:
        learner.learn(task)
    return average_accuracy([learner.evaluate(stream)] * len(stream)) or 0.0


def _entry(plan: Plan, method: str) -> Entry:
    found = next((entry for entry in plan.entries if entry.label == method), None)
    if found is None:
        raise RequestError(unknown("method of this experiment", method, [entry.label for entry in plan.entries]))
    return found


def _study(log: Path, name: str, space: Mapping[str, Range], entry: Entry) -> Any:
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise RequestError("tune needs Optuna: pip install 'perdure[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(log)))
    sampler = optuna.samplers.TPESampler(seed=0)
    study = optuna.create_study(
        storage=storage, study_name=name, direction="maximize", sampler=sampler, load_if_exists=True
    )
    if not study.trials:
        present = {name: entry.spec[name] for name, values in space.items() if values.holds(entry.spec[name])}
        study.enqueue_trial(present)  # what stands there is tried first
    return study


def _check(entry: Entry, space: Mapping[str, Range]) -> None:
    if not space:
        raise RequestError(f"no range is known for {entry.label}; give one, as in --range strength=0.01..100")
    unknown = [name for name in space if name not in entry.spec]
    if unknown:
        known = ", ".join(name for name in entry.spec if name != "name")
        raise RequestError(f"{entry.label} has no setting {unknown[0]!r}; it has {known}")


def _suggest(trial: Any, name: str, values: Range) -> Any:
    if values.choices:
        return trial.suggest_categorical(name, values.choices)
    return trial.suggest_float(name, values.low, values.high, log=True)


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
