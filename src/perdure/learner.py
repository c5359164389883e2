"""THE LOOP: a model, a method, an optimizer and a clock that learn one task after another."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from perdure import answers, checkpoint, checks, journal, models, optim, state
from perdure.budget import Account, Budget
from perdure.callbacks import Callback
from perdure.data import Batch, Columns, Label, Rows, Task
from perdure.inference import Means
from perdure.labels import Labels
from perdure.method import Method
from perdure.models.modes import learning
from perdure.offers import Offers
from perdure.seeds import seeded
from perdure.several import Several, recorded
from perdure.training import Cost, Finite, Settings, Stopper, batches_of, hold_out

__all__ = ["Callback", "Learner"]

HEALTH_CHECK_STEPS = 100

Augment = Callable[[Columns, torch.Generator], Columns]


class Learner(Offers):
    """Learns tasks one after another, by a method, in a scenario, and keeps the list of the user's labels.

    scenario    "class": one column a label, task hidden; "domain": one head, a label's column is its position in
                `task.classes`; "task": a head a task, task revealed (heads="shared": one column a label)
    objective   "classification" | "multi-label" | "regression" | "rating" (1 to 5; "rating:0:10") | "ranking", or
                `Several({...})` of the first three
    epochs      passes over a task's rows; steps: optimizer steps a task instead, however many passes they make
    budget      Steps(n), Seconds(60) or MultiplyAdds(n) a task instead, consolidation included: see `perdure.budget`
    optimizer   "adam" | "adamw" | "sgd", {"name": "sgd", "lr": 0.1}, a function of the parameters, or an optimizer
    schedule    "constant" | "linear" | "cosine" | "exponential", or a dict of the settings of `optim.Schedule`
    clip        largest norm of the gradient, after the method has spoken
    accumulate  micro-batches a step, of `batch_size` new rows each
    precision   "fp32" | "bf16"
    validation  share of each task's train rows that is held out and graded after each epoch
    patience    epochs without a better validation grade before a task ends; the best weights come back
    augment     function (inputs ready for the model, generator) -> inputs, for new and replayed rows alike
    save_to     file for save points, written at task ends and every `save_every` seconds (these in FILE.delta)

    Raises ValueError for what cannot work, before anything is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        *,
        scenario: str,
        objective: str | Several | dict[str, Any] = "classification",
        heads: str = "separate",
        epochs: int = 1,
        steps: int | None = None,
        budget: Budget | dict[str, float] | None = None,
        batch_size: int = 128,
        seed: int = 0,
        optimizer: optim.Spec = "adam",
        schedule: str | dict[str, Any] | None = None,
        clip: float | None = None,
        accumulate: int = 1,
        precision: str = "fp32",
        device: str = "auto",
        validation: float | None = None,
        patience: int | None = None,
        callbacks: Sequence[Callback] = (),
        augment: Augment | None = None,
        save_to: str | os.PathLike[str] | None = None,
        save_every: float = 10.0,
    ) -> None:
        self.schedule = optim.Schedule.of(schedule)
        account = Account.of(budget, steps)
        self.settings = Settings(
            scenario, recorded(objective), heads, epochs, batch_size, seed, self.schedule.settings(), clip, accumulate,
            precision, validation, patience, optim.recorded(optimizer), account.settings,
        )  # fmt: skip
        checks.parts(model, method, self.settings)
        given, model = model, method.remodel(model)
        place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
        trained_by = optim.make(optimizer, model, remade=model is not given)  # refuses last: nothing has changed so far
        super().__init__(model, method, self.settings.goal, place, seed)
        method.owned = True
        self.callbacks, self.augment, self.save_to, self.save_every = list(callbacks), augment, save_to, save_every
        self._journal = None if save_to is None else journal.Journal(save_to, "learner")
        self.cost, self.account, self.stopper, self.means = Cost(), account, Stopper(patience), Means()
        if models.untouched(model):
            models.initialise(model, self.generator("weights", "cpu"))
        model.to(self.device)
        self.optimizer = trained_by
        pretrained = list(getattr(model, "classes", ()))
        self.relabel([["pretrained", pretrained, False]] if pretrained else [])
        self.inputs: dict[str, list[Any]] | None = None
        self._begin_scratch()
        self._measure_size()

    def _begin_scratch(self) -> None:
        """What lives within a task only, or within a step."""
        self.number, self.learning = 0, False
        self.paused_randomness: dict[str, Tensor] | None = None
        self.loss = torch.zeros((), device=self.device)
        self._finite = Finite(self.device)
        self._held_out: tuple[Rows, Task] | None = None
        self._labelled, self._nearby = {}, {}
        self._point: state.SavePoint | None = None

    # ---- learning ----

    def learn(self, task: Task) -> None:
        """Learns one task, from wherever the clock stands; an exception leaves the learner at its last save point."""
        checks.task(self, task)
        with state.own_randomness(self), learning(self.model), self._all_or_nothing():
            lesson, self._held_out = hold_out(task, self.settings.validation, self.seed)
            if not self.clock.begun:
                self.method.begin(self, lesson)
                self._open(task)
                self.account.open(self.cost)
                self.measure_row(task.train)
                self._tell(lambda callback: callback.before_task(self, task))
            self.number = self.labels.number(task.name)
            with self.cost.timed("train_seconds"):
                self.method.fit(self, lesson)
                self.stopper.finish(self.model)
            self.account.consolidate(self.cost, self.clock.taken)
            with self.cost.timed("consolidate_seconds"):
                self.method.end(self, lesson)
                self.means.note(self, lesson)
            self.account.close(self.cost)
            self._measure_size()
            self._tell(lambda callback: callback.after_task(self, task))
            self.clock.close()
            self._commit()

    def epochs(self) -> Iterator[int]:
        """The passes over the open task's rows that are still to be made."""
        while not self._enough and not self.stopper.stopped:
            yield self.clock.epoch

    def epoch(self, rows: Rows, past: dict[str, Any] | None = None) -> None:
        """The rest of this pass over `rows`, with stored rows (columns x, y, task) mixed in, where given."""
        total = len(rows) + (len(past["task"]) if past else 0)
        draws = torch.Generator().manual_seed(seeded(self.seed, "order", self.clock.task, self.clock.epoch))
        size = self.settings.batch_size * self.settings.accumulate
        batches = batches_of(torch.randperm(total, generator=draws), size)
        if self.account.budget is None or self.clock.steps is None:
            self.clock.steps = self.account.foresee(self.cost, 0) or self.settings.epochs * len(batches)
        for index in batches[self.clock.batch :]:
            if self.account.empty(self.cost, self.clock.taken):
                break
            self.step(self.read(rows, index) if past is None else self.mixed(rows, past, index))
            self._save_if_due()
        self.clock.next_epoch()
        if self._held_out is not None:
            self.stopper.note(answers.grade(self, *self._held_out) or 0.0, self.model)
        self._tell(lambda callback: callback.after_epoch(self))

    def step(self, batch: Batch) -> None:
        """One step of the optimizer on raw rows, and on those that the method adds."""
        batch = self.ready(self.method.replay(self, batch))
        if self.augment is not None:
            batch = replace(batch, x=self.augment(batch.x, self.generator("augment")))
        if self.schedule.moves:  # otherwise the rates are their owner's, who may have a scheduler of their own
            at = self.schedule.at(self.clock.step, self.clock.begun_at, self.clock.steps or 1)
            optim.set_rates(self.optimizer, at)
        self.optimizer.zero_grad()
        outputs = self._backward(batch)
        self.method.project(self, batch)
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(self.params().values(), self.settings.clip)
        self.optimizer.step()
        self.method.after_step(self, batch, outputs)
        self.clock.tick()
        self.spend(len(batch), len(batch))
        if self.clock.taken.bit_count() == 1:  # 1, 2, 4, ...: seldom, so that what methods plan by it stands
            self.clock.steps = self.account.foresee(self.cost, self.clock.taken) or self.clock.steps
        if self.clock.step % HEALTH_CHECK_STEPS == 0:
            self._finite.refuse(self.clock)
        self._tell(lambda callback: callback.after_step(self))

    def _backward(self, batch: Batch) -> Tensor:
        """The gradient of the loss over the batch, in `accumulate` parts; the scores of all its rows.

        A part has every so many-th row: new and replayed ones alike, as batch norm in the whole batch would see them.
        """
        count = min(self.settings.accumulate, max(1, len(batch) // min(2, self.settings.batch_size)))
        order = [torch.arange(first, len(batch), count, device=self.device) for first in range(count)]
        parts = [batch] if count == 1 else [batch.select(index) for index in order]
        outputs, losses = [], []
        for part in parts:
            with self.autocast():
                scores = self.model(part.x)
            scores = scores.float()
            partial = self.method.task_loss(self, part, scores) + self.method.penalty(self, part, scores)
            if count > 1:
                partial = partial * (len(part) / len(batch))
            partial.backward()  # type: ignore[no-untyped-call]
            outputs.append(scores.detach())
            losses.append(partial.detach())
        self.loss = losses[0] if count == 1 else torch.stack(losses).sum()
        self._finite.note(self.loss)
        return outputs[0] if count == 1 else torch.cat(outputs)[torch.cat(order).argsort()]

    def consolidate(self, rows: Any, name: str = "pretrained") -> None:
        """Importances and memory for what the model knows already, from rows of that time; nothing is trained.

        `rows` is anything that `Rows.of` takes, of the known task `name` ("pretrained": the labels given to
        `models.adapt`). MAS and LwF take unlabelled rows.
        """
        if self.clock.begun:
            raise RuntimeError(f"task {self.clock.name!r} is open: learn it to the end, or call learner.abandon()")
        if name not in self.labels.tasks:
            known = ", ".join(map(repr, self.labels.tasks)) or "none"
            raise ValueError(f"task {name!r} is not known (known: {known}); say models.adapt(..., classes=[...])")
        task = Task(rows, name=name, classes=self.labels.tasks[name])
        checks.rows(self, task)
        with state.own_randomness(self), self._all_or_nothing(), self.cost.timed("consolidate_seconds"):
            self.method.begin(self, task)
            self.clock.open(name, task.fingerprint)
            self.number = self.labels.number(name)
            self.inputs = self.inputs or checks.inputs(task.train)
            self.measure_row(task.train)
            self.method.end(self, task)
            self.means.note(self, task)
            self._measure_size()
            self.clock.close(done=False)
            self._commit()

    def abandon(self) -> None:
        """Gives the open task up: its labels stay known, its weights stay as they are, the method is not told."""
        self.stopper = Stopper(self.settings.patience)
        self.paused_randomness = None
        self.clock.close(done=False)

    # ---- answering ----

    def evaluate(self, stream: Task | Iterable[Task], infer: str | None = None) -> Any:
        """The grade on each task's test rows: a row of the accuracy matrix; one number for one task. Changes nothing.

        None where a task brings a label, or in scenario "task" a task, that the learner does not know. With
        `infer`, "entropy" or "nearest-mean", scenario "task" does not reveal the task: see `perdure.inference`.
        """
        tasks = [stream] if isinstance(stream, Task) else list(stream)
        without = [task.name for task in tasks if task.test is None]
        if without:
            raise ValueError(f"task {without[0]!r} has no test rows: pass Task(train, test)")
        with self.cost.timed("evaluate_seconds"):
            row = [answers.grade(self, task.test, task, infer) for task in tasks if task.test is not None]
        return row[0] if isinstance(stream, Task) else row

    def evaluate_parts(self, stream: Iterable[Task]) -> dict[str, list[float | None]]:
        """Of several objectives each one's grades on the tasks' test rows, by name: rows of their accuracy matrices.

        None where the task is not known, or no row of it is labelled for the part.
        """
        with self.cost.timed("evaluate_seconds"):
            found = [answers.grades(self, task.test, task) for task in stream if task.test is not None]
        return {name: [grades[name] for grades in found] for name in found[0]} if found else {}

    def predict(self, x: Any, task: Task | str | None = None) -> Any:
        """The user's own labels: a tensor of ints, a list of strings, or lists of labels; for regression the values;
        for several objectives a dict of these.

        Scenario "task" needs `task`: a known one, or "entropy" or "nearest-mean" to infer it, see `perdure.inference`.
        """
        return answers.labelled(self, *answers.proba(self, x, task))

    def predict_proba(self, x: Any, task: Task | str | None = None) -> Tensor:
        """Probabilities [n, answers]: columns in the order of `classes`, or of the task's where one is given."""
        return answers.proba(self, x, task)[0]

    @property
    def classes(self) -> list[Label]:
        """The user's labels in the order in which they were learnt."""
        return list(self.labels.classes)

    @property
    def tasks(self) -> dict[str, list[Label]]:
        """The known tasks by name, each with its labels."""
        return {name: list(classes) for name, classes in self.labels.tasks.items()}

    # ---- state ----

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything from which learning goes on, as one safetensors file."""
        checkpoint.write(path, state.SavePoint(self).tree, "learner")

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        model: nn.Module | None = None,
        method: Method | None = None,
        optimizer: optim.Spec | None = None,
        callbacks: Sequence[Callback] = (),
        augment: Augment | None = None,
        device: str = "auto",
        save_to: str | os.PathLike[str] | None = None,
        save_every: float = 10.0,
    ) -> Learner:
        """The learner that `save` wrote, to predict or to learn on, bit for bit.

        A user's own network is passed as it was before its first task (`model`), likewise an own method or optimizer;
        the error says what is missing. Raises CheckpointError for a file that is damaged, foreign or newer.
        """
        tree = journal.read(path, "learner")
        own = state.rebuilt(tree, str(path), model, method, optimizer)
        learner = cls(
            own.model, own.method, **own.settings, optimizer=own.optimizer, callbacks=callbacks, augment=augment,
            device=device, save_to=save_to, save_every=save_every,
        )  # fmt: skip
        for name, classes, ahead in tree["labels"][len(learner.labels.opened) :]:
            learner._grow(name, classes, ahead)
        learner.reopen(tree["weights"])
        state.apply(learner, tree)
        learner._measure_size()
        return learner

    def open_ahead(self, tasks: Iterable[Task]) -> None:
        """Opens the columns of tasks to come, as protocols do that start with all outputs. No learner in use can.

        Raises RuntimeError once something is learnt.
        """
        if self.clock.begun or self.clock.task:
            raise RuntimeError("all outputs are opened before the first task is learnt, or one by one")
        ahead = list(tasks)
        if not all(isinstance(task, Task) for task in ahead):
            raise TypeError("open_ahead takes the tasks of a stream")
        for task in ahead:
            self._grow(task.name, task.classes, ahead=True)

    def relabel(self, opened: list[Any]) -> None:
        """The labels of a state, for a model that has their columns."""
        self.labels = Labels(self.settings.scenario, self.settings.heads, self.objective.dense)
        for name, classes, ahead in opened:
            self.labels.open(name, classes, ahead)
        self.labels.to(self.device)

    # ---- inside ----

    @property
    def _enough(self) -> bool:
        if self.account.budget is None:
            return self.clock.epoch >= self.settings.epochs
        return self.account.empty(self.cost, self.clock.taken)

    def _open(self, task: Task) -> None:
        self._grow(task.name, task.classes)
        self.meet(task.train)
        self.clock.open(task.name, task.fingerprint)
        self.inputs = self.inputs or checks.inputs(task.train)

    def _grow(self, name: str, classes: Sequence[Label], ahead: bool = False) -> None:
        before = {id(p) for p in self.model.parameters()}
        self.labels.open(name, classes, ahead)
        self.model.grow(self.labels.columns, self.generator("growth", "cpu"))  # type: ignore[operator]
        optim.join(self.optimizer, self.model, before)
        self.labels.to(self.device)

    def _save_if_due(self) -> None:
        waited = 0.0 if self._point is None else time.monotonic() - self._point.taken
        busy = self._journal is not None and self._journal.busy  # what is written takes as long again before one waits
        if self._point is not None and waited >= self.save_every * (2 if busy else 1):
            self._commit(whole=False)

    def _commit(self, whole: bool = True) -> None:
        """A save point, in memory and, with `save_to`, on disk; never of a state that is not finite."""
        self._finite.note(*self.model.parameters())
        self._finite.refuse(self.clock)
        self.cost.lap()
        self._point = state.SavePoint(self)
        if self._journal is not None:
            self._journal.write(self._point.tree, whole)

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        self._point = state.SavePoint(self)
        try:
            yield
            if self._journal is not None:
                self._journal.wait()
        except BaseException:
            self._point.give_back(self)
            raise
        finally:
            if self._journal is not None:
                self._journal.close()
            self._finite.reset()
            self._labelled.clear()
            self._nearby.clear()
            self._point = self._held_out = None

    def _measure_size(self) -> None:
        self.cost.parameter_bytes = checkpoint.tensor_bytes(dict(self.model.state_dict()))
        self.cost.memory_bytes = checkpoint.tensor_bytes(self.method.state())

    def _tell(self, word: Callable[[Callback], None]) -> None:
        for callback in self.callbacks:
            word(callback)
