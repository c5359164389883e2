"""Heart disease at four hospitals, one after another; no patient of an earlier hospital is kept (but by "joint").

    python examples/medicine.py data/heart_disease [--small] [--seeds 3] [--out runs/medicine]

Each hospital's patients are dealt into as many parts as there are seeds: a seed is examined on its part and learns the
others, so that in the end each patient was asked once; patients.md judges them together. See docs/medicine.md.
"""

from pathlib import Path

import numpy as np
from hospitals import HOSPITALS, of, patients
from options import options

from perdure import Learner, Task, clinical, methods, models, recipes
from perdure.data import Rows
from perdure.experiment.study import picture, study, table
from perdure.streams import Stream

asked = options("runs/medicine").parse_args()
everybody, said = patients(asked.data).sort_by([("diagnosis", "ascending")]), {}  # each part has as many sick ones


def stream(seed: int) -> Stream:
    """The hospitals in order; part `seed` of each is asked. A `chol` of 0 was not measured."""
    recipe, tasks = recipes.Tabular(label="diagnosis", ignore=["hospital"], missing={"chol": [0]}), []
    for name in HOSPITALS:
        own = of(everybody, name)
        mine = np.arange(len(own)) % asked.seeds == seed
        parts = own.filter(~mine), own.filter(mine)
        if not tasks:  # the first hospital's scales are everybody's
            recipe.fit(parts[0])
        tasks.append(Task(*[Rows(recipe.inputs(p)["numbers"], recipe.labels(p)) for p in parts], name=name))
    return Stream(tasks, name="medicine", description="Heart disease at four hospitals, one after another.")


def look(learner: Learner, stream: Stream) -> dict[str, float | None]:
    """Notes the chance of disease that each patient was given."""
    for task in stream:
        chances = learner.predict_proba(task.test, task=HOSPITALS[0])[:, learner.classes.index("disease")].numpy()
        parts = said.setdefault((learner.method.title, HOSPITALS[learner.clock.task - 1], task.name), [])
        parts.append((chances, np.array(task.test.labels) == "disease"))
    return {}


def maker(method: type) -> object:
    """A learner for each seed."""
    hidden, epochs = () if method is methods.SLDA else (64, 64), 1 if asked.small else 30
    return lambda n: Learner(models.mlp(26, hidden), method(), scenario="domain", epochs=epochs, batch_size=32, seed=n)


chosen = [methods.Finetune, methods.EWC, methods.MAS, methods.GenerativeReplay, methods.SLDA, methods.Joint]
makers = {method.title: maker(method) for method in chosen}
results = study(stream, makers, out=asked.out, seeds=range(asked.seeds), look=look, say=print, fresh=True)
print(table(results, ["average accuracy", "forgetting", "learning accuracy", "train s", "memory MB"]))
picture(results, f"{asked.out}/picture.svg")
draws = 20 if asked.small else 1000
asked_of = {key: map(np.concatenate, zip(*parts, strict=True)) for key, parts in said.items()}
found = {key: clinical.diagnosis(*pair, draws=draws) for key, pair in asked_of.items()}
Path(asked.out, "patients.md").write_text(clinical.table(found, ["method", "after", "asked"]))
