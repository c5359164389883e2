"""Settings that follow from a signature: what a builder or a method accepts, and sentences about what it does not."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from perdure.spelling import guess

Checked = TypeVar("Checked", bound=BaseModel)
CHECKED = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
# What pydantic says, and what we say.
PLAIN = {
    "Input should be ": "",
    "Value error, ": "",
    "a valid string": "a string",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid array": "a list",
    "a valid tuple": "a list",
    "an object": "a table",
    "greater than or equal to": "a number of at least",
    "greater than": "a number above",
    "less than": "a number below",
    "Path does not point to a": "the path of a",
    "String should match pattern": "text that matches",
    "Tuple should have at least 1 item after validation, not 0": "at least one entry",
}


class RequestError(ValueError):
    """What was asked for cannot be done, and the sentence says why: no bug, so no traceback."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a configuration: where (`methods[1].strengh`) and a sentence."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" if self.place else self.message


class ConfigError(RequestError):
    """Everything that is wrong in a configuration, at once; `source` names the file."""

    def __init__(self, problems: Sequence[Problem], source: str) -> None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{count} in {source}:", *(f"  {problem}" for problem in problems)]))
        self.problems = tuple(problems)
        self.source = source

    def __reduce__(self) -> tuple[type[ConfigError], tuple[tuple[Problem, ...], str]]:
        """For the way from one process to another, whose default would call it with the sentence alone."""
        return type(self), (self.problems, self.source)


@dataclass(frozen=True)
class Setting:
    """One setting: its name, its type, and its default (`...` when it must be given)."""

    name: str
    kind: Any
    default: Any = ...

    def __str__(self) -> str:
        choices = f" ({', '.join(map(str, get_args(self.kind)))})" if get_origin(self.kind) is Literal else ""
        return self.name if self.default is ... else f"{self.name}={plain(self.default)!r}{choices}"


def of_callable(function: Callable[..., object], leave_out: Collection[str] = ()) -> tuple[Setting, ...]:
    """The settings of a builder: the parameters of its signature."""
    hints = get_type_hints(function, include_extras=True)
    return tuple(
        Setting(name, hints[name], ... if parameter.default is inspect.Parameter.empty else parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in leave_out
    )


def of_fields(owner: type, fields: Iterable[dataclasses.Field[Any]]) -> tuple[Setting, ...]:
    """The settings of a dataclass: the given fields of it."""
    hints = get_type_hints(owner, include_extras=True)
    return tuple(Setting(field.name, hints[field.name], _default(field)) for field in fields)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return ... if field.default_factory is dataclasses.MISSING else field.default_factory()


def plain(value: Any) -> Any:
    """The value in JSON's own words: tuples become lists, paths text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def unknown(kind: str, word: object, choices: Collection[str]) -> str:
    """The sentence about a word that is none of the choices."""
    hint = guess(word, choices) if isinstance(word, str) else ""
    return f"unknown {kind} {word!r}; choose from {', '.join(choices) or 'nothing'}.{hint}"


def fill(
    values: Mapping[str, Any], settings: Sequence[Setting], place: str, owner: str, problems: list[Problem]
) -> dict[str, Any] | None:
    """The settings of `owner` with its defaults filled in, typed; on errors None, and a problem for each."""
    fields: dict[str, Any] = {setting.name: (setting.kind, setting.default) for setting in settings}
    model = create_model("Settings", __config__=CHECKED, **fields)
    checked = validate(model, values, place, owner, problems)
    return None if checked is None else {setting.name: getattr(checked, setting.name) for setting in settings}


def validate(
    model: type[Checked], values: Mapping[str, Any], place: str, owner: str, problems: list[Problem]
) -> Checked | None:
    """The values as a pydantic model, or None and a problem for each thing that is wrong with them."""
    try:
        # JSON is the road on which pydantic is strict about types and yet takes a list for a tuple.
        return model.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        found: dict[str, Problem] = {}
        for item in error.errors():
            if item["type"] == "too_short" and any(other["loc"][:-1] == item["loc"] for other in error.errors()):
                continue  # too short only because its one entry is wrong, and that is said
            problem = _explain(dict(item), values, place, owner, model)
            earlier = found.get(problem.place)
            # The branches of `int | str` speak one after the other about one value.
            if earlier is None:
                found[problem.place] = problem
            elif earlier.message != problem.message:
                message = earlier.message.rsplit(", found", 1)[0] + " or " + problem.message.removeprefix("expected ")
                found[problem.place] = Problem(problem.place, message)
        problems += found.values()
        return None


def _explain(
    item: dict[str, Any], values: Mapping[str, Any], place: str, owner: str, model: type[BaseModel]
) -> Problem:
    """One of pydantic's errors as a problem: the place in the user's own file, and a sentence."""
    value: Any = values
    where = place
    fields: type[BaseModel] | None = model
    for part in item["loc"]:
        inside = (isinstance(value, Mapping) and part in value) or (isinstance(value, list) and isinstance(part, int))
        if not inside and item["type"] != "missing":
            break  # the rest of the path names a branch of a union, not a place in the file
        known = tuple(fields.model_fields) if fields else ()
        where = join(where, part)
        fields = _inner(fields, part)
        value = value[part] if inside else None
    *above, last = item["loc"]
    if item["type"] == "extra_forbidden":
        return Problem(where, unknown(f"{above[-1] if above else owner} setting", last, known))
    if item["type"] == "missing":
        return Problem(where, f"{owner} needs it; add {last} = ...")
    message = re.sub("|".join(PLAIN), lambda found: PLAIN[found[0]], item["msg"])
    choices = re.findall(r"'([^']*)'", item["msg"]) if item["type"] == "literal_error" else []
    hint = guess(value, choices)
    return Problem(where, f"expected {message}, found {value!r}" + (f".{hint}" if hint else ""))


def _inner(model: type[BaseModel] | None, part: str | int) -> type[BaseModel] | None:
    """The model behind one field of a model, where it is one."""
    field = model.model_fields.get(str(part)) if model else None
    kind = field.annotation if field else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def join(place: str, part: str | int) -> str:
    """`methods` and 1 are `methods[1]`; `training` and `epochs` are `training.epochs`."""
    if isinstance(part, int):
        return f"{place}[{part}]"
    return f"{place}.{part}" if place else part
