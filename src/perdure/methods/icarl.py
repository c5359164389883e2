"""iCaRL: a few exemplars of every class, chosen by herding, train the features and answer as nearest means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from perdure.data import Batch, Columns, Task, chunks
from perdure.method import Host, Method, Trainer, memory
from perdure.methods.herding import herd, normalised
from perdure.models import evaluating

CHUNK = 512
FAR = 1e3  # the coordinates of the mean of a class without exemplars: no row, of length 1, is nearest to it


@dataclass(eq=False)
class ICaRL(Method):
    """Incremental classifier and representation learning (Rebuffi et al. 2017).

    Train on the new rows and all exemplars, mixed:  loss = sum_c BCE(sigmoid(s_c), q_c), a mean over the rows, where
    q_c is the old network's sigmoid(s_c / temperature) in the columns it knew, and 1 or 0 by the label in the others.
    Then herd: the k-th exemplar of a class is the row x that brings the mean of the first k nearest the class mean,
    argmin_x |mu - (phi(x) + sum_{j<k} phi(p_j)) / k|, and every class keeps its first capacity // classes.
    Answer with the class whose mean of exemplars is nearest:  score_c = -|phi(x) - mu_c|^2, finite.

    phi is what the head sees, in eval mode, divided by its length; the means have length 1 too and are those of the
    network after the task. Until a task has ended its classes have no exemplars, and the network's own scores answer.
    A class that comes back has the target 1 on its new rows, and is herded again from its exemplars and new rows.

    The paper has temperature=1. The old network is sure that new rows are of an old class, and its target beside the
    label's confuses: on class-incremental Split MNIST (2 x 400 units, 2000 steps a task, 1000 rows, seed 0) 1 reached
    0.886, and 2, as in van de Ven et al. (2022), 0.932.

    Memory: `capacity` rows and, during a task, a copy of the model. Use it for new classes, with few rows kept.
    """

    name: ClassVar[str] = "icarl"
    title: ClassVar[str] = "iCaRL"
    paper: ClassVar[str] = "Rebuffi et al. 2017, arXiv:1611.07725"
    cost: ClassVar[str] = "a step and a forward pass; after a task a forward pass over its rows; `capacity` rows"
    keeps_rows: ClassVar[bool] = True
    scenarios: ClassVar[tuple[str, ...]] = ("class",)
    objectives: ClassVar[tuple[str, ...]] = ("classification",)

    capacity: int = 2000
    temperature: float = 2.0
    exemplars: dict[str, Any] = memory(dict)  # columns x, y, task; key, the class; rank, the place in its list
    means: Tensor = memory(lambda: torch.empty(0))  # [classes, features]; empty while a task is open
    teacher: dict[str, Tensor] = memory(dict)
    known: int = memory(int)

    def __post_init__(self) -> None:
        if isinstance(self.capacity, bool) or not isinstance(self.capacity, int) or self.capacity < 1:
            raise ValueError(f"capacity is {self.capacity!r}; it is a number of rows, at least one a class")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")

    def remodel(self, model: nn.Module) -> nn.Module:
        """The same model; ValueError for one without features."""
        if not callable(getattr(model, "features", None)):
            raise ValueError(
                f"icarl compares features, and {type(model).__name__} has no features(x): use models.adapt"
            )
        return model

    def begin(self, host: Host, task: Task | None) -> None:
        """Keeps the model as it is, if it knows anything."""
        self.known = host.columns or 0
        tensors = {**dict(host.model.named_parameters()), **dict(host.model.named_buffers())} if self.known else {}
        self.teacher = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self.means = torch.empty(0)

    def fit(self, learner: Trainer, task: Task) -> None:
        """Epochs over the exemplars and the new rows, mixed."""
        self._share(learner)
        past = {name: self.exemplars[name] for name in ("x", "y", "task")} if self.exemplars else None
        for _ in learner.epochs():
            learner.epoch(task.train, past)

    def task_loss(self, host: Host, batch: Batch, outputs: Tensor) -> Tensor:
        """Binary cross-entropy, summed over the columns: new ones to the labels, old ones to the teacher."""
        assert batch.columns is not None
        target = F.one_hot(batch.columns, outputs.shape[1]).to(outputs.dtype)
        if self.known:
            host.spend(forward=len(batch))
            with torch.no_grad(), evaluating(host.model):
                old = functional_call(host.model, self.teacher, (batch.x,))[:, : self.known]
            came_back = batch.fresh[:, None] & target[:, : self.known].bool()
            target[:, : self.known] = torch.where(came_back, 1.0, (old / self.temperature).sigmoid())
        each = F.binary_cross_entropy_with_logits(outputs, target, reduction="none").sum(1)
        return (each if batch.weight is None else each * batch.weight).mean()

    @torch.no_grad()
    def end(self, host: Host, task: Task) -> None:
        """Chooses the exemplars of the task's classes, shortens the lists of the others, and takes all means."""
        share = self._share(host)
        with evaluating(host.model):
            exemplars = self._exemplars(host, task, share)
            self.means = self._means(host, exemplars)
        self.exemplars = {"x": exemplars.x, "y": exemplars.y, "task": exemplars.task, **exemplars.extra}
        self.teacher, self.known = {}, 0

    def predict(self, learner: Trainer, x: Columns, task: int | None) -> Tensor:
        """Minus the squared distances to the means, [n, columns]; the network's scores until there are means."""
        if len(self.means) == 0:
            return super().predict(learner, x, task)
        seen = normalised(self.features(learner, x, task))
        means = F.pad(self.means, (0, 0, 0, learner.width - len(self.means)), value=FAR)
        return seen @ (2 * means.T) - seen.square().sum(1, keepdim=True) - means.square().sum(1)

    def _share(self, host: Host) -> int:
        """How many exemplars a class may have."""
        classes = host.columns or 1
        if classes > self.capacity:
            raise ValueError(f"capacity is {self.capacity}, and there are {classes} classes: allow each at least a row")
        return self.capacity // classes

    def _exemplars(self, host: Host, task: Task, share: int) -> Batch:
        old, lists = None, []
        if self.exemplars:
            old = Batch.past(self.exemplars, 0)
            old.extra = {name: self.exemplars[name] for name in ("key", "rank")}
        position = task.train.positions(task.classes).cpu()
        for rows in ((position == place).nonzero()[:, 0] for place in range(len(task.classes))):
            if len(rows) == 0:
                continue
            pool = host.read(task.train, rows)
            key = host.balance_key(pool)
            pool.extra = {"key": key, "rank": torch.zeros_like(key)}
            if old is not None:
                pool = Batch.cat([pool, old.select(old.extra["key"] == key[0])])
                old = old.select(old.extra["key"] != key[0])
            chosen = pool.select(herd(self._seen(host, pool), share))
            chosen.extra["rank"] = torch.arange(len(chosen), device=host.device)
            lists.append(chosen)
        return Batch.cat(lists if old is None else [old.select(old.extra["rank"] < share), *lists])

    def _means(self, host: Host, exemplars: Batch) -> Tensor:
        """The mean of each class's exemplars, of length 1."""
        member = F.one_hot(exemplars.extra["key"], host.columns or 0).float()
        means = F.normalize(member.T @ self._seen(host, exemplars), dim=1)
        return torch.where(member.any(0)[:, None], means, FAR)

    def _seen(self, host: Host, batch: Batch) -> Tensor:
        host.spend(forward=len(batch))
        parts = (host.ready(batch.select(index)) for index in chunks(torch.arange(len(batch)), CHUNK))
        return torch.cat([normalised(host.model.features(part.x)) for part in parts])  # type: ignore[operator]
