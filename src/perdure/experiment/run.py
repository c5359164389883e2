"""Running an experiment: cell by cell into a folder, from wherever the last run of the same command was stopped."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import torch
from rich.console import Console

import perdure
from perdure import report
from perdure.augment import AUGMENTS
from perdure.callbacks import Callback
from perdure.checkpoint import CheckpointError
from perdure.data import Task
from perdure.experiment import grown
from perdure.experiment.config import Entry, Plan
from perdure.experiment.folder import Folder, machine, now, peak_resident_bytes
from perdure.experiment.learners import make
from perdure.experiment.results import (
    BenchmarkPart,
    CellPart,
    EvaluationPart,
    MeasuredPart,
    MetricsPart,
    Results,
    SamplesPart,
    Scenario,
    SecondsPart,
)
from perdure.experiment.samples import Samples, generator_of, judge
from perdure.experiment.screen import Key, Screen, table
from perdure.experiment.settings import RequestError
from perdure.learner import Learner
from perdure.metrics import Record, intransigence, summary
from perdure.training import Cost


@dataclass(frozen=True)
class Cell:
    """One method in one scenario with one seed."""

    scenario: Scenario
    entry: Entry
    seed: int

    @property
    def key(self) -> Key:
        """What names it in the results."""
        return self.scenario, self.entry.label, self.seed

    @property
    def folder(self) -> str:
        """What names it on the disk: `class-ewc-seed0`."""
        return f"{self.scenario}-{self.entry.slug}-seed{self.seed}"

    @property
    def joint(self) -> bool:
        """Whether it is the reference for intransigence."""
        return self.entry.spec.get("name") == "joint"


class Watch(Callback):
    """Tells the screen how far a learner is; keeps nothing."""

    def __init__(self, screen: Screen, record: Record) -> None:
        self.screen = screen
        self.record = record

    def after_step(self, learner: Learner) -> None:
        """Now and then the bar moves."""
        self.screen.step(learner.clock.step, lambda: float(learner.loss))

    def after_task(self, learner: Learner, task: Task) -> None:
        """A task is over; the record, which comes first, has examined the learner."""
        rows = self.record.accuracy
        self.screen.task(len(rows) - 1, task.name, learner.clock.step, rows[-1])


@dataclass
class Run:
    """A plan at work in a folder; what the finished cells brought gathers in `found`."""

    plan: Plan
    folder: Folder
    screen: Screen
    started: str
    device: str
    found: dict[Key, tuple[CellPart, SecondsPart]] = field(default_factory=dict)
    jury: Learner | None = None

    def recall(self) -> None:
        """Takes what is finished from the results that are there."""
        if self.folder.results.exists():
            earlier = Results.read(self.folder.results)
            for part in earlier.cells:
                taken = earlier.seconds(part)
                if part.complete and taken is not None:
                    self.found[part.scenario, part.method, part.seed] = part, taken

    def learn(self, cell: Cell) -> bool:
        """Brings a cell from where it stands to its end, and notes what came out; whether there was anything to do."""
        if cell.key in self.found:
            self.screen.finish(cell.key, self.found[cell.key][0].steps)
            return False
        experiment = self.plan.experiment
        record = Record(self.plan.stream, every=experiment.eval_every, infer=experiment.infer)
        learner = self.learner(cell, record)
        self.device = str(learner.device)
        self.screen.begin(cell.key, learner.clock.step)
        left = self.plan.stream[learner.clock.task :]
        try:
            for task in left:
                learner.learn(task)
        except FloatingPointError as error:  # this method with these settings diverges, every time; the others go on
            self.screen.say(f"{', '.join(map(str, cell.key))} broke off: {error}")
        except ValueError as error:  # what shows in a later task only: a memory too small for all classes
            raise RequestError(f"{', '.join(map(str, cell.key))}: {error}") from error
        self.screen.finish(cell.key, learner.clock.step)
        part, taken = outcome(cell, learner, record, len(self.plan.stream))
        notes = [callback.notes for callback in learner.callbacks if isinstance(callback, Samples)]
        made = [SamplesPart.model_validate(note) for note in notes[0]] if notes else None
        self.found[cell.key] = part.model_copy(update={"samples": made}), taken
        return bool(left)

    def learner(self, cell: Cell, record: Record) -> Learner:
        """The cell's learner: from its last save point, or new."""
        state = self.folder.state(cell.folder)
        experiment = self.plan.experiment
        callbacks: list[Callback] = [record, Watch(self.screen, record)]
        if generator_of(cell.entry.build()) is not None:
            callbacks.append(Samples(self.judge, state.parent, keep=cell.seed == experiment.seeds[0]))
        if state.exists():
            try:
                return Learner.load(
                    state,
                    callbacks=callbacks,
                    device=experiment.training.device,
                    augment=AUGMENTS.get(experiment.training.augment or ""),
                    save_to=state,
                    save_every=experiment.save_every,
                )
            except CheckpointError as error:
                raise RequestError(f"{error}; or delete it: its cell begins anew") from None
        return make(
            experiment.training,
            self.plan.recipe,
            cell.entry.build(),
            cell.scenario,
            self.plan.stream,
            seed=cell.seed,
            callbacks=callbacks,
            save_to=state,
            save_every=experiment.save_every,
        )

    def judge(self) -> Learner:
        """The classifier of everything, to look at samples with; trained once a folder."""
        if self.jury is None:
            path = self.folder.path / "judge.perdure"
            self.jury = judge(self.plan.stream, self.plan.recipe, path, self.plan.experiment.training.device)
        return self.jury

    def write(self, cells: Sequence[Cell]) -> Results:
        """The results so far, in the order of the cells, and the report on them."""
        done = [cell for cell in cells if cell.key in self.found]
        stream, document = self.plan.stream, self.plan.document
        settings = dict(document["benchmark"])
        results = Results(
            schema=1,
            perdure=perdure.__version__,
            name=self.plan.experiment.name,
            benchmark=BenchmarkPart(
                name=settings.pop("name"),
                settings=settings,
                description=stream.description,
                tasks=[task.name for task in stream],
                train_rows=[len(task.train) for task in stream],
                test_rows=[0 if task.test is None else len(task.test) for task in stream],
            ),
            config=document,
            cells=[self._measured_against_joint(cell, done) for cell in done],
            measured=MeasuredPart(
                started=self.started,
                finished=now(),
                machine=machine(self.plan.experiment.threads, self.device),
                peak_resident_bytes=max(peak_resident_bytes(), self.folder.earlier_peak()),
                cells=[self.found[cell.key][1] for cell in done],
            ),
        )
        results.write(self.folder.results)
        report.write(results.model_dump(mode="json", by_alias=True), self.folder.report)
        return results

    def _measured_against_joint(self, cell: Cell, done: Sequence[Cell]) -> CellPart:
        """The cell with its intransigence, where the joint cell of its scenario and seed is there."""
        part = self.found[cell.key][0]
        twins = (other for other in done if (other.scenario, other.seed) == (cell.scenario, cell.seed))
        joint = next((self.found[other.key][0].accuracy for other in twins if other.joint), None)
        if cell.joint or part.metrics is None:
            return part
        lost = intransigence(part.accuracy, joint)
        return part.model_copy(update={"metrics": part.metrics.model_copy(update={"intransigence": lost})})


