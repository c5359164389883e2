"""One self-contained HTML page from results.json: fetches nothing, runs no script, same results give the same bytes."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from perdure.checkpoint import replace_file
from perdure.report import charts, view, words

SCHEMA = 1
QUALITY = ("average_accuracy", "forgetting", "backward_transfer", "learning_accuracy")


def write(results: dict[str, Any], path: Path) -> None:
    """Write the page of ``results`` (the content of a results.json) to ``path``, whole or not at all."""
    replace_file(path, render(results).encode())


def render(results: dict[str, Any]) -> str:
    """The page as a string; raises ValueError for results of another schema or without a cell."""
    if results.get("schema") != SCHEMA:
        raise ValueError(
            f"these results have schema {results.get('schema')!r}, and this Perdure reads schema {SCHEMA}; "
            "run the experiment again, or read them with the Perdure that wrote them"
        )
    if not results["cells"]:
        raise ValueError("these results have no cell; run at least one method, scenario and seed first")
    groups = view.scenarios(results)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            results=results,
            benchmark=results["benchmark"],
            measured=results["measured"],
            machine=results["measured"]["machine"],
            scenarios=groups,
            seeds=sorted({cell["seed"] for cell in results["cells"]}),
            titles=view.titles(results),
            stopped=[cell for cell in results["cells"] if not cell["complete"]],
            settings=_settings(groups),
            config=json.dumps(results["config"], indent=2, ensure_ascii=False),
            leaders={(g.name, metric): words.leaders(g.entries, metric) for g in groups for metric in QUALITY},
            charts=charts,
            words=words,
            view=view,
        )
    )


def picture(results: dict[str, Any], path: Path, first_task: bool = False) -> None:
    """Average accuracy on the tasks learnt so far, of the first scenario, as an SVG file with its own style sheet.

    first_task  accuracy on the first task alone
    """
    group = view.scenarios(results)[0]
    tasks = len(results["benchmark"]["tasks"])
    pick, of = (
        (view.Entry.first_task, "the first task") if first_task else (view.Entry.seen_so_far, "the tasks learnt so far")
    )
    drawn = charts.by_method(group.drawn, pick, tasks, f"Accuracy on {of}")
    style = _environment().get_template("page.css.j2").render()
    named = str(drawn).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    named = named.replace('viewBox="0 0 440 ', 'viewBox="0 0 470 ', 1)  # an image is cut where its box ends
    replace_file(path, named.replace("</title>", f"</title><style>{style}</style>", 1).encode())


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": words.percent,
        "estimate": words.estimate,
        "seconds": words.seconds,
        "size": words.size,
        "count": words.count,
        "setting": words.setting,
        "named": words.named,
    }
    return environment


def _settings(groups: list[view.Scenario]) -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Settings by method title; more than one only where scenarios or seeds differ, each with where it was used."""
    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for group in groups:
        for entry in group.entries:
            for cell in (*entry.finished, *entry.stopped):
                known = found.setdefault(entry.title, [])
                if cell["settings"] not in [settings for _, settings in known]:
                    known.append((f"{group.title}, seed {cell['seed']}", cell["settings"]))
    return found
