"""What `advise` chooses on Split MNIST, beside every fixed method of the published table: docs/advise.md.

    python tools/advise_split_mnist.py runs/advise-split results/tables/split-mnist/results.json ["first three"]

The trial reads train rows of the first task, or of the first three; the fixed methods are those of the table (2 000
steps a task, three seeds). A choice that the table has not is run here in its protocol. Stopped, it goes on.
"""

import json
import sys
from pathlib import Path
from statistics import fmean

import torch

from perdure import Learner, datasets, methods, metrics, models, streams
from perdure.experiment import pieces
from perdure.experiment.advise import advise
from perdure.experiment.candidates import Needs

MEMORY = 928_000  # 1 000 rows with their scores
TRAINING = {"steps": 2000, "batch_size": 128, "optimizer": {"name": "adam", "lr": 1e-3}}
IN_TABLE = {
    "finetune": "fine-tuning", "replay, balanced": "ER", "er-ace": "ER-ACE", "derpp": "DER++", "icarl": "iCaRL",
    "ewc": "EWC", "mas": "MAS", "si": "SI", "lwf": "LwF", "packnet": "PackNet",
    "generative-replay": "generative replay, VAE",
}  # fmt: skip
BOUND, KEEPERS = ("joint (upper bound)",), ("ER", "ER-ACE", "DER++", "iCaRL", "A-GEM", "GDumb", "cumulative")


def network():
    """The table's."""
    return models.mlp(784, (400, 400))


def fixed(path):
    """scenario -> label -> mean average accuracy over the table's seeds, in per cent."""
    found = {}
    for cell in json.loads(path.read_text())["cells"]:
        if cell["metrics"] is not None:
            place = found.setdefault(cell["scenario"], {}).setdefault(cell["method"], [])
            place.append(100 * cell["metrics"]["average_accuracy"])
    return {scenario: {label: fmean(seen) for label, seen in row.items()} for scenario, row in found.items()}


def reached(spec, scenario, stream, path):
    """The average accuracy of a choice that the table has not, three seeds, in per cent."""
    if not path.exists():
        scores = []
        for seed in range(3):
            learner = Learner(network(), methods.build(spec), scenario=scenario, seed=seed, **TRAINING)
            matrix = []
            for task in stream:
                learner.learn(task)
                matrix.append(learner.evaluate(stream))
            scores.append(100 * metrics.average_accuracy(matrix))
        path.write_text(json.dumps(scores))
    return fmean(json.loads(path.read_text()))


torch.set_num_threads(1)
out, table = Path(sys.argv[1]), fixed(Path(sys.argv[2]))
stream = streams.split(datasets.mnist(), tasks=5)
print("| what comes | rows kept | tried on | advice | reaches | best allowed | fine-tuning | rank |")
print("|---|---|---|---|---|---|---|---|")
for on in sys.argv[3:] or ("first task", "first three"):
    for scenario in ("task", "domain", "class"):
        for keep in (True, False):
            needs = Needs(scenario, keep, MEMORY if keep else None)
            place = out / f"{on}-{scenario}-{'rows' if keep else 'none'}".replace(" ", "-")
            known = pieces.first_three(stream) if on == "first three" else None
            advice = advise(stream[0], network, needs, training=TRAINING, known=known, seconds=400, out=place)
            (place / "advice.txt").write_text(f"{advice}\n")
            own = IN_TABLE.get(advice.label)
            mine = table[scenario].get(own) or reached(advice.spec, scenario, stream, place / "reached.json")
            allowed = {k: v for k, v in table[scenario].items() if k not in BOUND and (keep or k not in KEEPERS)}
            best = max(allowed, key=allowed.get)
            rank = 1 + sum(value > mine for label, value in allowed.items() if label != own)
            how = advice.label if advice.tried else f"{advice.label} (a rule)"
            said = [scenario, "1 000" if keep else "none", on, how, f"{mine:.1f}", f"{best} {allowed[best]:.1f}"]
            said += [f"{allowed['fine-tuning']:.1f}", f"{rank} of {len(allowed)}"]
            print(f"| {' | '.join(said)} |", flush=True)
