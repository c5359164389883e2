"""Steps of the learner against bare loops: plain, defaults, replay, EWC, many classes; evaluation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from harness import Row, dump, in_turns, ratio
from torch import Tensor, nn

from perdure import Learner, Method, Rows, Steps, Task, datasets, methods, models

STEPS = {128: 150, 16: 400}
ROWS = 6000


def digits(count: int = ROWS, shift: int = 0) -> tuple[Tensor, Tensor]:
    """MNIST as floats [n, 784], and its labels."""
    train = datasets.mnist().train
    index = (torch.arange(count) + shift) % len(train)
    return train.read(index).flatten(1).float() / 255, torch.tensor(train.labels)[index]


def network(columns: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, columns)
    )  # fmt: skip


class Bare:
    """A textbook loop: shuffle once an epoch, index, forward, loss, backward, step."""

    def __init__(self, batch: int, steps: int, fused: bool = True, columns: int = 10, joined: int = 0) -> None:
        self.x, self.y = digits()
        self.model, self.batch, self.steps, self.joined = network(columns), batch, steps, joined
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-3, fused=fused or None)

    def __call__(self) -> None:
        taken = 0
        while True:
            for index in torch.randperm(len(self.x)).split(self.batch):
                if taken == self.steps:
                    return
                taken += 1
                if self.joined:
                    index = torch.cat([index, torch.randint(len(self.x), (self.joined,))])
                self.optimizer.zero_grad()
                F.cross_entropy(self.model(self.x[index]), self.y[index]).backward()
                self.optimizer.step()


class Learnt:
    """The Learner on the same rows: a task of `steps` steps a call."""

    def __init__(
        self, batch: int, steps: int, method: Method | None = None, tasks: int = 1, **settings: object
    ) -> None:
        settings = {"optimizer": {"name": "adam", "lr": 1e-3}, "scenario": "domain", **settings}
        model = models.mlp(784, (400, 400))
        self.learner = Learner(model, method or methods.Finetune(), batch_size=batch, steps=1, **settings)
        for number in range(tasks):
            self.task = Task(Rows(*digits(shift=number * 100)), name=f"task {number}")
            if number < tasks - 1:
                self.learner.learn(self.task)
        self.learner.account.budget = Steps(steps)

    def __call__(self) -> None:
        self.learner.learn(self.task)


def plain() -> list[Row]:
    rows = []
    for batch, bars in ((128, (1.05, 0.75)), (16, (1.15, 0.60))):
        steps = STEPS[batch]
        found = in_turns({
            "bare": Bare(batch, steps), "textbook": Bare(batch, steps, fused=False), "learner": Learnt(batch, steps)
        })  # fmt: skip
        size = f"batch {batch}"
        rows.append(ratio(f"learner, plain method, {size}", "bare loop, fused Adam", found, "learner", "bare", bars[0]))
        rows.append(ratio(f"learner, defaults, {size}", "textbook loop", found, "learner", "textbook", bars[1]))
    return rows


def with_methods() -> list[Row]:
    rows = []
    for batch in (128, 16):
        steps = STEPS[batch]
        found = in_turns({
            "bare": Bare(batch, steps, joined=batch),
            "replay": Learnt(batch, steps, methods.Replay(2000), tasks=2),
            "plain": Learnt(batch, steps, tasks=2),
            "ewc": Learnt(batch, steps, methods.EWC(rows=16), tasks=2),
        })  # fmt: skip
        reach = {128: (1.10, 1.25), 16: (None, None)}[batch]
        size = f"batch {batch}"
        rows.append(ratio(f"ER, 2 000 rows, {size}", "bare loop, as many rows", found, "replay", "bare", reach[0]))
        rows.append(ratio(f"EWC, {size}", "the plain step", found, "ewc", "plain", reach[1]))
    return rows


def many_classes() -> list[Row]:
    rows = []
    for batch, reach in ((128, 1.2), (16, None)):
        x, y = digits()
        grown = Learnt(batch, STEPS[batch], scenario="class")
        grown.task = Task(Rows(x, y), classes=range(1000), name="all")
        found = in_turns({"linear": Bare(batch, STEPS[batch], columns=1000), "grown": grown})
        rows.append(
            ratio(f"1 000 grown classes, batch {batch}", "nn.Linear(400, 1000)", found, "grown", "linear", reach)
        )
    return rows


def evaluation() -> list[Row]:
    """All tasks so far, against batched forward passes of the same rows in inference mode."""
    test = datasets.mnist().test
    x = test.read(torch.arange(len(test))).flatten(1).float() / 255
    y = torch.tensor(test.labels)
    tasks = [Task(Rows(*digits()), Rows(x, y), name=f"task {number}") for number in range(5)]
    learner = Learner(models.mlp(784, (400, 400)), methods.Finetune(), scenario="domain", steps=1)
    for task in tasks:
        learner.learn(task)
    model = network()

    def bare() -> None:
        with torch.inference_mode():
            for _ in tasks:
                right = sum((model(a).argmax(1) == b).sum() for a, b in zip(x.split(1024), y.split(1024), strict=True))
                float(right)

    found = in_turns({"bare": bare, "learner": lambda: learner.evaluate(tasks)})
    return [ratio("evaluation of 5 tasks, 10 000 rows each", "bare forward passes", found, "learner", "bare", 1.1)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    dump([*plain(), *with_methods(), *many_classes(), *evaluation()])
