"""The reduced ResNet-18 on images of CIFAR-10's shape, batch 32: a bare loop; bf16 with channels last against fp32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from harness import Row, dump, in_turns, ratio

from perdure import Learner, Rows, Task, methods, models

STEPS, BATCH, COUNT = 12, 32, 12 * 32


def task() -> Task:
    draws = torch.Generator().manual_seed(0)
    return Task(Rows(torch.rand(COUNT, 3, 32, 32, generator=draws), torch.arange(COUNT) % 10), name="images")


def learnt(precision: str) -> object:
    rows = task()
    learner = Learner(
        models.resnet18((3, 32, 32), width=20), methods.Finetune(), scenario="domain", batch_size=BATCH,
        precision=precision, optimizer={"name": "adam", "lr": 1e-3},
    )  # fmt: skip
    return lambda: learner.learn(rows)


def bare() -> object:
    rows = task().train
    x, y = rows.read(torch.arange(COUNT)), torch.tensor(rows.labels)
    model = models.resnet18((3, 32, 32), width=20)
    model.grow(10, torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)

    def epoch() -> None:
        for index in torch.randperm(COUNT).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()

    return epoch


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = in_turns({"bare": bare(), "fp32": learnt("fp32"), "bf16": learnt("bf16")}, rounds=5)
    rows: list[Row] = [
        ratio("reduced ResNet-18, batch 32", "bare loop", found, "fp32", "bare", 1.03),
        ratio("fp32", 'precision="bf16"', found, "fp32", "bf16", 1.7, direction="at least"),
    ]
    dump(rows)
