"""What `advise` chooses for heart disease at four hospitals, where no row may be kept, beside every fixed choice.

    PYTHONPATH=examples python tools/advise_hospitals.py data/heart_disease [SEEDS=3]

A seed examines its own third of each hospital's patients and learns the others, as examples/medicine.py does. The
trial reads train rows of the first hospital, or of the first three; the fourth is learnt all the same.
"""

import sys
from statistics import fmean

import numpy as np
import torch
from hospitals import HOSPITALS, of, patients

from perdure import Learner, Stream, Task, methods, metrics, models, recipes
from perdure.data import Rows
from perdure.experiment import pieces
from perdure.experiment.advise import advise
from perdure.experiment.candidates import Needs, candidates

NEEDS = Needs("domain", keep=False)
TRAINING = {"epochs": 30, "batch_size": 32}


def stream(everybody, seed, seeds):
    """The hospitals in order; part `seed` of each is asked."""
    recipe, tasks = recipes.Tabular(label="diagnosis", ignore=["hospital"], missing={"chol": [0]}), []
    for name in HOSPITALS:
        own = of(everybody, name)
        mine = np.arange(len(own)) % seeds == seed
        parts = own.filter(~mine), own.filter(mine)
        if not tasks:
            recipe.fit(parts[0])
        tasks.append(Task(*[Rows(recipe.inputs(p)["numbers"], recipe.labels(p)) for p in parts], name=name))
    return Stream(tasks, name="hospitals")


def network():
    """That of the example."""
    return models.mlp(26, (64, 64))


def reached(spec, stream, seed):
    """Average accuracy over the hospitals after the last, in per cent."""
    learner = Learner(network(), methods.build(spec), scenario="domain", seed=seed, **TRAINING)
    matrix = []
    for task in stream:
        learner.learn(task)
        matrix.append(learner.evaluate(stream))
    return 100 * metrics.average_accuracy(matrix)


torch.set_num_threads(1)
seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
everybody = patients(sys.argv[1]).sort_by([("diagnosis", "ascending")])
streams = [stream(everybody, seed, seeds) for seed in range(seeds)]
chosen, _ = candidates(NEEDS, streams[0][0].train)
scores = {c.label: [reached(c.spec, s, seed) for seed, s in enumerate(streams)] for c in chosen}
for on in ("first task", "first three"):
    found = []
    for seed, s in enumerate(streams):
        known = pieces.first_three(s) if on == "first three" else None
        advice = advise(s[0], network, NEEDS, training=TRAINING, known=known, seconds=120)
        print(f"{on}, seed {seed}: {advice.label}{'' if advice.tried else ' (a rule)'}", flush=True)
        found.append(scores[advice.label][seed])
    scores[f"advice, on {on}"] = found
print("| choice | accuracy | seeds |\n|---|---|---|")
for label, each in sorted(scores.items(), key=lambda item: -fmean(item[1])):
    mean, half = metrics.interval(each)
    print(f"| {label} | {mean:.1f} ± {half:.1f} | {', '.join(f'{value:.1f}' for value in each)} |")
