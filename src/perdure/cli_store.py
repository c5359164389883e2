"""The commands of a store: a model in production."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.recipes.recipe import Recipe
    from perdure.store.store import Store
    from perdure.store.update import Outcome

DONE, NOT_PROMOTED = 0, 3


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds init, update, status, history, diff, rollback, promote and predict."""
    _add_init(commands)
    update = command(commands, "update", _update, "teach it new data; promoted only if it forgot nothing")
    update.add_argument("data", help="a .parquet, .csv, .tsv or .jsonl file, or a folder of images by label")
    update.add_argument("--exam", action="append", default=[], type=Path, metavar="FILE", help="rows to examine with")
    update.add_argument("--accept-shift", action="store_true", help="learn data that looks as if the world changed")
    update.add_argument("--save-every", type=float, default=10.0, metavar="SECONDS", help="between save points; 10")
    command(commands, "status", _status, "what is live, and how it does")
    history = command(commands, "history", _history, "what every update did to every earlier exam")
    history.add_argument("--report", type=Path, metavar="FILE", help="draw it as an HTML page too")
    diff = command(commands, "diff", _diff, "two versions on every exam")
    diff.add_argument("one", type=int)
    diff.add_argument("other", type=int)
    rollback = command(commands, "rollback", _rollback, "let an earlier version answer again")
    rollback.add_argument("number", metavar="VERSION", type=int, nargs="?", help="the one before unless given")
    rollback.set_defaults(late="number")
    promote = command(commands, "promote", _promote, "take a version that was refused")
    promote.add_argument("number", metavar="VERSION", type=int)
    promote.add_argument("--force", required=True, metavar="WHY", help="kept in the history")
    predict = command(commands, "predict", _predict, "labels and probabilities for a table's rows")
    predict.add_argument("data")
    predict.add_argument("-o", "--out", type=Path, required=True, help=".parquet or .csv")
    predict.add_argument("--version", dest="number", type=int, help="the one in production unless given")
    predict.add_argument("--min-confidence", type=float, default=0.0, metavar="P", help="no answer below it")


def _add_init(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = command(commands, "init", _init, "begin a store: a model in production")
    parser.add_argument("--recipe", default="plain", help="text, image, tabular or plain (a network of your own)")
    parser.add_argument("--data", help="what the first version learns")
    parser.add_argument("--label", help="the column of labels")
    parser.add_argument("--text", help="the column of texts")
    parser.add_argument("--image", help="the column of images")
    for name in ("numbers", "categories", "ignore"):
        parser.add_argument(f"--{name}", metavar="COLUMNS", help="by commas")
    parser.add_argument(
        "--missing", action="append", default=[], metavar="COLUMN=CODE", help="a value that means nothing"
    )
    parser.add_argument("--exam", action="append", default=[], type=Path, metavar="FILE", help="rows to examine with")
    parser.add_argument("--from", dest="weights", type=Path, metavar="FILE", help="safetensors of a trained network")
    parser.add_argument("--classes", help="the labels of its outputs, in order, by commas")
    parser.add_argument("--no-rows-kept", action="store_true", help="no row of the past may be stored")
    parser.add_argument("--share", type=float, help="of every update's rows, those that are examined; 0.1 unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="recipe.ngrams=1, method.name=ewc, training.epochs=3, rules.tolerance=0.05",
    )  # fmt: skip


def command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    about: str,
) -> argparse.ArgumentParser:
    """A command on a store, with what all of them take."""
    parser = commands.add_parser(name, help=about, description=run.__doc__)
    parser.add_argument("name", metavar="STORE", help="its name")
    parser.add_argument("--store", type=Path, default=Path("store"), metavar="FOLDER", help="./store unless given")
    parser.add_argument("--build", metavar="MODULE:FUNCTION", help="makes a network of your own")
    parser.set_defaults(command=functools.partial(_refusing, run))
    return parser


