"""Methods in PyTorch Lightning: a callback, and two calls in `training_step`."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning import Trainer as Fitter
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from perdure.checkpoint import clone
from perdure.data import Batch, Columns, column_length, column_map
from perdure.host import Outside, sample_of
from perdure.integrations.loop import ONE_PROCESS, Steps, check_optimizer
from perdure.method import Method
from perdure.seeds import seeded


class PerdureCallback(Callback):
    """A method in a Lightning trainer. Pass it to every `Trainer(callbacks=[memory])`; each `fit` is a data set.

        def training_step(self, batch, index):
            x, y = self.memory.replay(*batch)
            scores = self(x)
            return F.cross_entropy(scores, y) + self.memory.penalty(scores)

    The module's `forward` gives raw scores [n, columns]; labels are columns (classification), or floats [n, columns].
    The callback does the rest: `project` after the scaler has unscaled and before clipping, once a step of the
    optimizer however many batches it accumulates; consolidation on `rows` random rows of the train loader at the end of
    `fit`, as pairs (x, y) and as the module takes them. What was learnt travels in Lightning's checkpoints.

    `trained` says that the module knows something worth keeping before the first `fit`. Methods that weigh rows
    (`method.weighs`) need (losses * self.memory.weight).mean(), of losses one a row.

    Raises ValueError for a method that must own the loop, and for manual optimization; RuntimeError for several
    processes, and where a step came without `replay` or `penalty`.
    """

    def __init__(
        self,
        method: Method,
        objective: str = "classification",
        trained: bool = False,
        rows: int = 2000,
        seed: int = 0,
    ) -> None:
        self.rows, self.seed = rows, seed
        # The module and its device are known when fitting begins; the method is checked here and now.
        self.host = Steps(method, nn.Module(), objective, torch.device("cpu"), trained, seed)
        self.host.begin_scratch()
        self._batch: Batch | None = None
        self._weighed = False
        self._scale: float | None = None

    # ---- the user's calls, in training_step ----

    def replay(self, x: Columns, y: Tensor) -> tuple[Columns, Tensor]:
        """The batch with rows of the past added. x is raw: augment afterwards."""
        task = torch.full((len(y),), self.host.clock.task, device=y.device)
        if column_length(x) != len(y):
            raise ValueError(f"x and y have different numbers of rows, y has {len(y)}")
        self._batch = self.host.join(Batch(x=x, y=y, task=task))
        self._weighed = not self.host.method.weighs
        assert self._batch.y is not None
        return self._batch.x, self._batch.y

    @property
    def weight(self) -> Tensor:
        """What each row that `replay` gave counts in the loss, [n]."""
        batch, self._weighed = self._current(), True
        return torch.ones(len(batch), device=self.host.device) if batch.weight is None else batch.weight

    def penalty(self, outputs: Tensor, inputs: Columns | None = None) -> Tensor | float:
        """To add to the loss; `outputs` are the raw scores of the rows that `replay` gave.

        `inputs`: what the module saw, where the rows were converted or augmented after `replay`.
        """
        batch = Outside.ready(self.host, self._current())
        if len(outputs) != len(batch):
            raise ValueError(f"outputs has {len(outputs)} rows, the batch from replay {len(batch)}")
        self.host.seen(outputs.float())
        if inputs is not None:
            batch.x = inputs
        return self.host.method.penalty(self.host, batch, outputs)

    # ---- what Lightning calls ----

    def on_train_start(self, trainer: Fitter, pl_module: LightningModule) -> None:
        """A data set begins."""
        if trainer.world_size > 1 or not isinstance(trainer.strategy, SingleDeviceStrategy):
            raise RuntimeError(ONE_PROCESS.format(found=f"the trainer uses {type(trainer.strategy).__name__}"))
        if not pl_module.automatic_optimization:
            raise ValueError("the module optimizes by hand, so the loop is yours: use perdure.methods.attach in it")
        (optimizer,) = trainer.optimizers
        check_optimizer(optimizer)
        if self._scaler(trainer) is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            raise ValueError(
                f"a fused {type(optimizer).__name__} unscales gradients in its step, after `project`: pass fused=False"
            )
        if self.host.device != pl_module.device:
            self.host.device = pl_module.device
            self.host.method.load_state(_moved(self.host.method.state(), pl_module.device))
            self.host.set_chance({})
        self.host.model, self.host.optimizer = pl_module, optimizer
        self.host.begin()

    def on_train_epoch_start(self, trainer: Fitter, pl_module: LightningModule) -> None:
        """Another pass, by the trainer's own count."""
        while self.host.clock.epoch < trainer.current_epoch:
            self.host.clock.next_epoch()

    def on_before_optimizer_step(
        self, trainer: Fitter, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """After unscaling, before clipping: edits the gradients."""
        if not self.host.complete:
            raise RuntimeError(
                "training_step has to call memory.replay(x, y), then memory.penalty(scores), and add it to its loss"
            )
        if not self._weighed:
            raise RuntimeError(
                f"{self.host.method.name} weighs rows: let the loss be (losses * memory.weight).mean() + penalty"
            )
        scaler = self._scaler(trainer)
        self._scale = None if scaler is None else scaler.get_scale()
        self.host.project()

    def on_train_batch_end(
        self, trainer: Fitter, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the optimizer's step, if this batch was the last that it accumulates."""
        if self.host.projected:
            scaler = self._scaler(trainer)
            taken = scaler is None or self._scale is None or scaler.get_scale() >= self._scale
            self.host.after_step(taken)

    def on_train_end(self, trainer: Fitter, pl_module: LightningModule) -> None:
        """The data set is learnt: importances, teachers, memory."""
        seed = seeded(self.seed, "consolidate", self.host.clock.task)
        self.host.learnt(sample_of(trainer.train_dataloader, self.rows, seed))

    def state_dict(self) -> dict[str, Any]:
        """For Lightning's checkpoint: tensors and plain values."""
        saved: dict[str, Any] = clone(self.host.state())
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Out of Lightning's checkpoint. Raises CheckpointError for another method."""
        self.host.load_state(clone(state_dict), "the checkpoint")

    # ---- inside ----

    def _current(self) -> Batch:
        if self._batch is None:
            raise RuntimeError("memory.replay(x, y) comes first, in every training_step")
        return self._batch

    @staticmethod
    def _scaler(trainer: Fitter) -> torch.amp.GradScaler | None:
        found: torch.amp.GradScaler | None = getattr(trainer.precision_plugin, "scaler", None)
        return found


def _moved(tree: Any, device: torch.device) -> Any:
    if isinstance(tree, Tensor):
        return column_map(lambda column: column.to(device), tree)
    if isinstance(tree, dict):
        return {name: _moved(value, device) for name, value in tree.items()}
    return [_moved(value, device) for value in tree] if isinstance(tree, list) else tree
