"""Three objectives over one network: which digit it is, whether it is even, how much ink it has; as images turn.

    python examples/multitask.py runs/multitask [ROWS=6000] [SEEDS=3]

MNIST, turned by 0, 60 and 120 degrees; half of the rows have no ink measured. Forgetting is told for each objective.
"""

import sys
from pathlib import Path

import torch

from perdure import Learner, Several, Stream, Task, datasets, methods, metrics, models, streams
from perdure.experiment.study import picture, study, table

OBJECTIVE = Several(
    {"digit": ("classification", 10), "parity": ("classification", ["even", "odd"]), "ink": "regression"},
    weights={"ink": 0.5},
)
METHODS = {
    "fine-tuning": methods.Finetune,
    "EWC": methods.EWC,
    "MAS": methods.MAS,
    "LwF": methods.LwF,
    "replay, 500 rows": lambda: methods.Replay(500),
    "joint (upper bound)": methods.Joint,
}


def labelled(rows, count, measured):
    """The first rows with their three labels; ink, in standard deviations, for a share of them."""
    x, digits = rows.read(torch.arange(count)), torch.tensor(rows.labels[:count])
    ink = (x.float().flatten(1).mean(1) - 33) / 11  # MNIST's mean and deviation
    ink = ink.where(torch.arange(count) < measured * count, torch.nan)
    parity = ["odd" if digit % 2 else "even" for digit in digits.tolist()]
    return OBJECTIVE.rows(x, {"digit": digits, "parity": parity, "ink": ink})


def learner(method, record, seed):
    """A new learner; `record` keeps an accuracy matrix for each objective."""
    made, settings = models.mlp(784, (400, 400)), {"objective": OBJECTIVE, "epochs": 3, "seed": seed}
    return Learner(made, method(), scenario="domain", callbacks=[record(stream)], **settings)


def look(learner, stream):
    """Each objective's grade over all turns, and what it forgot."""
    found = learner.callbacks[0].matrices
    means = {name: 100 * metrics.average_accuracy(matrix) for name, matrix in found.items()}
    lost = {f"{name} lost": metrics.forgetting(matrix) for name, matrix in found.items()}
    return means | {name: None if value is None else 100 * value for name, value in lost.items()}


out, rows = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 6000
turned = streams.rotated(datasets.mnist(), 3)
tasks = [Task(labelled(t.train, rows, 0.5), labelled(t.test, rows // 3, 1.0), name=t.name) for t in turned]
stream = Stream(tasks, name="turned-digits", description=turned.description)
makes = {name: lambda seed, m=method: learner(m, metrics.RecordParts, seed) for name, method in METHODS.items()}
found = study(stream, makes, out=out, seeds=range(int(sys.argv[3]) if len(sys.argv) > 3 else 3), look=look, say=print)
print(table(found, ["digit", "digit lost", "parity", "parity lost", "ink", "ink lost", "train s"]))
picture(found, out / "accuracy.svg")
