"""The document in an experiment's TOML file, and what `--set key=value` changes in it."""

import re
import tomllib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from perdure.experiment.settings import ConfigError, Problem

_KEY = re.compile(r"[\w-]+(\[\d+\])*(\.[\w-]+(\[\d+\])*)*")


def read(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The document in a TOML file with the overrides put in; a ConfigError says what stands in the way."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([Problem("", f"cannot read the file: {error.strerror}")], str(path)) from None
    except ValueError as error:  # not TOML, or not UTF-8; tomllib says line and column
        raise ConfigError([Problem("", f"not TOML: {error}")], str(path)) from None
    problems = [problem for override in overrides if (problem := put(document, override))]
    if problems:
        raise ConfigError(problems, str(path))
    return document


def put(document: dict[str, Any], override: str) -> Problem | None:
    """Puts `training.epochs=2` or `methods[1].strength=3` into the document; the value is TOML, else a string."""
    key, sign, text = (part.strip() for part in override.partition("="))
    place = f"--set {override}"
    if not sign or not _KEY.fullmatch(key):
        return Problem(place, "expected key=value, with a key like training.epochs or methods[1].strength")
    parts = [int(part) if part.isdigit() else part for part in re.findall(r"[\w-]+", key)]
    here: Any = document
    for part, following in pairwise(parts):
        if isinstance(here, dict) and isinstance(part, str):
            here.setdefault(part, {})
        elif not _inside(here, part):
            return Problem(place, _nowhere(here, part))
        if isinstance(here[part], str) and isinstance(following, str):
            here[part] = {"name": here[part]}  # "ewc" is short for { name = "ewc" }
        here = here[part]
    if not _inside(here, parts[-1]):
        return Problem(place, _nowhere(here, parts[-1]))
    here[parts[-1]] = _value(text)
    return None


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _inside(here: Any, part: str | int) -> bool:
    if isinstance(here, list):
        return isinstance(part, int) and part < len(here)
    return isinstance(here, dict) and isinstance(part, str)


def _nowhere(here: Any, part: str | int) -> str:
    if isinstance(here, list):
        return f"{part!r} is no entry of a list of {len(here)}; count from [0]"
    return f"{part!r} has no place inside {here!r}"
