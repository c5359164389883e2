"""The page at /: versions, exams and drift at a glance. It fetches nothing and runs no script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from perdure import report
from perdure.checkpoint import CheckpointError
from perdure.report import words

if TYPE_CHECKING:
    from perdure.store.store import Store

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
MADE = ("promoted", "refused")  # events that come with a version of their own


IDLE: dict[str, Any] = {"trouble": "", "update": {"running": False, "failure": "", "last": None}, "feedback waiting": 0}


def render(store: Store, version: int, health: dict[str, Any] | None = None, drift: Sequence[str] = ()) -> str:
    """The page as a string; without `health` as a report, of no service. A damaged store is shown as far as it goes."""
    live, health = health is not None, health or IDLE
    try:
        history, promises, trouble = store.history(), store.promises_off(), ""
    except CheckpointError as error:
        history, promises, trouble = [], [], str(error)
    made = [event for event in history if event["event"] in MADE and event["card"] is not None]
    cards = {event["version"]: event["card"] for event in made}
    names = list(dict.fromkeys(exam["exam"] for event in made for exam in event["card"]["exams"] if exam["rows"]))
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            store=store.settings["name"],
            version=version,
            live=live,
            card=cards.get(version),
            waiting=health["feedback waiting"],
            update=health["update"],
            troubles=[trouble for trouble in (health["trouble"], health["update"]["failure"], trouble) if trouble],
            history=history[::-1],
            exams=names,
            rows=[(event, _marks(event["card"], names)) for event in made],
            drift=drift,
            promises=promises,
            words=words,
        )
    )


def _marks(card: dict[str, Any], names: list[str]) -> list[float | None]:
    """The share of right answers in each exam; None where it was not sat."""
    found = {exam["exam"]: exam["candidate"] for exam in card["exams"]}
    return [found.get(name) for name in names]


def _environment() -> Environment:
    """Templates of this room, and the style sheet that it shares with reports."""
    return Environment(
        loader=FileSystemLoader([Path(__file__).parent, Path(report.__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
