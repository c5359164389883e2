"""The command line, thin: a command imports what it needs when it runs, so that `perdure --help` is instant."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perdure import cli_serve, cli_store

if TYPE_CHECKING:
    from rich.console import Console

    from perdure.experiment.config import Plan
    from perdure.experiment.settings import Setting

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code: 0 done, 1 a part failed, 2 the request is wrong, 130 interrupted."""
    given = list(sys.argv[1:] if words is None else words)
    parser, commands = _parser()
    if given and not given[0].startswith("-") and given[0] not in commands:
        from perdure.experiment.settings import unknown

        print(f"perdure: {unknown('command', given[0], commands)}", file=sys.stderr)
        return WRONG
    arguments, rest = parser.parse_known_args(given, argparse.Namespace(words=given))
    late = getattr(arguments, "late", None)
    if late is not None and len(rest) == 1 and rest[0].isdecimal() and getattr(arguments, late) is None:
        setattr(arguments, late, int(rest.pop()))  # argparse of Python 3.11 sees no optional word behind an option
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.version:
        import perdure

        print(f"perdure {perdure.__version__}")
        return DONE
    if "command" not in arguments:
        parser.print_help()
        return DONE
    from perdure.experiment.settings import RequestError

    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except (RequestError, OSError) as error:  # OSError: a folder that cannot be written, a full disk
        print(f"perdure: {error}", file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    parser = argparse.ArgumentParser("perdure", description="Teach models new tasks without forgetting the old ones.")
    parser.add_argument("--version", action="store_true", help="say which version this is")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_runs(commands)
    _add_proofs(commands)
    _add_advice(commands)
    _add_views(commands)
    cli_store.add(commands)
    cli_serve.add(commands)
    return parser, list(commands.choices)


def _add_runs(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = commands.add_parser("run", help="run an experiment, or go on with it", description=_run.__doc__)
    run.add_argument("experiment", type=Path, help="a TOML file")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in training.epochs=2")
    run.add_argument("--out", type=Path, metavar="FOLDER", help="where the run lies; runs/NAME unless given")
    run.add_argument("--fresh", action="store_true", help="begin anew: what lies in the folder is removed")
    run.set_defaults(command=_run)

    demo = commands.add_parser("demo", help="five methods on Split MNIST, about a minute", description=_demo.__doc__)
    demo.add_argument("--out", type=Path, metavar="FOLDER", default=Path("runs/demo"), help="runs/demo unless given")
    demo.set_defaults(command=_demo, fresh=False)


def _add_proofs(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    again = commands.add_parser("reproduce", help="a published table, ours beside it", description=_reproduce.__doc__)
    again.add_argument("table", help="as in `perdure list tables`")
    again.add_argument("--jobs", type=int, default=2, metavar="N", help="lines at a time, one thread each")
    again.add_argument("--only", action="append", default=[], metavar="LINE", help="a line or a method of the table")
    again.add_argument(
        "--out", type=Path, metavar="FOLDER", default=Path(), help="where RESULTS.md and results lie; here unless given"
    )
    again.add_argument("--fresh", action="store_true", help="run finished lines again")
    again.set_defaults(command=_reproduce)

    tuned = commands.add_parser(
        "tune", help="choose a method's settings, never on test rows", description=_tune.__doc__
    )
    tuned.add_argument("experiment", type=Path, help="a TOML file, of which one method and one scenario are taken")
    tuned.add_argument("--method", required=True, help="its label in the file")
    tuned.add_argument("--scenario", required=True, choices=["task", "domain", "class"], help="as in the file")
    tuned.add_argument(
        "--on", choices=["first-task", "first-three"], default="first-task", help="first-task unless given"
    )
    tuned.add_argument(
        "--range",
        action="append",
        default=[],
        metavar="SETTING=LOW..HIGH",
        help="or values: 1,2,4; PART.SETTING in a composition",
    )
    tuned.add_argument("--trials", type=int, default=20, metavar="N", help="20 unless given")
    tuned.add_argument("--seeds", type=int, default=1, metavar="N", help="runs a trial; 1 unless given")
    tuned.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in training.epochs=2")
    tuned.add_argument("--out", type=Path, metavar="FOLDER", help="runs/tune-NAME-METHOD unless given")
    tuned.set_defaults(command=_tune)


def _add_advice(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    advice = commands.add_parser("advise", help="which method, from a short trial", description=_advise.__doc__)
    advice.add_argument("experiment", type=Path, nargs="?", help="a TOML file, of which the first task is taken")
    advice.add_argument("--data", type=Path, nargs="+", metavar="FILE", help="tables instead, in the order of coming")
    advice.add_argument("--label", default="label", metavar="COLUMN", help="the table's column of labels")
    advice.add_argument("--text", metavar="COLUMN", help="the table's column of texts, where it has one")
    advice.add_argument("--recipe", metavar="NAME", help="as in `perdure list recipes`; guessed unless given")
    advice.add_argument(
        "--scenario",
        choices=["task", "domain", "class"],
        help="task: which task a row is of is told; domain: the same labels, other inputs; class: new labels",
    )
    advice.add_argument(
        "--on",
        choices=["first-task", "first-three"],
        default="first-task",
        help="what to try on: pieces of the first task, or the first three tasks of an experiment, which show more",
    )
    advice.add_argument("--task-known", action="store_true", help="the same as --scenario task")
    advice.add_argument("--no-rows-kept", action="store_true", help="rows of the past may not be stored")
    advice.add_argument("--memory", metavar="SIZE", help="what may be kept beside the model, as in 20MB")
    advice.add_argument("--time", type=float, metavar="SECONDS", help="for the first task, to learn and consolidate")
    advice.add_argument("--pretrained", action="store_true", help="the network's body is trained already")
    advice.add_argument("--build", metavar="MODULE:FUNCTION", help="makes your own network, with its trained body")
    advice.add_argument("--trial-seconds", type=float, default=300, metavar="N", help="the trial's; 300 unless given")
    advice.add_argument("--seeds", type=int, default=2, metavar="N", help="of the trial; 2 unless given")
    advice.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in training.epochs=2")
    advice.add_argument("--out", type=Path, metavar="FOLDER", help="where it goes on; runs/advise-NAME unless given")
    advice.set_defaults(command=_advise)


def _add_views(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    known = commands.add_parser("list", help="what there is: methods, benchmarks, models", description=_list.__doc__)
    known.add_argument("what", choices=list(_LISTS), help="the kind of thing")
    known.set_defaults(command=_list)

    compare = commands.add_parser("compare", help="several runs as one table", description=_compare.__doc__)
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="the folder of a run, or its results.json")
    compare.add_argument("--equal-budget", action="store_true", help="rank what the same budget a task brought")
    compare.add_argument("--out", type=Path, metavar="FILE", help="write the table there too")
    compare.set_defaults(command=_compare)

    report = commands.add_parser("report", help="draw the report of a run anew", description=_report.__doc__)
    report.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, or its results.json")
    report.set_defaults(command=_report)

    schema = commands.add_parser("schema", help="the JSON Schema of results.json", description=_schema.__doc__)
    schema.add_argument("what", choices=["results"], help="the file")
    schema.set_defaults(command=_schema)


def _run(arguments: argparse.Namespace) -> int:
    """Run an experiment. The same command on the same folder goes on where it was stopped."""
    from perdure.experiment.config import load

    plan = load(arguments.experiment, arguments.set)
    return _execute(plan, arguments.out or Path("runs") / plan.experiment.name, arguments)


def _demo(arguments: argparse.Namespace) -> int:
    """Fine-tuning, EWC, MAS, replay and joint training on Split MNIST, in two scenarios, one seed."""
    from importlib import resources

    from perdure.experiment.config import load

    with resources.as_file(resources.files("perdure.experiment") / "demo.toml") as path:
        plan = load(path)
    return _execute(plan, arguments.out, arguments)


def _execute(plan: Plan, out: Path, arguments: argparse.Namespace) -> int:
    from perdure.experiment.run import run

    console = _console()
    try:
        run(plan, out, console, arguments.fresh)
    except KeyboardInterrupt:
        again = shlex.join(word for word in arguments.words if word != "--fresh")
        console.print(f"go on with: perdure {again}", markup=False, highlight=False, soft_wrap=True)
        return INTERRUPTED
    return DONE


def _reproduce(arguments: argparse.Namespace) -> int:
    """Run a published protocol: our numbers beside the paper's, into RESULTS.md and a report. Stopped, it goes on."""
    from perdure.experiment.reproduce import reproduce

    failed = reproduce(arguments.table, arguments.out, _console(), arguments.jobs, arguments.only, arguments.fresh)
    return FAILED if failed else DONE


def _tune(arguments: argparse.Namespace) -> int:
    """Choose settings on pieces of the first task's train rows, or on the first three tasks; never on test rows."""
    from perdure.experiment.config import load
    from perdure.experiment.ranges import Range
    from perdure.experiment.settings import RequestError
    from perdure.experiment.tune import tune

    ranges = {}
    for text in arguments.range:
        name, sign, values = text.partition("=")
        if not sign:
            raise RequestError(
                f"--range {text}: expected SETTING=LOW..HIGH, as in strength=0.01..100 or lwf.strength=1,2"
            )
        ranges[name] = Range.parse(values)
    plan = load(arguments.experiment, arguments.set)
    out = arguments.out or Path("runs") / f"tune-{plan.experiment.name}-{arguments.method}-{arguments.scenario}"
    tune(
        plan, arguments.method, arguments.scenario, out, _console(), ranges=ranges or None, on=arguments.on,
        trials=arguments.trials, seeds=range(arguments.seeds),
    )  # fmt: skip
    return DONE


def _advise(arguments: argparse.Namespace) -> int:
    """A method for your stream, from what you allow and a short trial on pieces of the first task; test rows are not
    read. Stopped, the same command goes on.
    """
    from perdure.experiment import asked
    from perdure.experiment.advise import advise
    from perdure.experiment.candidates import Needs
    from perdure.experiment.config import load
    from perdure.experiment.settings import RequestError

    if (arguments.experiment is None) == (arguments.data is None):
        raise RequestError("say what is to be learnt: an experiment's TOML file, or --data FILE --label COLUMN")
    scenario = "task" if arguments.task_known else arguments.scenario
    if scenario is None or (arguments.task_known and arguments.scenario not in (None, "task")):
        raise RequestError(
            "say what is to come: --scenario class (new labels), --scenario domain (the same labels, other inputs), or "
            "--task-known (which task a row is of is told)"
        )
    if arguments.data is None:
        about = asked.of_plan(load(arguments.experiment, arguments.set), arguments.on)
    else:
        about = asked.of_tables(arguments.data, arguments.label, arguments.recipe, arguments.text)
    build = cli_store.built(arguments)
    if arguments.pretrained and build is None:
        raise RequestError("--pretrained needs --build MODULE:FUNCTION, which makes your trained network")
    memory = None if arguments.memory is None else asked.size(arguments.memory)
    needs = Needs(scenario, not arguments.no_rows_kept, memory, arguments.time, arguments.pretrained)
    console = _console()
    try:
        advice = advise(
            about.first, asked.growing(build) if build else about.model, needs, training=about.training,
            known=about.known, seeds=range(arguments.seeds), seconds=arguments.trial_seconds,
            out=arguments.out or Path("runs") / f"advise-{about.name}-{scenario}-{arguments.on}",
            say=lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True),
        )  # fmt: skip
    except KeyboardInterrupt:
        console.print(f"go on with: perdure {shlex.join(arguments.words)}", markup=False, soft_wrap=True)
        return INTERRUPTED
    print(f"\n{advice}")
    return DONE


def _list(arguments: argparse.Namespace) -> int:
    """What there is, with settings and their defaults."""
    for name, sentences in _LISTS[arguments.what]():
        print("\n    ".join([name, *(sentence for sentence in sentences if sentence)]))
    return DONE


def _methods() -> Iterable[tuple[str, list[str]]]:
    from perdure.experiment.settings import of_fields
    from perdure.methods import METHODS

    for name, method in sorted(METHODS.items()):
        bound = "upper bound, sees all" if method.upper_bound else ""
        about = [_first(method), f"paper: {method.paper}" if method.paper else "", bound]
        cost = f"cost: {method.cost}" if method.cost else ""
        settings = _settings(of_fields(method, method.fields()))
        yield name, [*about, f"scenarios: {', '.join(method.scenarios)}", cost, settings]


def _benchmarks() -> Iterable[tuple[str, list[str]]]:
    from perdure.experiment.benchmarks import BENCHMARKS
    from perdure.experiment.settings import of_callable

    for name, row in BENCHMARKS.items():
        scenarios = f"scenarios: {', '.join(row.scenarios)}"
        yield name, [_first(row.build), scenarios, f"model: {row.model['name']}", _settings(of_callable(row.build))]


def _models() -> Iterable[tuple[str, list[str]]]:
    from perdure.experiment.config import FROM_DATA
    from perdure.experiment.settings import of_callable
    from perdure.models import CHOSEN

    for name, factory in CHOSEN.items():
        yield name, [_first(factory), _settings(of_callable(factory, FROM_DATA))]


def _recipes() -> Iterable[tuple[str, list[str]]]:
    from perdure.experiment.settings import of_fields
    from perdure.recipes import RECIPES

    for name, recipe in RECIPES.items():
        yield name, [_first(recipe), _settings(of_fields(recipe, recipe.fields()))]


def _tables() -> Iterable[tuple[str, list[str]]]:
    from perdure.experiment.table import load, names

    for name in names():
        table = load(name)
        yield name, [table.title, f"{len(list(table.lines()))} lines, about {table.hours:g} hours on two cores"]


_LISTS: dict[str, Callable[[], Iterable[tuple[str, list[str]]]]] = {
    "methods": _methods,
    "benchmarks": _benchmarks,
    "models": _models,
    "recipes": _recipes,
    "tables": _tables,
}


def _settings(settings: Sequence[Setting]) -> str:
    return f"settings: {', '.join(map(str, settings))}" if settings else "no settings"


def _first(documented: object) -> str:
    """The first line of what its docstring says."""
    return (documented.__doc__ or "").strip().partition("\n")[0]


def _compare(arguments: argparse.Namespace) -> int:
    """One Markdown table: mean and 95 % interval over seeds, and which differences are no more than noise."""
    from perdure.experiment.compare import compare

    table = compare(arguments.runs, arguments.equal_budget)
    print(table, end="")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(table, encoding="utf-8")
    return DONE


def _report(arguments: argparse.Namespace) -> int:
    """Draw report.html anew, beside the results."""
    from perdure import report
    from perdure.experiment.results import Results

    results = Results.read(arguments.run)
    path = (arguments.run if arguments.run.is_dir() else arguments.run.parent) / "report.html"
    report.write(results.model_dump(mode="json", by_alias=True), path)
    print(f"report: {path}")
    return DONE


def _schema(arguments: argparse.Namespace) -> int:
    """The JSON Schema of results.json."""
    from perdure.experiment.results import schema

    print(schema(), end="")
    return DONE


def _console() -> Console:
    from rich.console import Console

    return Console()


if __name__ == "__main__":
    sys.exit(main())
