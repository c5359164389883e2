"""A store: a model in production, its versions and exams, and everything that can be done with it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from perdure import methods, models, recipes, sealed
from perdure.method import Compose, Method
from perdure.recipes import tables
from perdure.recipes.recipe import Recipe
from perdure.store import exams as marks
from perdure.store import gate
from perdure.store.arrival import Arrival, arrive, whole
from perdure.store.drawn import Drawn
from perdure.store.exam import Answers, Exam, Said
from perdure.store.folder import FORMAT, MOVED, Folder, StoreError
from perdure.store.update import Answerer, Outcome, answered, first, judge, learnt, shift
from perdure.store.version import Version

if TYPE_CHECKING:
    import pyarrow

    from perdure.store import drift

ROOT = "store"
MEMORY = "20 MB"


def default_method(keep_rows: bool, recipe: Recipe) -> Method:
    """Replay with distillation, capped in bytes; where old rows may not be kept, SLDA on a frozen body, else EWC."""
    if keep_rows:
        return methods.DERpp(capacity=MEMORY, policy="balanced")
    return methods.SLDA() if recipe.frozen else methods.EWC()


class Store:
    """A model in production, in the folder `root`/`name`.

    `build` makes the user's own network, for a store that was begun with one.
    """

    def __init__(self, name: str, root: str | os.PathLike[str] = ROOT, *, build: Callable[[], nn.Module] | None = None):
        self.folder = Folder(Path(root) / _plain(name))
        if not self.folder.settings.exists():
            there = sorted(found.parent.name for found in Path(root).glob("*/store.json"))
            raise StoreError(f"there is no store {name!r} in {root}; there are {', '.join(there) or 'none'}")
        self.settings = sealed.read(self.folder.settings)
        if self.settings["format"] > FORMAT:
            raise StoreError(f"{self.folder.path} was written by a newer Perdure; upgrade perdure")
        if self.settings["name"] != name:
            raise StoreError(f"{self.folder.path} is the store {self.settings['name']!r}, under another name")
        if self.settings["own"] and build is None:
            raise StoreError("this store has a network of your own: pass build= (--build MODULE:FUNCTION)")
        self.build, self.save_every = build, 10.0
        self.rules = gate.Rules(**self.settings["rules"])

    # ---- beginning ----

    @classmethod
    def init(
        cls,
        name: str,
        data: Any = None,
        *,
        recipe: Recipe,
        root: str | os.PathLike[str] = ROOT,
        method: Method | None = None,
        training: Mapping[str, Any] | None = None,
        rules: gate.Rules | None = None,
        share: float = marks.SHARE,
        keep_rows: bool = True,
        seed: int = 0,
        key: str | None = None,
        exams: Mapping[str, Any] | None = None,
        build: Callable[[], nn.Module] | None = None,
    ) -> tuple[Store, Outcome]:
        """A new store and its first version: learnt from `data`, or, without, the network of `build` as it is.

        recipe     how rows are read (`perdure.recipes`)
        share      of every update's rows, those that are examined and never learnt
        keep_rows  False: no row of the past is stored, neither by the method nor as an exam
        exams      files or tables by name, examined from now on

        Raises StoreError for a store that is there already, RefusedError for data that cannot be learnt. Stopped, the
        same call goes on.
        """
        chosen = default_method(keep_rows, recipe) if method is None else method
        _refuse_kept_rows(chosen, keep_rows)
        if data is None and build is None:
            raise StoreError("a store begins with data to learn, or with a trained network: pass data or build")
        settings = {"format": FORMAT, "name": name, "key": key or marks.new_key(), "recipe": recipe.settings()}
        settings |= {
            "method": chosen.settings(),
            "training": dict(training or {}),
            "rules": asdict(rules or gate.Rules()),
        }
        settings |= {"share": share, "keep_rows": keep_rows, "seed": seed, **_own(build)}
        folder = _claimed(Path(root), name, settings, key is not None)
        store = cls(name, root, build=build)
        try:
            return store, store._begin(exams or {}) if data is None else store.update(data, exams=exams)
        except StoreError:
            with folder.held():  # another process may have begun the same store meanwhile: what it made stays
                if not folder.versions():
                    shutil.rmtree(folder.path)
            raise

    # ---- learning ----

    def update(self, data: Any, *, exams: Mapping[str, Any] | None = None, accept_shift: bool = False) -> Outcome:
        """A transaction: new data is checked, learnt, examined with all that is old, and promoted or refused.

        `data` is a file, a folder of images or a pyarrow Table. Killed at any instant, production is as before or as
        after; the same call goes on where it was. Raises RefusedError for data that cannot be learnt.
        """
        with self.folder.held():
            notes = self.folder.recover()
            table = _table(data)
            brought = _tables(exams or {})
            parent = self._production()
            recipe = recipes.build(self.settings["recipe"]) if parent is None else parent.recipe()
            learner = None if parent is None else parent.learner(self.own_network())
            number = max(self.folder.versions(), default=0) + 1
            arrival = arrive(
                table, brought, recipe,
                name=f"{number:04d}", key=self.settings["key"], share=self.settings["share"],
                asked={place for exam in self.exams() if " " in exam.name for place in exam.marks},
                known=[] if learner is None else learner.classes,
            )  # fmt: skip
            done = self._already(arrival.fingerprint, notes)
            if done is not None:
                return done
            if not recipe.kind:
                recipe.fit(arrival.learn)
            incumbent = None if learner is None else Answerer(learner, deepcopy(recipe))
            odd = None if incumbent is None or accept_shift else shift(self, parent, arrival, incumbent)
            if odd is not None:
                self.folder.note("held", None, [odd])
                return Outcome("held", None, [odd], notes)
            recipe.extend(arrival.learn)
            before = {} if learner is None else asdict(learner.cost)
            taught = learnt(self, arrival, recipe, number, parent, notes)
            outcome = judge(self, arrival, Answerer(taught, recipe), incumbent, before, number)
            return Outcome(outcome.kind, number, outcome.why, [*notes, *outcome.warnings], outcome.card)

    def rollback(self, version: int | None = None) -> int:
        """Makes an earlier version answer again: `version`, or the one that was in production before. Gives its number.

        Raises StoreError where there is none, CheckpointError for a version that is damaged.
        """
        with self.folder.held():
            self.folder.recover()
            now = self.folder.production()
            if version is None:
                earlier = [e["version"] for e in self.folder.history() if e["event"] in MOVED and e["version"] != now]
                if not earlier:
                    raise StoreError("no other version was ever in production")
                version = int(earlier[-1])
            if version not in self.folder.promoted():
                raise StoreError(
                    f"version {version} was never in production; {self.folder.promoted()} were. "
                    'To take it nevertheless: perdure promote, with --force "why"'
                )
            self._move(version, "rolled back", [])
            return version

    def promote(self, version: int, force: str) -> None:
        """Makes a version answer that the gate refused; `force` says why, and stands in the history."""
        if not force.strip():
            raise StoreError("say why: the history keeps it")
        with self.folder.held():
            self.folder.recover()
            self._move(version, "forced", [force])

    def _move(self, version: int, event: str, why: list[str]) -> None:
        Version.open(self.folder, version).check()
        if version == self.folder.production():
            raise StoreError(f"version {version} is in production already")
        self.folder.point(version)
        self.folder.note(event, version, why)

    # ---- asking ----

    def answerer(self, version: int | None = None) -> Answerer:
        """What answers: a version's learner and how its rows are read; the one in production unless given."""
        found = self._production() if version is None else Version.open(self.folder, version)
        if found is None:
            raise StoreError(f"the store {self.settings['name']!r} has no version yet")
        return Answerer(found.learner(self.own_network()), found.recipe())

    def predict(self, data: Any, *, version: int | None = None, min_confidence: float = 0.0) -> pyarrow.Table:
        """The rows with columns `prediction`, `confidence` and `p_LABEL` a label; no prediction below `min_confidence`.

        Raises ValueError for rows that cannot be read.
        """
        return predicted(self.answerer(version), _table(data), min_confidence)

    def check(self, data: Any) -> drift.Drift:
        """Whether rows differ from those that were learnt, without labels: see `perdure.store.drift`."""
        from perdure.store import drift

        return drift.check(self, _table(data))

    def export(self, path: str | os.PathLike[str]) -> float:
        """The version in production as ONNX, checked on exam rows; gives the largest difference of a probability."""
        from perdure.store import export

        return export.export(self, Path(path))

    def status(self) -> dict[str, Any]:
        """What is live, what is under way, and which promises are off."""
        number = self.folder.production()
        card = {} if number is None else Version.open(self.folder, number).card
        return {
            "store": self.settings["name"],
            "production": number,
            "versions": self.folder.versions(),
            "classes": card.get("classes", []),
            "exams": card.get("exams", []),
            "warnings": card.get("warnings", []),
            "cost": card.get("cost", {}),
            "under way": (self.folder.work / "request.json").exists(),
            "promises off": self.promises_off(),
            "settings": {key: self.settings[key] for key in ("recipe", "method", "training", "rules", "share")},
        }

    def history(self) -> list[dict[str, Any]]:
        """Every event, oldest first, each with the card of its version, where it has one."""
        events = self.folder.history()
        cards = {number: Version.open(self.folder, number).card for number in self.folder.versions()}
        return [{**event, "card": cards.get(event["version"])} for event in events]

    def diff(self, one: int, other: int) -> dict[str, Any]:
        """Two versions on every exam: accuracy, rows that went from right to wrong and back; and their sizes."""
        versions = {number: Version.open(self.folder, number) for number in (one, other)}
        found = {number: self.answerer(number) for number in versions}
        exams = self.exams()
        said: dict[int, dict[str, Said]] = {}
        labels: dict[str, Said] = {}
        for number, who in found.items():
            said[number], labels = answered(self, exams, None, who)
        right = {number: {name: said[number][name] == labels[name] for name in labels} for number in versions}
        rows = [
            {
                "exam": name,
                "rows": len(labels[name]),
                "accuracy": [float(right[n][name].mean()) if len(labels[name]) else None for n in (one, other)],
                "lost": int((right[one][name] & ~right[other][name]).sum()),
                "gained": int((~right[one][name] & right[other][name]).sum()),
            }
            for name in labels
        ]
        return {"versions": [one, other], "exams": rows, "bytes": [versions[n].card["bytes"] for n in (one, other)]}

    def exams(self) -> list[Exam]:
        """The exams of all versions that were ever in production, in their order."""
        return [exam for number in self.folder.promoted() for exam in Version.open(self.folder, number).exams()]

    def drawn(self) -> list[Drawn]:
        """The statistics that stand for exams, where no rows are kept."""
        found = [Version.open(self.folder, number).drawn() for number in self.folder.promoted()]
        return [drawn for drawn in found if drawn is not None]

    def answers(self) -> list[Answers]:
        """What each version that was ever in production answered when it was made."""
        return [Version.open(self.folder, number).answers() for number in self.folder.promoted()]

    def promises_off(self) -> list[str]:
        """What this store cannot promise, as sentences."""
        if self.settings["keep_rows"]:
            return []
        off = [
            "no rows are kept: the gate judges on the newest rows before they are dropped, on rows drawn from what was "
            "counted of each label, and on exams you bring",
            "nothing tells whether new inputs differ from those that were learnt (perdure check)",
        ]
        shown = "no exam was brought: that earlier updates are not forgotten is shown on drawn rows only"
        return off if any(" " in exam.name for exam in self.exams()) else [*off, shown]

    def own_network(self) -> nn.Module | None:
        """The user's network as it was before its first task, with a head that grows; None for a built-in one."""
        if self.build is None:
            return None
        network = self.build()
        try:
            known = self.settings.get("classes") or None
            return network if hasattr(network, "grow") else models.adapt(network, head=None, classes=known)
        except (TypeError, ValueError) as error:
            raise StoreError(f"the network of build= (--build) cannot be taken: {error}") from error

    # ---- inside ----

    def _production(self) -> Version | None:
        number = self.folder.production()
        return None if number is None else Version.open(self.folder, number)

    def _already(self, fingerprint: str, found: list[str]) -> Outcome | None:
        """What became of the same rows, if nothing has happened since: a process may end before it can say so."""
        number = max(self.folder.versions(), default=0)
        if not number:
            return None
        card = Version.open(self.folder, number).card
        kind: Literal["promoted", "refused"] = "promoted" if number == self.folder.production() else "refused"
        if card["data"]["fingerprint"] != fingerprint or (
            kind == "refused" and card["parent"] != self.folder.production()
        ):
            return None
        notes = [*found, f"these rows were learnt already, in version {number}", *card["warnings"]]
        return Outcome(kind, number, card["decision"]["refusals"], notes, card)

    def _begin(self, exams: Mapping[str, Any]) -> Outcome:
        """The first version: the user's network as it is, and what it is examined with."""
        with self.folder.held():
            recipe, brought = recipes.build(self.settings["recipe"]), _tables(exams)
            for table in brought.values():
                recipe.check(table)
                if recipe.learns_values:
                    raise StoreError(f"the recipe {recipe.name!r} learns from rows that are in no exam: pass data too")
                recipe.fit(table)
            sat = whole("0001", brought, recipe, self.settings["key"])
            arrival = Arrival(None, None, sat, {}, "", 0, [])
            return judge(self, arrival, Answerer(first(self, recipe), recipe), None, {}, 1)


