"""The tables of published results: each a TOML file, checked, whose lines are experiments with the paper's number."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, model_validator

from perdure.experiment import config, settings
from perdure.experiment.config import Plan
from perdure.experiment.results import Scenario
from perdure.experiment.settings import RequestError

SCENARIOS: tuple[Scenario, ...] = ("task", "domain", "class")


class Row(BaseModel):
    """One method: its published numbers by scenario ([mean] or [mean, standard deviation], per cent), and our words.

    `changes` are settings that a scenario ("all" for every one) has otherwise than the table, as in
    {"class": {"training.steps": 500}}; `method.strength` and the like change the method. `notes` are the sentences on
    what fell short and what was tried, by scenario or "all". `against` is the label of the row that a speed-up is
    reckoned against, where a table counts steps.
    """

    model_config = settings.CHECKED

    label: str
    method: str | dict[str, Any]
    scenarios: tuple[Scenario, ...] = SCENARIOS
    published: dict[Scenario, tuple[float] | tuple[float, float]] = {}
    source: str = ""
    changes: dict[str, dict[str, Any]] = {}
    notes: dict[str, str] = {}
    against: str = ""


class Table(BaseModel):
    """A published protocol: the experiment that all lines share, the sources, the rows; `hours` on two cores.

    variants benchmarks to run every line on: settings that each has otherwise; their cells count as seeds of one line
    measure  "accuracy", or "steps": how many steps the last task took to reach `threshold` on its test rows
    others   what another library reached, in others.json of the table's folder, and the command that measured it
    """

    model_config = settings.CHECKED

    name: str = ""
    title: str
    protocol: str
    hours: float
    experiment: dict[str, Any]
    sources: dict[str, str] = {}
    rows: tuple[Row, ...] = Field(min_length=1)
    variants: tuple[dict[str, Any], ...] = ({},)
    measure: Literal["accuracy", "steps"] = "accuracy"
    threshold: float | None = None
    others: str = ""

    @model_validator(mode="after")
    def _known_names(self) -> Table:
        for row in self.rows:
            if row.published and row.source not in self.sources:
                raise ValueError(f"{row.label} has published numbers and no source among {', '.join(self.sources)}")
            if row.against and (self.measure != "steps" or row.against not in [other.label for other in self.rows]):
                raise ValueError(f"{row.label} is against {row.against!r}: that takes a row of a table of steps")
        return self

    def lines(self) -> Iterator[Line]:
        """Every row in every scenario that it declares."""
        wanted = self.experiment.get("scenarios", SCENARIOS)
        for row in self.rows:
            for scenario in row.scenarios:
                if scenario in wanted:
                    yield from (Line(self, row, scenario, number) for number in range(len(self.variants)))


@dataclass(frozen=True)
class Line:
    """One row in one scenario and variant: an experiment of its own, so that lines can be run apart."""

    table: Table
    row: Row
    scenario: Scenario
    variant: int = 0

    @property
    def slug(self) -> str:
        """Its folder's name: `ewc-class`, and `ewc-class-2` for the second variant."""
        words = "".join(letter if letter.isalnum() or letter == "+" else " " for letter in self.row.label.lower())
        number = [str(self.variant + 1)] if len(self.table.variants) > 1 else []
        return "-".join([*words.replace("+", " plus ").split(), self.scenario, *number])

    def document(self) -> dict[str, Any]:
        """The experiment, as a configuration file would have it."""
        method = {"name": self.row.method} if isinstance(self.row.method, str) else dict(self.row.method)
        document = {**self.table.experiment, "name": self.slug, "scenarios": [self.scenario]}
        document["training"] = dict(document.get("training", {}))
        document["benchmark"] = {**document["benchmark"], **self.table.variants[self.variant]}
        for key, value in {**self.row.changes.get("all", {}), **self.row.changes.get(self.scenario, {})}.items():
            if key.startswith("method."):
                method[key.removeprefix("method.")] = value
            elif key.startswith("training."):
                document["training"][key.removeprefix("training.")] = value
            else:
                document[key] = value
        document["methods"] = [{**method, "label": self.row.label}]
        return document

    def plan(self) -> Plan:
        """The checked experiment."""
        return config.plan(self.document(), f"{self.table.name}, {self.slug}")

    @property
    def note(self) -> str:
        """Our words on it."""
        return " ".join(filter(None, (self.row.notes.get("all", ""), self.row.notes.get(self.scenario, ""))))


def names() -> list[str]:
    """The tables there are."""
    folder = resources.files("perdure.experiment") / "tables"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def load(name: str) -> Table:
    """A table by name, or from a TOML file of one's own. Raises RequestError for one that there is not, or is wrong."""
    shipped = resources.files("perdure.experiment") / "tables" / f"{name}.toml"
    own = Path(name)
    if name not in names() and not own.is_file():
        raise RequestError(settings.unknown("table", name, names()))
    text = (shipped if name in names() else own).read_text(encoding="utf-8")
    try:
        document = {**tomllib.loads(text), "name": name if name in names() else own.stem}
        # JSON is the road on which pydantic is strict about types and yet takes a list for a tuple.
        return Table.model_validate_json(json.dumps(document))
    except ValueError as error:
        raise RequestError(f"{name} is no table: {error}") from None
