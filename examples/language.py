"""Film reviews, good or bad, whose language shifts: strong opinions topic by topic (topics.py), then mild ones.

    python examples/language.py data/imdb [--small] [--seeds 3] [--out runs/language]
    python examples/language.py data/imdb --rows 400 --encoder FOLDER     # features of a frozen Hugging Face encoder

A text counts once, in train or test. SLDA freezes what it learnt of the first topic. See docs/language.md.
"""

from functools import partial
from pathlib import Path

import pyarrow.compute
from options import options
from topics import TOPICS, reviews

from perdure import Learner, Task, methods, recipes
from perdure.experiment.study import picture, study, table
from perdure.method import Method
from perdure.streams import Stream

parser = options("runs/language")
parser.add_argument("--rows", type=int, help="of each domain only so many, to learn from and to be asked")
parser.add_argument("--encoder", help="a folder, or a name on the Hugging Face hub")
asked = parser.parse_args()
most, epochs, counted, buckets = (60, 1, 20, 2**10) if asked.small else (asked.rows, 6, 200, 2**14)
recipe = recipes.Text(buckets=buckets, most=128 if asked.encoder else 512, encoder=asked.encoder)


def stream() -> Stream:
    """A task a domain: the topics, then mild opinions on any of them."""
    seen, tasks, first = set(), [], 3000 if asked.small else None
    files = [reviews(Path(asked.data, f"{name}.parquet"), seen, first) for name in ("train", "test")]
    recipe.fit(files[0])
    for domain in [*TOPICS, "mild"]:
        parts = [file.filter(pyarrow.compute.equal(file["domain"], domain))[:most] for file in files]
        tasks.append(Task(*map(recipe.rows, parts), name=domain))
        print(f"{domain}: {len(parts[0])} reviews to learn from, {len(parts[1])} to be asked")
    return Stream(tasks, name="language", description="Film reviews by topic, strong opinions; then mild ones.")


def learner(method: partial[Method], seed: int) -> Learner:
    """Epochs are more than the recipe's, as a topic has few reviews."""
    return Learner(recipe.network(), method(), scenario="domain", seed=seed, **{**recipe.training, "epochs": epochs})


chosen = {
    "fine-tuning": partial(methods.Finetune),
    "EWC": partial(methods.EWC, rows=counted),
    "EWC, weak": partial(methods.EWC, 1e-4, rows=counted),
    "MAS": partial(methods.MAS, rows=counted),
    "MAS, weak": partial(methods.MAS, 0.03, rows=counted),
    "LwF": partial(methods.LwF),
    "replay": partial(methods.Replay, 500),
    "SLDA": partial(methods.SLDA, warm_start=asked.encoder is None),
    "joint": partial(methods.Joint),
}
makers = {name: partial(learner, method) for name, method in chosen.items()}
results = study(stream(), makers, out=asked.out, seeds=range(asked.seeds), say=print, workers=2)
print(table(results, ["average accuracy", "forgetting", "learning accuracy", "train s", "consolidate s", "memory MB"]))
picture(results, f"{asked.out}/picture.svg")
