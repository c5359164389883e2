"""Learning without forgetting: the model as it was before the task teaches the model that learns it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import functional_call

from perdure.data import Batch, Task
from perdure.method import Host, Method, memory
from perdure.models import evaluating


@dataclass(eq=False)
class LwF(Method):
    """Learning without forgetting (Li & Hoiem 2016).

    loss + strength * sum_g T^2 H(softmax(t_g / T), softmax(s_g / T)), a mean over the rows: H is the cross-entropy, s
    the scores, t those of the teacher (the model before the task, in eval mode, on the same inputs), g the known
    columns: one group, or one a task with separate heads. Multi-label and regression use their own distance.

    Needs no old row and no labels of old classes. Use it where the new inputs look like the old ones.
    """

    name: ClassVar[str] = "lwf"
    title: ClassVar[str] = "LwF"
    paper: ClassVar[str] = "Li & Hoiem 2016, arXiv:1606.09282"
    cost: ClassVar[str] = "a step and a forward pass; a copy of the model"

    strength: float = 1.0
    temperature: float = 2.0
    teacher: dict[str, Tensor] = memory(dict)
    columns: int | None = memory(int)

    def __post_init__(self) -> None:
        if not self.strength >= 0:
            raise ValueError(f"strength is {self.strength}; it must be 0 or more")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0")

    def begin(self, host: Host, task: Task | None) -> None:
        """Keeps the model as it is, if it knows anything."""
        if host.columns == 0:
            return
        tensors = {**dict(host.model.named_parameters()), **dict(host.model.named_buffers())}
        self.teacher = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self.columns = host.columns

    def penalty(self, host: Host, batch: Batch, outputs: Tensor) -> Tensor | float:
        """The distance to the teacher, summed over the groups of known columns."""
        if not self.teacher or self.strength == 0:
            return 0.0
        host.spend(forward=len(batch))
        with torch.no_grad(), evaluating(host.model):
            target = functional_call(host.model, self.teacher, (batch.x,))
        distance = torch.zeros((), device=outputs.device)
        for group in host.column_groups(target.shape[1] if self.columns is None else self.columns):
            distance = distance + host.objective.distil(outputs[:, group], target[:, group], self.temperature).mean()
        return self.strength * distance
