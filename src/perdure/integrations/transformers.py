"""Methods in the Trainer of Hugging Face Transformers: `PerdureTrainer(..., method=Replay(2000) + LwF())`."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from perdure import checkpoint
from perdure.checkpoint import CheckpointError
from perdure.data import Batch, Rows
from perdure.host import Outside
from perdure.integrations.features import LABELS, Codec, Features
from perdure.integrations.loop import ONE_PROCESS, Steps, check_optimizer
from perdure.method import Method
from perdure.seeds import seeded

FILE = "memory.perdure"
PART = "perdure_part"
NO_GRADIENTS = ("lomo", "layerwise")  # optimizers that step within the backward pass and leave no gradient behind


class Scores(nn.Module):
    """A network of Transformers as methods know a model: a dict of columns in, raw scores [n, columns] out."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        """The logits."""
        return scores_of(self.network(**x), 0)


def scores_of(outputs: Any, place: int) -> Tensor:
    """The logits among a network's outputs, float32 [n, columns]; at `place` where the outputs are a tuple."""
    scores: Tensor = outputs["logits"] if isinstance(outputs, Mapping) else outputs[place]
    if scores.ndim != 2:
        raise TypeError(
            f"the model's logits have shape {list(scores.shape)}; methods need one vector a row, [n, columns]"
        )
    return scores.float()


@dataclass
class Raw:
    """Rows as the data set gives them. No list and no dict, so that loaders hand it on untouched."""

    rows: Features


class Host(Steps):
    """Stores rows as they are before collation; `ready` is the trainer's own collator."""

    def __init__(
        self,
        method: Method,
        network: nn.Module,
        objective: str,
        device: torch.device,
        trained: bool,
        seed: int,
        collate: Callable[[Features], Any],
    ) -> None:
        super().__init__(method, Scores(network), objective, device, trained, seed)
        self.codec, self.collate = Codec(self.objective.dense), collate
        self.begin_scratch()

    def ready(self, batch: Batch) -> Batch:
        """Collated, on the device, with columns."""
        assert batch.y is not None
        inputs = self.collate(self.codec.decode(batch.x, batch.y))
        return self.prepared(batch, {name: c.to(self.device) for name, c in inputs.items() if isinstance(c, Tensor)})

    def prepared(self, batch: Batch, inputs: Mapping[str, Any]) -> Batch:
        """The batch with what the collator made of its rows."""
        moved = replace(batch, x={}).to(self.device)
        x = {name: column for name, column in inputs.items() if isinstance(column, Tensor) and name not in LABELS}
        return Outside.ready(self, replace(moved, x=x))

    def read(self, rows: Rows, index: Tensor) -> Batch:
        """Rows of the open data set, where the collator wants them."""
        with self.rows_at_home():
            return super().read(rows, index)

    @contextlib.contextmanager
    def rows_at_home(self) -> Iterator[None]:
        """Raw rows lie on the CPU, whatever the model's device: the collator works there."""
        device, self.device = self.device, torch.device("cpu")
        try:
            yield
        finally:
            self.device = device

    def gather(self, features: Features) -> Batch:
        """All new rows of one step of the optimizer, with rows of the past."""
        with self.rows_at_home():
            x, y = self.codec.encode(features)
            return self.join(Batch(x=dict(x), y=y, task=torch.full((len(y),), self.clock.task)))


