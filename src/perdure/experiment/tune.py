"""Choosing a method's settings without looking at what it will be judged on; the search itself is Optuna's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from perdure import methods
from perdure.checkpoint import replace_file
from perdure.experiment import learners, pieces
from perdure.experiment.config import Entry, Plan
from perdure.experiment.folder import differences
from perdure.experiment.ranges import Range, fitted, present, put, suggest, usual
from perdure.experiment.run import threads
from perdure.experiment.settings import RequestError, unknown
from perdure.metrics import average_accuracy
from perdure.streams import Stream

ON = ("first-task", "first-three")


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
    three tasks, which then do not count. Test rows are never read. `out` gets trials.log, trials.json (what was tried)
    and method.json (what was chosen). Stopped at any instant, or asked for more trials, the same call goes on as if it
    had never stopped; another search in the same folder is refused. Raises RequestError.
    """
    if plan.experiment.skip:
        raise RequestError("skip leaves out the very tasks to tune on: take it out while tuning")
    entry = _entry(plan, method)
    space = fitted(entry, ranges or usual(entry.spec))
    stream = pieces.first_task(plan.stream, scenario) if on == "first-task" else pieces.first_three(plan.stream)
    search = Search(plan, entry, scenario, on, space, tuple(seeds), stream)
    search.check()
    out.mkdir(parents=True, exist_ok=True)
    study = _study(out, search.document)
    with threads(plan.experiment.threads):
        for number in range(len(_tried(study)), trials):
            said = _trial(study, number, search)
            console.print(f"trial {number + 1}: {said}", highlight=False, markup=False)
    done = [{"settings": t.params, "accuracy": t.value} for t in _tried(study) if t.value is not None]
    diverged = [t.params for t in _tried(study) if t.value is None]
    if not done:
        raise RequestError(f"every one of {len(diverged)} trials diverged; lower the learning rate")
    best = max(done, key=lambda trial: trial["accuracy"])
    chosen = put(entry.spec, best["settings"])
    note = {"on": on, "stream": stream.description, "scenario": scenario, "seeds": list(seeds), "trials": done}
    replace_file(out / "trials.json", f"{json.dumps({**note, 'diverged': diverged}, indent=1)}\n".encode())
    replace_file(out / "method.json", f"{json.dumps(chosen, indent=1)}\n".encode())
    console.print(f"best of {len(done)}: {100 * best['accuracy']:.2f} % with {chosen}", highlight=False, markup=False)
    if on == "first-three":
        console.print("chosen on the first three tasks, which must not count: run with --set skip=3")
    return chosen


@dataclass(frozen=True)
class Search:
    """What is searched: a method's settings, in a scenario, on a stream made for tuning."""

    plan: Plan
    entry: Entry
    scenario: str
    on: str
    space: dict[str, Range]
    seeds: tuple[int, ...]
    stream: Stream

    @property
    def document(self) -> dict[str, Any]:
        """All that makes it this search and no other, in JSON's words."""
        document = self.plan.document
        search = {
            **{part: document[part] for part in ("benchmark", "model", "training")},
            "method": self.entry.spec,
            "scenario": self.scenario,
            "on": self.on,
            "ranges": {place: values.said for place, values in self.space.items()},
            "seeds": self.seeds,
            "data": {task.name: task.fingerprint[:16] for task in self.stream},
        }
        found: dict[str, Any] = json.loads(json.dumps(search, default=str))
        return found

    def check(self) -> None:
        """Raises RequestError where no learner can be made of it."""
        training, method = self.plan.experiment.training, self.entry.build()
        try:
            learners.attempt(training, self.plan.recipe, method, self.scenario, self.stream)
        except (ValueError, TypeError) as error:
            raise RequestError(f"{self.entry.label} in scenario {self.scenario!r}: {error}") from None

    def score(self, chosen: Mapping[str, Any]) -> float | None:
        """The mean grade over the seeds; None where one of them diverged."""
        try:
            grades = [grade(self.plan, self.entry, chosen, self.scenario, self.stream, seed) for seed in self.seeds]
        except FloatingPointError:
            return None
        except ValueError as error:  # what shows in a later task only
            raise RequestError(f"{self.entry.label} with {dict(chosen)}: {error}") from error
        return fmean(grades)


def grade(plan: Plan, entry: Entry, chosen: Mapping[str, Any], scenario: str, stream: Stream, seed: int) -> float:
    """The average accuracy of the method with these settings at the end of a stream."""
    method = methods.build(put(entry.spec, chosen))
    learner = learners.make(plan.experiment.training, plan.recipe, method, scenario, stream, seed=seed)
    for task in stream:
        learner.learn(task)
    return average_accuracy([learner.evaluate(stream)] * len(stream)) or 0.0


def _entry(plan: Plan, method: str) -> Entry:
    found = next((entry for entry in plan.entries if entry.label == method), None)
    if found is None:
        raise RequestError(unknown("method of this experiment", method, [entry.label for entry in plan.entries]))
    return found


def _study(out: Path, search: dict[str, Any]) -> Any:
    """The folder's study: new, or that of the same search."""
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise RequestError("tune needs Optuna: pip install 'perdure[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(out / "trials.log")))
    study = optuna.create_study(storage=storage, study_name="search", direction="maximize", load_if_exists=True)
    other = differences(study.user_attrs.get("search", search), search)
    if other:
        raise RequestError(f"{out} holds another search: {'; '.join(other)}. Take another folder with --out")
    study.set_user_attr("search", search)
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # of a process that was stopped: taken again
    return study


def _tried(study: Any) -> list[Any]:
    """The trials that came to an end; those that diverged have no value, those that were interrupted do not count."""
    from optuna.trial import TrialState

    found: list[Any] = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    return found


def _trial(study: Any, number: int, search: Search) -> str:
    """One trial to its end, in words. The first is what stands in the method."""
    import optuna

    study.sampler = optuna.samplers.TPESampler(seed=number)  # a search that is gone on with draws nothing twice
    if number == 0 and not study.get_trials(states=(optuna.trial.TrialState.WAITING,)):
        study.enqueue_trial(present(search.entry.spec, search.space))
    trial = study.ask()
    chosen = {place: suggest(trial, place, values) for place, values in search.space.items()}
    score = search.score(chosen)
    study.tell(trial, score, state=None if score is not None else optuna.trial.TrialState.PRUNED)
    return f"{chosen}: " + ("diverged" if score is None else f"{100 * score:.2f} %")