def predicted(answerer: Answerer, table: pyarrow.Table, min_confidence: float = 0.0) -> pyarrow.Table:
    """See `Store.predict`."""
    try:
        answerer.recipe.check(table, labelled=False)
    except ValueError as error:
        raise StoreError(f"these rows cannot be answered: {error}") from error
    p = answerer.learner.predict_proba(answerer.recipe.rows(table, labelled=False))
    confidence, best = p.max(1)
    labels = answerer.learner.classes
    said = [labels[i] if c >= min_confidence else None for i, c in zip(best.tolist(), confidence.tolist(), strict=True)]
    columns = {"prediction": said, "confidence": confidence.tolist()}
    columns |= {f"p_{label}": p[:, i].tolist() for i, label in enumerate(labels)}
    for name, values in columns.items():
        if name in table.column_names:
            table = table.drop_columns([name])
        table = table.append_column(name, [values])
    return table


def _table(data: Any) -> pyarrow.Table:
    return tables.read(data) if isinstance(data, str | os.PathLike) else data


def _tables(data: Mapping[str, Any]) -> dict[str, pyarrow.Table]:
    return {_plain(title): _table(part) for title, part in data.items()}


def _plain(name: str) -> str:
    """A name that is a file's name and nothing else."""
    if not name or not all(c.isalnum() or c in "-_." for c in name) or name.startswith("."):
        raise StoreError(f"{name!r} is no name for a store or an exam; use letters, digits, '-', '_' and '.'")
    return name