class PerdureTrainer(Trainer):
    """The Trainer of Transformers, with a method: `train()` learns one data set; set `train_dataset` and call it again.

    method      any but those that own the loop or the loss: refused by name
    objective   "classification" | "multi-label" | "regression"
    trained     whether the model knows something worth keeping before the first `train()`
    rows        how many random rows of the data set methods consolidate on

    Rows are kept as the data set gives them, before collation: drawn ones go through the trainer's own collator
    together with the new ones, which pads, augments or masks them anew. All micro-batches of a step are drawn for at
    once and their rows dealt out evenly, so that K of them are one batch of K times the rows. A penalty is added to
    every micro-batch's loss, `project` runs once a step, between unscaling and clipping.

    What was learnt is written beside every checkpoint and by `save_model` (memory.perdure); resuming reads it, and so
    does `load_memory(folder)` in another process. One process and one device for now.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        compute_metrics: Callable[[Any], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        method: Method,
        objective: str = "classification",
        trained: bool = False,
        rows: int = 2000,
    ) -> None:
        super().__init__(
            model=model, args=args, data_collator=data_collator, train_dataset=train_dataset, eval_dataset=eval_dataset,
            processing_class=processing_class, compute_metrics=compute_metrics, callbacks=callbacks,
            optimizers=optimizers, preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )  # fmt: skip
        self._refuse(method)
        if optimizers[0] is not None:
            check_optimizer(optimizers[0])
        # Else the loss counts as already divided by the micro-batches of a step, and a penalty would count each time.
        self.model_accepts_loss_kwargs = False
        self.rows = rows
        self.memory = Host(
            method, model, objective, self.args.device, trained, self.args.seed, lambda rows: self.data_collator(rows)
        )
        self._part: tuple[Batch, float] | None = None
        self.add_callback(_Calls(self))

    # ---- the user's calls ----

    def train(
        self, resume_from_checkpoint: str | bool | None = None, trial: Any = None, ignore_keys_for_eval: Any = None
    ) -> Any:
        """Learns `train_dataset` as one data set, and consolidates. Resuming goes on where the checkpoint stands."""
        self._refuse(self.memory.method)
        data: Any = self.train_dataset
        if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
            raise ValueError("methods consolidate on random rows: pass a train_dataset with __len__ and __getitem__")
        if resume_from_checkpoint:
            found = resume_from_checkpoint
            found = get_last_checkpoint(self.args.output_dir) if found is True else found  # type: ignore[no-untyped-call]
            if found is None:
                raise ValueError(f"there is no checkpoint in {self.args.output_dir}")
            self.load_memory(found)
        result = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        draws = torch.Generator().manual_seed(seeded(self.args.seed, "consolidate", self.memory.clock.task))
        chosen = torch.randperm(len(data), generator=draws)[: self.rows].tolist()
        x, y = self.memory.codec.encode(self._features([data[row] for row in chosen]))
        self.memory.learnt(Rows(x, y))
        return result

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The model, and beside it what the method has learnt."""
        super().save_model(output_dir, _internal_call)
        file = Path(output_dir or str(self.args.output_dir)) / FILE
        checkpoint.write(file, {**self.memory.state(), "codec": self.memory.codec.state()}, "memory")

    def load_memory(self, folder: str | os.PathLike[str]) -> None:
        """What `save_model` or a checkpoint wrote of the method. Raises CheckpointError."""
        file = Path(folder) / FILE
        if not file.is_file():
            raise CheckpointError(f"{folder} has no {FILE}: it was not written by a PerdureTrainer")
        tree = checkpoint.read(file, "memory")
        self.memory.load_state(tree, str(file))
        self.memory.codec.load_state(tree["codec"])

    # ---- what the Trainer calls ----

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Gives rows as they are: they are collated once rows of the past have joined them."""
        collator: Any = self.data_collator
        self.data_collator = Raw  # type: ignore[assignment]
        try:
            loader: DataLoader[Any] = super().get_train_dataloader()
        finally:
            self.data_collator = collator
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[Raw], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], None]:
        """The micro-batches of one step of the optimizer: their rows and those of the past, dealt out evenly."""
        given = list(itertools.islice(epoch_iterator, num_batches))
        if not given:
            return [], None
        whole = self.memory.gather([row for raw in given for row in raw.rows])
        self._order = [torch.arange(first, len(whole), len(given)) for first in range(len(given))]
        self._scores: list[Tensor] = []
        samples = []
        for index in self._order:
            part = whole if len(given) == 1 else whole.select(index)
            assert part.y is not None
            inputs = self.data_collator(self.memory.codec.decode(part.x, part.y))
            samples.append({**inputs, PART: (part, len(part) * len(given) / len(whole))})
        return samples, None

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch, forward and back."""
        own = dict(inputs)
        self._part = own.pop(PART)
        try:
            loss: Tensor = super().training_step(model, own)
        finally:
            self._part = None
        if len(self._scores) == len(self._order):
            together = torch.cat(self._scores)
            order = torch.cat(self._order).argsort().to(together.device)
            self.memory.seen(together if len(self._order) == 1 else together[order])
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's own loss; in training with the penalty, and weighed as its rows are among the whole step's."""
        if self._part is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        part, share = self._part
        batch = self.memory.prepared(part, inputs)
        loss, outputs = super().compute_loss(model, inputs, True)
        scores = scores_of(outputs, 1)
        if part.weight is not None:
            loss = self.memory.objective.loss(scores, batch)
        loss = (loss + self.memory.method.penalty(self.memory, batch, scores)) * share
        self._scores.append(scores.detach())
        return (loss, outputs) if return_outputs else loss

    # ---- inside ----

    def _features(self, rows: list[Any]) -> Features:
        """Rows of the data set, without the columns that the model does not take."""
        gathered: Raw = self._get_collator_with_removed_columns(Raw)(rows)
        return gathered.rows

    def _refuse(self, method: Method) -> None:
        """What cannot work, with a sentence."""
        args = self.args
        several = [
            (args.world_size > 1, f"there are {args.world_size} processes"),
            (args.n_gpu > 1, f"the Trainer would spread batches over {args.n_gpu} devices"),
            (self.is_fsdp_enabled, "FSDP is on"),
            (self.is_deepspeed_enabled, "DeepSpeed is on"),
        ]
        for found, what in several:
            if found:
                raise RuntimeError(ONE_PROCESS.format(found=what))
        if args.auto_find_batch_size:
            raise ValueError("auto_find_batch_size begins training anew, when a method has begun: set a batch size")
        if any(word in str(args.optim).lower() for word in NO_GRADIENTS):
            raise ValueError(f"{args.optim} steps within the backward pass, so that no method can edit its gradient")
        if method.weighs and args.label_smoothing_factor:
            raise ValueError(f"{method.name} weighs rows, which label smoothing does not: set label_smoothing_factor=0")

    def _prepare_memory(self, optimizer: Any) -> None:
        """Training begins: the optimizer is known, and accelerate's unscaling is followed by `project`."""
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        check_optimizer(optimizer)
        self.memory.optimizer = optimizer
        # Accelerate unscales, if there is a scale, right before it clips or takes the norm: the place of `project`.
        unscale = type(self.accelerator).unscale_gradients

        def unscale_and_project(optimizer: Any = None) -> None:
            unscale(self.accelerator, optimizer)
            if self.memory.waiting:
                self.memory.project()

        self.accelerator.unscale_gradients = unscale_and_project
        self.memory.begin()


class _Calls(TrainerCallback):
    """The hooks that the Trainer tells of by callbacks."""

    def __init__(self, trainer: PerdureTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Begins the data set."""
        self.trainer._prepare_memory(given["optimizer"])

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Another pass: by the Trainer's own count, as a checkpoint may lie between the last step and the end."""
        while self.trainer.memory.clock.epoch < int(state.epoch or 0):
            self.trainer.memory.clock.next_epoch()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """Where nothing was clipped, `project` has not run yet."""
        if self.trainer.memory.waiting:
            self.trainer.accelerator.unscale_gradients()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any
    ) -> None:
        """The optimizer has stepped, unless the scaler found gradients that are not finite."""
        self.trainer.memory.after_step(taken=not self.trainer.accelerator.optimizer_step_was_skipped)