def run(plan: Plan, out: Path, console: Console, fresh: bool = False) -> Results:
    """Runs what is not done yet, and gives all results; in `out` lie the state of every cell, results and report.

    Stopped at any instant, the same call goes on from the last save point and ends with the same results but for
    `measured`. Raises FolderError where `out` holds another experiment, KeyboardInterrupt after saying where it stands.
    """
    folder = Folder(out)
    experiment = plan.experiment
    data = {task.name: task.fingerprint[:16] for task in plan.stream}
    here = machine(experiment.threads, experiment.training.device)
    todo = cells(plan)
    expected = {cell.key: expected_steps(plan, cell) for cell in todo}
    with folder.held(), threads(experiment.threads), Screen(console, expected) as screen:
        started = folder.claim({**plan.document, "data": data}, here, fresh)
        work = Run(plan, folder, screen, started, experiment.training.device)
        work.recall()
        results = None
        for number, cell in enumerate(todo):
            try:
                if work.learn(cell):
                    results = work.write(todo)
            except KeyboardInterrupt:
                where = ", ".join((*cell.key[:2], f"seed {cell.seed}"))
                screen.say(f"stopped in cell {number + 1} of {len(todo)} ({where}); the same command goes on from here")
                raise
        results = results or work.write(todo)
    for part in table(results):
        console.print(part)
    screen.say(f"report: {folder.report}")
    return results


def cells(plan: Plan) -> list[Cell]:
    """All cells, seed by seed, so that the whole picture is there early."""
    experiment = plan.experiment
    return [
        Cell(scenario, entry, seed)
        for seed in experiment.seeds
        for scenario in experiment.scenarios
        for entry in plan.entries
    ]


def expected_steps(plan: Plan, cell: Cell) -> int:
    """How many optimizer steps a cell should take: joint training takes every task again at each."""
    training = plan.experiment.training
    if training.steps is not None:
        return training.steps * len(plan.stream)
    rows = [len(task.train) for task in plan.stream]
    if training.validation is not None:
        rows = [count - round(count * training.validation) for count in rows]
    seen = list(accumulate(rows)) if cell.joint else rows
    return sum(training.epochs * math.ceil(count / (training.batch_size * training.accumulate)) for count in seen)


def outcome(cell: Cell, learner: Learner, record: Record, tasks: int) -> tuple[CellPart, SecondsPart]:
    """What a cell brought that learnt all `tasks` tasks, or broke off before; and the seconds that it took."""
    complete = learner.clock.task == tasks
    trace = record.trace
    # How far a broken cell came depends on its save points; what stands in the results must not.
    steps, cost = (learner.clock.step, learner.cost) if complete else (0, Cost())
    numbers = MetricsPart(**summary(record.accuracy, record.initial, None, trace)) if complete else None
    settings = {key: value for key, value in cell.entry.spec.items() if key != "name"}
    part = CellPart(
        method=cell.entry.label,
        title=cell.entry.title,
        upper_bound=learner.method.upper_bound,
        scenario=cell.scenario,
        seed=cell.seed,
        settings=settings,
        complete=complete,
        initial=record.initial,
        accuracy=record.accuracy,
        metrics=numbers,
        trace=[EvaluationPart.model_validate(point) for point in trace] or None,
        inferred=record.inferred or None,
        parameters=grown.parameters(learner) if complete else None,
        shared=grown.shared(learner) if complete else None,
        steps=steps,
        multiply_adds=cost.multiply_adds,
        parameter_bytes=cost.parameter_bytes,
        memory_bytes=cost.memory_bytes,
    )
    taken = SecondsPart(
        method=cell.entry.label,
        scenario=cell.scenario,
        seed=cell.seed,
        train_seconds=learner.cost.train_seconds,
        consolidate_seconds=learner.cost.consolidate_seconds,
        evaluate_seconds=learner.cost.evaluate_seconds,
    )
    return part, taken


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch computes with so many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