def _refuse_kept_rows(method: Method, keep_rows: bool) -> None:
    keepers = [part.name for part in (method.parts if isinstance(method, Compose) else [method]) if part.keeps_rows]
    if keepers and not keep_rows:
        raise StoreError(
            f"{keepers[0]} stores rows of the past, and here none may be kept; take ewc, mas, si, lwf or slda"
        )


def _own(build: Callable[[], nn.Module] | None) -> dict[str, Any]:
    """Whether the network is the user's, and which labels its outputs stand for before anything was learnt."""
    return {"own": build is not None, "classes": list(getattr(build(), "classes", ())) if build else []}


def _claimed(root: Path, name: str, settings: dict[str, Any], given_key: bool) -> Folder:
    """The folder of a store to begin, with its settings. Raises StoreError where a store of the name is there."""
    folder = Folder(root / _plain(name))
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.held():
        if folder.versions() or folder.production() is not None:
            raise StoreError(f"there is a store {name!r} already; `perdure update {name}` teaches it more")
        _settle(folder, settings, given_key)
    return folder


def _settle(folder: Folder, settings: dict[str, Any], given_key: bool) -> None:
    """Writes down what the store is; of one that was begun and stopped, the key stays, so that it goes on."""
    if folder.settings.exists():
        begun = sealed.read(folder.settings)
        if not given_key:
            settings["key"] = begun["key"]
        if begun == settings:
            return
        folder.close()
    sealed.write(folder.settings, settings)
