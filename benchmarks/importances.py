"""The Fisher against an epoch of the bare loop, and against one backward for each row and label."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from harness import Row, dump, in_turns, peak_megabytes, ratio
from steps import Bare, digits
from torch import Tensor, nn

from perdure import models
from perdure.importance import diagonal

COUNT = 2048
Probes = Iterator[Tensor]


def exact(scores: Tensor) -> Probes:
    p = scores.softmax(1)
    for c in range(scores.shape[1]):
        v = -p
        v[:, c] += 1
        yield v * p[:, c : c + 1].sqrt()


def sampled(scores: Tensor) -> Probes:
    p = scores.softmax(1)
    yield F.one_hot(torch.multinomial(p, 1)[:, 0], p.shape[1]) - p


def fisher(model: nn.Module, x: Tensor, probes: object) -> dict[str, Tensor]:
    return diagonal(model, ((part, probes) for part in x.split(512)), kind="square")


def one_by_one(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """One forward and one autograd.grad per label for each row."""
    names, weights = zip(*model.named_parameters(), strict=True)
    total = [torch.zeros_like(w) for w in weights]
    for row in x:
        log_p = model(row[None]).log_softmax(1)[0]
        for c in range(len(log_p)):
            for place, g in enumerate(torch.autograd.grad(log_p[c], weights, retain_graph=True)):
                total[place] += log_p[c].exp().detach() * g**2
    return {name: value / len(x) for name, value in zip(names, total, strict=True)}


def grown(columns: int) -> nn.Module:
    model = models.mlp(784, (400, 400))
    model.grow(columns, torch.Generator().manual_seed(0))
    return model


def against_training() -> list[Row]:
    x, _ = digits(COUNT)
    model, bare = grown(10), Bare(128, COUNT // 128)
    found = in_turns({
        "epoch": bare, "exact": lambda: fisher(model, x, exact), "sampled": lambda: fisher(model, x, sampled)
    })  # fmt: skip
    what = f"an epoch of the bare loop over {COUNT} rows"
    return [
        ratio("Fisher, exact, 10 classes, batch 512", what, found, "exact", "epoch", 2.5),
        ratio("Fisher, sampled, batch 512", what, found, "sampled", "epoch", 1.2),
    ]


def against_the_loop() -> list[Row]:
    x, _ = digits(96)
    model, results = grown(10), {}
    found = in_turns({
        "fast": lambda: results.update(fast=fisher(model, x, exact)),
        "loop": lambda: results.update(loop=one_by_one(model, x)),
    }, rounds=5)  # fmt: skip
    gaps = [
        float((results["fast"][n] - v).abs().max() / v.abs().max().clamp(min=1e-12)) for n, v in results["loop"].items()
    ]
    row = ratio(
        "one backward per row and label", "Fisher, exact, 96 rows", found, "loop", "fast", 25.0, direction="at least",
        note=f"largest relative difference {max(gaps):.0e}",
    )  # fmt: skip
    return [row, Row("Fisher, exact: difference to that loop", "0", [max(gaps)], "", 1e-5)]


def many_classes() -> list[Row]:
    x, _ = digits(256)
    model = grown(1000)
    before, start = peak_megabytes(), time.process_time()
    fisher(model, x, exact)
    taken = time.process_time() - start
    note = f"256 rows, {taken:.1f} CPU s; all probes at once would be {256 * 1000 * 1000 * 4 / 1e6:.0f} MB"
    return [
        Row("Fisher, exact, 1 000 classes: memory", "before it", [peak_megabytes() - before], "MB", 200.0, note=note)
    ]


def convolutions() -> list[Row]:
    torch.manual_seed(0)
    model = models.resnet18((3, 32, 32), width=20)
    model.grow(10, torch.Generator().manual_seed(0))
    x, y = torch.rand(64, 3, 32, 32), torch.randint(10, (64,))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)

    def epoch() -> None:
        for a, b in zip(x.split(32), y.split(32), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(a), b).backward()
            optimizer.step()

    found = in_turns({"epoch": epoch, "sampled": lambda: fisher(model, x, sampled)}, rounds=3)
    return [
        ratio("Fisher, sampled, reduced ResNet-18", "an epoch over 64 rows, batch 32", found, "sampled", "epoch", None)
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    dump([*many_classes(), *against_training(), *against_the_loop(), *convolutions()])
