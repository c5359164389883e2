"""Split CIFAR-10: two new kinds of things at a time, a narrow ResNet-18 from scratch, which kinds is not told.

    python examples/vision.py data/cifar10 [--small] [--seeds 3] [--out runs/vision]

A table for two cores and five minutes: the first 600 train and 100 test photographs of each kind, one epoch, 8 channels
instead of 20 or 64. What a class-incremental learner answers where the two kinds are told is asked of the same learner.
Settings are the library's defaults, but EWC measures on 200 rows a task instead of 2 000, more than learning costs.
The protocol of the papers is docs/configs/split-cifar10-gpu.toml, for a GPU.
"""

import argparse
from collections.abc import Callable

import torch

from perdure import Learner, Method, datasets, methods, models, streams
from perdure.augment import crop_and_flip
from perdure.experiment.study import picture, study, table
from perdure.streams import Stream

asked = argparse.ArgumentParser()
asked.add_argument("data", help="the folder with CIFAR-10's train and test Parquet files")
asked.add_argument("--small", action="store_true", help="seconds: a few photographs, to see that it runs")
asked.add_argument("--seeds", type=int, default=3)
asked.add_argument("--out", default="runs/vision")
asked = asked.parse_args()
rows, tests, width = (8, 4, 2) if asked.small else (600, 100, 8)


def maker(method: Callable[[], Method]) -> Callable[[int], Learner]:
    """Learners with a method, by seed."""

    def make(seed: int) -> Learner:
        network = models.resnet18((3, 32, 32), width)
        return Learner(
            network, method(), scenario="class", batch_size=32, precision="bf16", augment=crop_and_flip, seed=seed
        )

    return make


def told(learner: Learner, stream: Stream) -> dict[str, float | None]:
    """Accuracy on the tasks learnt so far where each row's two kinds are told, in per cent."""
    known = [task for task in stream if task.name in learner.tasks]
    right = [learner.predict(task.test, task=task) == torch.tensor(task.test.labels) for task in known]
    return {"kinds told": 100 * float(torch.cat(right).double().mean())}


M = methods
chosen = {
    "fine-tuning": M.Finetune, "EWC": lambda: M.EWC(rows=200), "LwF": M.LwF, "replay, 200 rows": lambda: M.Replay(200),
    "DER++, 200 rows": lambda: M.DERpp(200), "joint": M.Joint,
}  # fmt: skip
data = datasets.fewer(datasets.cifar10(asked.data), train=rows, test=tests)
stream = streams.split(data, 5)
makers = {name: maker(method) for name, method in chosen.items()}
results = study(stream, makers, out=asked.out, seeds=range(asked.seeds), look=told, say=print)
print(table(results, ["average accuracy", "kinds told", "forgetting", "train s", "consolidate s", "memory MB"]))
picture(results, f"{asked.out}/picture.svg")
