"""What one meets on a road, in changing conditions: clear, then fog, night, rain, and a lens out of focus (blur).

    python examples/road.py data/cifar10 [--small] [--seeds 3] [--out runs/road]

CIFAR-10's automobiles, trucks, cats, deer, dogs and horses; each condition brings 1 200 train photographs of its own
(made on the fly by `streams.corrupted`), is examined on the same 600, and what it is, nobody says. A small network
from scratch, two epochs a condition; settings are the library's defaults, but EWC and MAS measure on 200 rows a task.
"""

import argparse
from collections.abc import Callable

from perdure import Learner, Method, datasets, methods, models, streams
from perdure.experiment.study import course, picture, study, table

asked = argparse.ArgumentParser()
asked.add_argument("data", help="the folder with CIFAR-10's train and test Parquet files")
asked.add_argument("--small", action="store_true", help="seconds: a few photographs, to see that it runs")
asked.add_argument("--seeds", type=int, default=3)
asked.add_argument("--out", default="runs/road")
asked = asked.parse_args()
rows, tests, widths = (20, 4, (4,)) if asked.small else (1000, 100, (16, 32, 64))
ROAD = (1, 9, 3, 4, 5, 7)  # automobile, truck, cat, deer, dog, horse


def maker(method: Callable[[], Method]) -> Callable[[int], Learner]:
    """Learners with a method, by seed."""

    def make(seed: int) -> Learner:
        network = models.convnet((3, 32, 32), widths)
        return Learner(network, method(), scenario="domain", epochs=2, batch_size=32, precision="bf16", seed=seed)

    return make


M = methods
chosen = {
    "fine-tuning": M.Finetune, "EWC": lambda: M.EWC(rows=200), "MAS": lambda: M.MAS(rows=200), "LwF": M.LwF,
    "replay, 500 rows": lambda: M.Replay(500), "DER++, 500 rows": lambda: M.DERpp(500), "joint": M.Joint,
}  # fmt: skip
data = datasets.fewer(datasets.cifar10(asked.data), train=rows, test=tests, classes=ROAD)
stream = streams.held(streams.corrupted(data, apart=True))
makers = {name: maker(method) for name, method in chosen.items()}
results = study(stream, makers, out=asked.out, seeds=range(asked.seeds), say=print)
print(table(results, ["average accuracy", "learning accuracy", "forgetting", "train s", "consolidate s", "memory MB"]))
print(course(results, "clear"))
picture(results, f"{asked.out}/picture.svg")
picture(results, f"{asked.out}/clear.svg", first_task=True)
