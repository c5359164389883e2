"""Progressive networks: every task gets a column of its own, which sees the frozen columns of the tasks before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from perdure import models
from perdure.data import Columns, Task
from perdure.method import Host, Method, Trainer, memory
from perdure.models.columns import BASES, check


@dataclass(eq=False)
class Progressive(Method):
    """Progressive networks (Rusu et al. 2016): a network that is all new for every task, and sees the older ones.

        h_i(k) = f(W_i h_{i-1}(k) + U_i relu(V_i [alpha_j h_{i-1}(j)]_{j<k}))    for column k at level i

    Only column k is trained on task k; all before it are frozen, so that nothing is forgotten, bit for bit: for the
    network, its shapes and its table of parameters see `perdure.models.Columns`, which takes the place of the mlp or
    convnet that the Learner is given. Columns after the first are `width` times as wide; adapters project onto
    `projection` times the column's width; after `most` columns a task gets a head with an adapter only.

    Cost: a step goes forward through all columns and back through one; parameters grow with the square of the columns.
    Use it for few tasks that must not be forgotten at all, where the task is known when it is asked (else infer it, see
    `perdure.inference`) and old features may help. The newest task may come back and learn on; its column is frozen
    when the next begins, and then it can't.
    """

    name: ClassVar[str] = "progressive"
    title: ClassVar[str] = "Progressive networks"
    paper: ClassVar[str] = "Rusu et al. 2016, arXiv:1606.04671"
    cost: ClassVar[str] = "forward through every column so far; parameters grow with the square of the tasks"
    scenarios: ClassVar[tuple[str, ...]] = ("task",)
    heads: ClassVar[tuple[str, ...]] = ("separate",)

    width: float = 1.0
    most: int | None = None
    projection: float = 1.0
    tasks: dict[str, list[Any]] = memory(dict)

    def __post_init__(self) -> None:
        check(self.width, self.most, self.projection)

    def remodel(self, model: nn.Module) -> nn.Module:
        """Columns like the given mlp or convnet, or the given columns. Raises ValueError for another network, for a
        trained one, and for columns of other settings.
        """
        wanted = {"width": self.width, "most": self.most, "projection": self.projection}
        if isinstance(model, models.Columns):
            found = {name: model.recipe["settings"][name] for name in wanted}
            if found != wanted:
                raise ValueError(f"the columns have {found}, and progressive is set to {wanted}: make them agree")
            return model
        recipe = getattr(model, "recipe", None) or {}
        name = recipe.get("name", type(model).__name__)
        if name not in BASES:
            raise ValueError(f"progressive networks are made like a models.mlp or a models.convnet, not like {name}")
        if not models.untouched(model):
            raise ValueError(f"progressive networks draw all their columns, and this {name} is trained: pass a new one")
        return models.columns(recipe, self.width, self.most, self.projection)

    def begin(self, host: Host, task: Task | None) -> None:
        """Refuses a task that no new column can be opened for; forgets the moments of those that are frozen now."""
        assert task is not None
        if _one_more_is_known(host):
            raise ValueError(
                "progressive networks open the scores of a task with its column: "
                'use heads="separate", and open no outputs ahead'
            )
        known, labels = list(self.tasks), list(task.classes)
        if task.name not in known:
            host.optimizer.state.clear()
        elif task.name != known[-1] or not set(labels) <= set(self.tasks[task.name]):
            raise ValueError(
                f"task {task.name!r} comes back, but its column is frozen: progressive networks learn a task once; "
                "give it another name to learn it in a new column"
            )
        else:
            labels = self.tasks[task.name]
        self.tasks[task.name] = labels

    def predict(self, learner: Trainer, x: Columns, task: int | None) -> Tensor:
        """The scores of the task; later columns are not asked."""
        scores: Tensor = learner.model(x, task)
        return scores

    def features(self, learner: Trainer, x: Columns, task: int | None) -> Tensor:
        """What the task's head sees."""
        found: Tensor = learner.model.features(x, task)  # type: ignore[operator]
        return found


def _one_more_is_known(host: Host) -> bool:
    """Whether a column beyond those learnt can answer already: labels share columns, or were opened ahead."""
    count = (host.columns or 0) + 1
    return sum(len(group) for group in host.column_groups(count)) == count
