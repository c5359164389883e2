"""One update, from the new data to the decision: look, learn, examine, judge, and write a version."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import perdure
from perdure import methods, sealed
from perdure.checkpoint import CheckpointError, tensor_bytes
from perdure.data import Task
from perdure.learner import Learner
from perdure.recipes.recipe import Recipe
from perdure.store import gate, suspicion, version
from perdure.store.arrival import Arrival
from perdure.store.drawn import Drawn
from perdure.store.exam import Answers, Exam, Said, answers, given, kept, sit, texts, truth
from perdure.store.folder import now
from perdure.store.version import Version

if TYPE_CHECKING:
    from perdure.store.store import Store

ASKED = 2000  # rows of new data that the version in production answers before they are learnt
TIMED = 20  # answers of one row, of which the median time is taken


@dataclass(frozen=True)
class Outcome:
    """What became of an update: `version` is the one that was made, None where the data was held back."""

    kind: Literal["promoted", "refused", "held"]
    version: int | None
    why: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    card: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answerer:
    """A learner, and how its rows are read."""

    learner: Learner
    recipe: Recipe


def shift(store: Store, parent: Version | None, arrival: Arrival, incumbent: Answerer) -> str | None:
    """A sentence, where labels or the world seem to have changed: see `suspicion`."""
    known = set(incumbent.learner.classes)
    odd = suspicion.scattered(arrival.labels, {str(label) for label in known})
    if odd is not None:
        return odd

    def agreement(table: Any) -> suspicion.Agreement:
        labels = incumbent.recipe.labels(table)
        rows = [row for row, label in enumerate(labels) if label in known]
        rows = rows[:: max(1, len(rows) // ASKED)]
        said = answers(incumbent.learner, incumbent.recipe, table.take(rows)) if rows else []
        return suspicion.Agreement(sum(a == labels[row] for a, row in zip(said, rows, strict=True)), len(rows))

    exams = store.exams()
    own = [exam for exam in exams if " " not in exam.name]
    sat = None if own or parent is None else parent.own_grade()
    if sat is not None:
        return suspicion.shifted(agreement(arrival.learn), suspicion.Agreement(*sat))
    last = (own or exams)[-1:]
    return suspicion.shifted(agreement(arrival.learn), agreement(last[0].table)) if last else None


def learnt(
    store: Store, arrival: Arrival, recipe: Recipe, number: int, parent: Version | None, notes: list[str]
) -> Learner:
    """The learner with the new rows learnt: from its last save point, where this update was under way already."""
    request = {
        "number": number,
        "parent": None if parent is None else parent.number,
        "fingerprint": arrival.fingerprint,
        "settings": sealed.digest(store.settings),
    }
    place, task = store.folder.work / "learner.perdure", Task(recipe.rows(arrival.learn), name=f"{number:04d}")
    learner = _under_way(store, request, notes)
    if learner is None:
        store.folder.close()
        sealed.write(store.folder.work / "request.json", request)
        learner = first(store, recipe) if parent is None else parent.learner(store.own_network())
        learner.save(place)
        learner = Learner.load(place, model=store.own_network(), save_to=place, save_every=store.save_every)
    if task.name not in learner.tasks or learner.clock.begun:
        learner.learn(task)
    return learner


def _under_way(store: Store, request: dict[str, Any], notes: list[str]) -> Learner | None:
    """The learner of an update that was interrupted, if it is this one."""
    place = store.folder.work / "request.json"
    if not place.exists():
        return None
    try:
        if sealed.read(place) != request:
            notes.append("an unfinished update with other data is given up")
            return None
        path = store.folder.work / "learner.perdure"
        learner = Learner.load(path, model=store.own_network(), save_to=path, save_every=store.save_every)
    except (CheckpointError, ValueError) as error:
        notes.append(f"what was left of an unfinished update cannot be used ({error}); it begins anew")
        return None
    notes.append(f"the update goes on where it was stopped, at step {learner.clock.step}")
    return learner


def first(store: Store, recipe: Recipe) -> Learner:
    """A learner that knows nothing yet, or what the user's network knows."""
    settings = store.settings
    own = store.own_network()
    model = recipe.network() if own is None else own
    method = methods.build(settings["method"])
    return Learner(
        model, method, scenario="class", seed=settings["seed"], **{**recipe.training, **settings["training"]}
    )