def _refusing(run: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    """Runs a command; what a store or a table refuses is a wrong request, said in a sentence."""
    from perdure.checkpoint import CheckpointError
    from perdure.recipes.tables import TableError
    from perdure.store.folder import StoreError

    try:
        return run(arguments)
    except (CheckpointError, StoreError, TableError) as error:
        raise refusal(str(error)) from error


def _init(arguments: argparse.Namespace) -> int:
    """Begin a store: its first version is learnt from data, or is a trained network of yours."""
    from perdure import methods
    from perdure.store.gate import Rules
    from perdure.store.store import Store, default_method

    changes = _changes(arguments.set)
    keep, method = not arguments.no_rows_kept, changes.get("method", {})
    try:
        recipe = _recipe(arguments, changes.get("recipe", {}))
        usual = {} if "name" in method else default_method(keep, recipe).settings()
        settings: dict[str, Any] = {
            "recipe": recipe,
            "method": methods.build({**usual, **method}),
            "rules": Rules(**changes.get("rules", {})),
        }
    except (TypeError, ValueError) as error:
        raise refusal(str(error)) from error
    if arguments.share is not None:
        settings["share"] = arguments.share
    _, outcome = Store.init(
        arguments.name, arguments.data, root=arguments.store, training=changes.get("training"), keep_rows=keep,
        seed=arguments.seed, exams=_exams(arguments), build=built(arguments), **settings,
    )  # fmt: skip
    return _said(arguments.name, outcome)


def _recipe(arguments: argparse.Namespace, more: dict[str, Any]) -> Recipe:
    from perdure import recipes

    settings: dict[str, Any] = {"name": arguments.recipe}
    settings |= {name: getattr(arguments, name) for name in ("label", "text", "image") if getattr(arguments, name)}
    for name in ("numbers", "categories", "ignore"):
        if getattr(arguments, name):
            settings[name] = getattr(arguments, name).split(",")
    codes: dict[str, list[Any]] = {}
    for pair in arguments.missing:
        column, sign, code = pair.partition("=")
        if not sign:
            raise refusal(f"--missing {pair}: expected COLUMN=CODE, as in chol=0")
        codes.setdefault(column, []).append(_number(code))
    if codes:
        settings["missing"] = codes
    return recipes.build({**settings, **more})


def _changes(given: Sequence[str]) -> dict[str, Any]:
    from perdure.experiment.document import put
    from perdure.experiment.settings import ConfigError
    from perdure.spelling import hint

    document: dict[str, Any] = {}
    problems = [problem for change in given if (problem := put(document, change))]
    if problems:
        raise ConfigError(problems, "--set")
    rooms = ("recipe", "method", "training", "rules")
    for room in document:
        if room not in rooms:
            raise refusal(f"--set {room}: there is no such part{hint(room, rooms)}")
    return document


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _exams(arguments: argparse.Namespace) -> dict[str, Path]:
    return {path.stem: path for path in arguments.exam}


def built(arguments: argparse.Namespace) -> Callable[[], Any] | None:
    """The function that `--build MODULE:FUNCTION` names, and with `--from` its network with those weights."""
    if arguments.build is None:
        return None
    from importlib import import_module

    module, _sign, name = arguments.build.partition(":")
    sys.path.insert(0, "")  # a module beside which the command runs
    try:
        build = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise refusal(f"--build {arguments.build}: {error}") from None
    weights, classes = getattr(arguments, "weights", None), getattr(arguments, "classes", None)

    def network() -> Any:
        from safetensors.torch import load_file

        from perdure import models

        made = build()
        if weights is not None:
            made.load_state_dict(load_file(weights))
        return made if classes is None else models.adapt(made, head=None, classes=_labels(classes))

    return network


def _labels(text: str) -> list[int] | list[str]:
    labels = text.split(",")
    return [int(label) for label in labels] if all(label.lstrip("-").isdecimal() for label in labels) else labels


def _update(arguments: argparse.Namespace) -> int:
    """Check new data, learn it, examine on everything old and new, and promote or refuse (exit code 3)."""
    from perdure.recipes.tables import TableError
    from perdure.store.arrival import RefusedError

    store = opened(arguments)
    store.save_every = arguments.save_every
    try:
        outcome = store.update(arguments.data, exams=_exams(arguments), accept_shift=arguments.accept_shift)
    except (RefusedError, TableError) as error:
        print(f"perdure: {error}", file=sys.stderr)
        print("nothing was learnt; production is unchanged", file=sys.stderr)
        return NOT_PROMOTED
    return _said(arguments.name, outcome)


def _said(name: str, outcome: Outcome) -> int:
    """Tells what became of an update."""
    for exam in outcome.card.get("exams", []):
        _exam(exam, "candidate", "incumbent", "best")
    for warning in outcome.warnings:
        print(f"  note: {warning}")
    for why in outcome.why:
        print(f"  {outcome.kind}: {why}")
    if outcome.kind == "promoted":
        print(f"{name}: version {outcome.version} is in production")
        return DONE
    made = "" if outcome.version is None else f"; version {outcome.version} is kept (perdure promote takes it)"
    print(f"{name}: {outcome.kind}{made}; production is unchanged")
    return NOT_PROMOTED


def _exam(exam: dict[str, Any], *who: str) -> None:
    """A line on an exam: how many rows, and the shares of right answers; the first with its exact 95 % interval."""
    from perdure.metrics import proportion_interval

    if exam["rows"]:
        words = {"incumbent": "before", "best": "best ever"}
        shares = "   ".join(f"{words[one]} {_percent(exam[one])}" for one in who[1:])
        low, high = proportion_interval(round(exam[who[0]] * exam["rows"]), exam["rows"])
        mine = f"{_percent(exam[who[0]])} ({100 * low:.1f} to {100 * high:.1f})"
        print(f"  exam {exam['exam']:<20} {exam['rows']:>6} rows   {mine:<24} {shares}")


def _status(arguments: argparse.Namespace) -> int:
    """What is live, its exams, what is under way, and every promise that is off."""
    status = opened(arguments).status()
    print(f"{status['store']}: version {status['production']} is in production, of {len(status['versions'])}")
    print(f"  answers {', '.join(map(str, status['classes'])) or 'nothing yet'}")
    for exam in status["exams"]:
        _exam(exam, "candidate", "best")
    if status["under way"]:
        print("  an update was begun and is not over: the same `perdure update` goes on with it")
    for promise in status["promises off"]:
        print(f"  off: {promise}")
    return DONE


def _history(arguments: argparse.Namespace) -> int:
    """Every event: what was promoted, refused, held or rolled back, and what became of every exam."""
    store = opened(arguments)
    for event in store.history():
        version = "" if event["version"] is None else f" version {event['version']}"
        print(f"{event['at']}  {event['event']}{version}{''.join(f'; {why}' for why in event['why'])}")
        card = event["card"]
        if card is not None and event["event"] in ("promoted", "refused"):
            marks = "  ".join(f"{exam['exam']} {_percent(exam['candidate'])}" for exam in card["exams"] if exam["rows"])
            cost = card["cost"]
            took = cost["train_seconds"] + cost["consolidate_seconds"]
            print(f"    learnt {card['data']['learnt']} rows in {took:.1f} s; {card['bytes'] / 1e6:.1f} MB; {marks}")
    if arguments.report is not None:
        from perdure.checkpoint import replace_file
        from perdure.service import page

        replace_file(arguments.report, page.render(store, store.folder.production() or 0).encode())
        print(f"report: {arguments.report}")
    return DONE


def _diff(arguments: argparse.Namespace) -> int:
    """Accuracy of two versions on every exam, answers that went from right to wrong, and sizes."""
    found = opened(arguments).diff(arguments.one, arguments.other)
    one, other = found["versions"]
    for exam in found["exams"]:
        if exam["rows"]:
            first, second = exam["accuracy"]
            print(
                f"exam {exam['exam']:<20} {exam['rows']:>6} rows   {_percent(first)} -> {_percent(second)}   "
                f"{exam['lost']} right became wrong, {exam['gained']} wrong became right"
            )
    sizes = " -> ".join(f"{size / 1e6:.2f} MB" for size in found["bytes"])
    print(f"model of version {one} -> {other}: {sizes}")
    return DONE


def _rollback(arguments: argparse.Namespace) -> int:
    """Let an earlier version answer again; nothing is lost."""
    print(f"{arguments.name}: version {opened(arguments).rollback(arguments.number)} is in production")
    return DONE


def _promote(arguments: argparse.Namespace) -> int:
    """Take a version that the gate refused; why is kept in the history."""
    opened(arguments).promote(arguments.number, arguments.force)
    print(f"{arguments.name}: version {arguments.number} is in production")
    return DONE


def _predict(arguments: argparse.Namespace) -> int:
    """Labels, confidence and probabilities for every row, beside the row; no label below --min-confidence."""
    from perdure.recipes import tables

    found = opened(arguments).predict(arguments.data, version=arguments.number, min_confidence=arguments.min_confidence)
    tables.write(found, arguments.out)
    abstained = found["prediction"].null_count
    print(
        f"{found.num_rows} rows answered into {arguments.out}" + (f", {abstained} without a label" if abstained else "")
    )
    return DONE


def opened(arguments: argparse.Namespace) -> Store:
    """The store that a command is about."""
    from perdure.store.store import Store

    return Store(arguments.name, arguments.store, build=built(arguments))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:5.1f} %"


def refusal(message: str) -> ValueError:
    """An error that ends a command with exit code 2 and a sentence."""
    from perdure.experiment.settings import RequestError

    return RequestError(message)
