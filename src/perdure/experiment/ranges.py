"""The settings that a search may change: what each may be, where it stands in a method, and what is refused."""

from __future__ import annotations

import copy
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from perdure import methods
from perdure.experiment import settings
from perdure.experiment.config import Entry
from perdure.experiment.settings import Problem, RequestError

Spec = dict[str, Any]  # what `methods.build` takes: {"name": "ewc", "strength": 1.0}, or {"parts": [...]}


@dataclass(frozen=True)
class Range:
    """The values that a setting may take: from `low` to `high` on a logarithmic scale, or one of `choices`."""

    low: float = 0.0
    high: float = 0.0
    choices: tuple[Any, ...] = ()

    def holds(self, value: Any) -> bool:
        """Whether the value is one of them."""
        if self.choices:
            return value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high

    @property
    def said(self) -> list[Any]:
        """The choices, or low and high."""
        return list(self.choices) or [self.low, self.high]

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


def usual(spec: Spec) -> dict[str, Range]:
    """The ranges that are known for a method, or for the parts of a composition."""
    return {
        place: USUAL[owner["name"]][name]
        for place, (owner, name) in _places(spec).items()
        if name in USUAL.get(owner["name"], {})
    }


def fitted(entry: Entry, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """The ranges, of whole numbers where a setting takes no others.

    A place is a setting's name; in a composition `part.setting`. Raises RequestError where a method has no such
    setting, or where the setting takes none of the values.
    """
    if not ranges:
        raise RequestError(f"no range is known for {entry.label}; give one, as in --range strength=0.01..100")
    places, space = _places(entry.spec), {}
    for place, values in ranges.items():
        if place not in places:
            raise RequestError(f"{entry.label} has no setting {place!r}; it has {', '.join(places)}")
        owner, name = places[place]
        space[place] = values if values.choices else _numbers(place, _kind(owner, name), values)
        for value in space[place].said:
            _try(entry, place, owner, name, value)
    return space


def put(spec: Spec, chosen: Mapping[str, Any]) -> Spec:
    """A copy of the spec with these values in their places."""
    found = copy.deepcopy(spec)
    places = _places(found)
    for place, value in chosen.items():
        owner, name = places[place]
        owner[name] = value
    return found


def present(spec: Spec, space: Mapping[str, Range]) -> dict[str, Any]:
    """What stands in the spec now, where the ranges hold it."""
    values = {place: owner[name] for place, (owner, name) in _places(spec).items() if place in space}
    return {place: value for place, value in values.items() if space[place].holds(value)}


def suggest(trial: Any, place: str, values: Range) -> Any:
    """What an Optuna trial takes out of a fitted range."""
    if values.choices:
        return trial.suggest_categorical(place, values.choices)
    if isinstance(values.low, int) and isinstance(values.high, int):
        return trial.suggest_int(place, values.low, values.high, log=True)
    return trial.suggest_float(place, values.low, values.high, log=True)


def _places(spec: Spec) -> dict[str, tuple[Spec, str]]:
    """Every setting by its place: the method that owns it, and its name; parts that share a name have none."""
    if "parts" not in spec:
        return {name: (spec, name) for name in spec if name != "name"}
    parts = list(_parts(spec))
    count = Counter(part["name"] for part in parts)
    return {
        f"{part['name']}.{name}": (part, name)
        for part in parts
        for name in part
        if name != "name" and count[part["name"]] == 1
    }


def _parts(spec: Spec) -> Iterator[Spec]:
    if "parts" not in spec:
        yield spec
    for part in spec.get("parts", ()):
        yield from _parts(part)


def _kind(owner: Spec, name: str) -> Any:
    method = methods.METHODS[owner["name"]]
    return next(setting.kind for setting in settings.of_fields(method, method.fields()) if setting.name == name)


def _numbers(place: str, kind: Any, values: Range) -> Range:
    """The range as the setting's own numbers."""
    kinds = get_args(kind) or (kind,)
    if float in kinds or int not in kinds:  # where neither, it is refused with the setting's own sentence
        return Range(float(values.low), float(values.high))
    if values.low != int(values.low) or values.high != int(values.high):
        raise RequestError(f"{place} takes whole numbers, and the range is {values.low:g}..{values.high:g}")
    return Range(int(values.low), int(values.high))


def _try(entry: Entry, place: str, owner: Spec, name: str, value: Any) -> None:
    """Raises RequestError for a value that the setting does not take."""
    method, problems = methods.METHODS[owner["name"]], list[Problem]()
    given = {key: item for key, item in owner.items() if key != "name"}
    known = settings.of_fields(method, method.fields())
    settings.fill({**given, name: value}, known, owner["name"], owner["name"], problems)
    if problems:
        raise RequestError(f"--range {place}: {problems[0].message}")
    try:
        methods.build(put(entry.spec, {place: value}))
    except (ValueError, TypeError) as error:
        raise RequestError(f"--range {place}: {error}") from None


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