def judge(
    store: Store, arrival: Arrival, candidate: Answerer, incumbent: Answerer | None, before: dict[str, Any], number: int
) -> Outcome:
    """Sits all exams, decides, writes the version and does what was decided. A first version is always promoted."""
    exams, drawn = [*store.exams(), *arrival.exams], counted(store, arrival, candidate.recipe, number)
    rows = kept(exams)
    asked = [exam.select(rows[exam.name]) for exam in exams]
    said, labels = answered(store, asked, drawn, candidate)
    past = said if incumbent is None else answered(store, asked, drawn, incumbent)[0]
    rows |= {name: list(range(len(labels[name]))) for name in labels if name not in rows}
    best = {name: _best(store, name, rows[name], past[name], labels[name]) for name in labels}
    known = [str(label) for label in (incumbent or candidate).learner.classes]
    sat = {name: gate.sitting(name, labels[name], said[name], past[name], best[name], known) for name in labels}
    # What was drawn from the new rows themselves is for later updates: these rows are here, and judge better.
    made = [sat[found.name] for found in store.drawn() if found.name in sat]
    sittings = [sat[exam.name] for exam in asked]
    size, milliseconds = tensor_bytes(candidate.learner.model.state_dict()), _milliseconds(candidate, asked)
    newest = None if incumbent is None or arrival.own is None else arrival.own.name
    decision = gate.decide(sittings, store.rules, newest, size, milliseconds, made)
    if incumbent is None:
        decision = gate.Decision(True, decision.findings)
    card = _card(store, arrival, candidate, before, [*sittings, *made], decision) | {
        "bytes": size,
        "milliseconds": milliseconds,
    }
    stored = arrival.exams if store.settings["keep_rows"] else arrival.brought
    left = Answers(rows, said)
    version.write(store.folder, number, candidate.learner, candidate.recipe, stored, drawn, left, card)
    store.folder.decide(number, decision.promote, decision.refusals)
    kind: Literal["promoted", "refused"] = "promoted" if decision.promote else "refused"
    return Outcome(kind, number, decision.refusals, card["warnings"], card)


def counted(store: Store, arrival: Arrival, recipe: Recipe, number: int) -> Drawn | None:
    """The statistics of all new rows, where none may be kept."""
    if store.settings["keep_rows"] or arrival.learn is None:
        return None
    import pyarrow

    table = pyarrow.concat_tables([arrival.learn, *([] if arrival.own is None else [arrival.own.table])])
    return Drawn.of(f"{number:04d}", recipe.rows(table, labelled=False), recipe.labels(table))


def answered(
    store: Store, exams: list[Exam], new: Drawn | None, who: Answerer
) -> tuple[dict[str, Said], dict[str, Said]]:
    """What is answered to every exam, those of rows and those that are drawn, and what would be right."""
    said, labels = sit(exams, who.learner, who.recipe), {exam.name: truth(exam, who.recipe) for exam in exams}
    for drawn in [*store.drawn(), *([] if new is None else [new])]:
        if len(drawn):
            rows, right = drawn.draw(store.settings["key"])
            said[drawn.name], labels[drawn.name] = texts(given(who.learner, rows)), texts(right)
    return said, labels


def _card(
    store: Store,
    arrival: Arrival,
    candidate: Answerer,
    before: dict[str, Any],
    sittings: list[gate.Sitting],
    decision: gate.Decision,
) -> dict[str, Any]:
    """What a version's card says, but for its number and files."""
    data = {"labels": arrival.labels, "fingerprint": arrival.fingerprint, "repeated": arrival.repeated}
    data["learnt"] = 0 if arrival.learn is None else arrival.learn.num_rows
    data["examined"] = 0 if arrival.own is None else len(arrival.own)
    return {
        "store": store.settings["name"],
        "parent": store.folder.production(),
        "made": now(),
        "perdure": perdure.__version__,
        "data": data,
        "settings": {key: store.settings[key] for key in ("recipe", "method", "training", "rules")},
        "pins": candidate.recipe.pins(),
        "classes": candidate.learner.classes,
        "exams": [_grades(sitting) for sitting in sittings],
        "decision": {"promote": decision.promote, "refusals": decision.refusals},
        "findings": [asdict(found) for found in decision.findings],
        "warnings": [*arrival.warnings, *decision.warnings, *store.promises_off()],
        "cost": _spent(before, asdict(candidate.learner.cost)),
    }


def _best(store: Store, exam: str, rows: list[int], incumbent: Said, labels: Said) -> Said:
    """The answers of the best version that ever sat these rows in production."""
    sat = [found.on(exam, rows) for found in store.answers()]
    return max([incumbent, *(said for said in sat if said is not None)], key=lambda said: int((said == labels).sum()))


def _milliseconds(candidate: Answerer, exams: list[Exam]) -> float:
    """How long the answer to one row takes, the reading of the row included: the median of some."""
    table = next((exam.table for exam in exams if len(exam)), None)
    if table is None:
        return 0.0
    taken = []
    for row in range(TIMED):
        one = table.slice(row % table.num_rows, 1)
        start = time.perf_counter()
        answers(candidate.learner, candidate.recipe, one)
        taken.append(time.perf_counter() - start)
    return 1000 * statistics.median(taken)


def _grades(sitting: gate.Sitting) -> dict[str, Any]:
    """An exam on the card: how many rows, and the share of right answers of each."""
    rows = len(sitting.labels)
    shares = {who: float(getattr(sitting, who).mean()) if rows else None for who in ("candidate", "incumbent", "best")}
    return {"exam": sitting.exam, "rows": rows, **shares}


def _spent(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What the update cost: what adds up, by difference; sizes, as they are."""
    sizes = ("parameter_bytes", "memory_bytes")
    return {name: value if name in sizes else value - before.get(name, 0) for name, value in after.items()}
