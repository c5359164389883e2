"""What `advise` chooses for the streams of examples/, beside every fixed method of their pages: docs/advise.md.

    PYTHONPATH=examples python tools/advise_fields.py data language|reviews|road|cifar|stars [first|three] [SECONDS=120]

The trial reads train rows of the first task, or of the first three. A row is a constraint; the fixed methods are those
of the page (three seeds). A choice that the page has not with these settings is run here, with seed 0 only.
"""

import sys
from pathlib import Path

import pyarrow.compute
import torch
from topics import TOPICS, reviews

from perdure import Learner, Stream, Task, datasets, methods, metrics, models, recipes, streams
from perdure.augment import crop_and_flip
from perdure.experiment import pieces
from perdure.experiment.advise import advise
from perdure.experiment.candidates import ROW_OVERHEAD, Needs

BOUNDS = ("joint", "full retraining", "film and person means")
KEEPERS = ("replay", "DER++", "cumulative")
IN_PAGE = {"finetune": "fine-tuning", "lwf": "LwF", "replay": "replay", "derpp": "DER++"}  # with the same settings


def page(name, heading):
    """The numbers of a page's first table below a heading: method -> (mean, bytes that it keeps or None)."""
    lines = Path("docs", name).read_text().partition(heading)[2].splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("|"))
    names = [cell.strip() for cell in lines[start].split("|")[1:-1]]
    found = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return found
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        kept = float(cells[-1] or 0) * 1e6 if names[-1].startswith("memory") else None
        found[cells[0]] = float((cells[1] or cells[2]).split()[0]), kept
    return found


def language(data, rows=None):
    """Film reviews by topic: stream, network, training, stored rows and page, as examples/language.py has them."""
    recipe, seen, tasks = recipes.Text(buckets=2**14), set(), []
    files = [reviews(data / f"imdb/{name}.parquet", seen) for name in ("train", "test")]
    recipe.fit(files[0])
    for domain in [*TOPICS, "mild"]:
        parts = [file.filter(pyarrow.compute.equal(file["domain"], domain))[:rows] for file in files]
        tasks.append(Task(*map(recipe.rows, parts), name=domain))
    table = whole = page("language.md", "# Language")
    if rows:  # that table does not say what a method keeps, which is the same
        table = {label: (value, whole[label][1]) for label, (value, _) in page("language.md", "## With few").items()}
    return Stream(tasks, name="language"), "domain", recipe.network, {**recipe.training, "epochs": 6}, 500, table


def road(data):
    """A road in changing conditions, as examples/road.py has it."""
    kinds = (1, 9, 3, 4, 5, 7)
    images = datasets.fewer(datasets.cifar10(data / "cifar10"), train=1000, test=100, classes=kinds)
    stream = streams.held(streams.corrupted(images, apart=True))
    training = {"epochs": 2, "batch_size": 32, "precision": "bf16"}
    network = lambda: models.convnet((3, 32, 32), (16, 32, 64))  # noqa: E731
    return stream, "domain", network, training, 500, page("vision.md", "### What is kept")


def cifar(data):
    """Split CIFAR-10, as examples/vision.py has it."""
    stream = streams.split(datasets.fewer(datasets.cifar10(data / "cifar10"), train=600, test=100), 5)
    training = {"batch_size": 32, "precision": "bf16", "augment": crop_and_flip}
    network = lambda: models.resnet18((3, 32, 32), 8)  # noqa: E731
    return stream, "class", network, training, 200, page("vision.md", "## Split CIFAR-10")


def stars(data):
    """MovieLens by month, stars, as examples/recommendation.py has it; the page's number is the RMSE of old months."""
    months = streams.by_month(Task(datasets.movielens100k(data / "movielens100k").train, name="ML"), "time", 8000)
    training = {"objective": "rating", "epochs": 2, "batch_size": 256, "optimizer": {"name": "adam", "lr": 0.03}}
    network = lambda: models.ratings(4, dropout=0.3)  # noqa: E731
    return months, "domain", network, training, 5000, page("recommendation.md", "## Stars")


def reached(spec, field):
    """A choice on the stream, with seed 0: average accuracy in per cent, or RMSE in thousandths of a star."""
    stream, scenario, network, training, _, _ = field
    learner = Learner(network(), methods.build(spec), scenario=scenario, seed=0, **training)
    matrix = []
    for task in stream:
        learner.learn(task)
        matrix.append(learner.evaluate(stream))
    if "objective" in training:
        return 4000 * (1 - sum(matrix[-1][:-1]) / (len(stream) - 1))
    return 100 * metrics.average_accuracy(matrix)


def line(name, field, keep, on, seconds):
    """One row of the table."""
    stream, scenario, network, training, stored, table = field
    first = stream[0].train
    limit = round(stored * (first.bytes / len(first) + ROW_OVERHEAD)) if keep else None
    known = pieces.first_three(stream) if on == "three" else None
    needs = Needs(scenario, keep, limit)
    advice = advise(stream[0], network, needs, training=training, known=known, seconds=seconds, say=say)
    say(advice)
    same = (
        IN_PAGE.get(advice.label) if (name, advice.label) != ("stars", "replay") else None
    )  # of 16 rows a batch there
    names = [label for label in table if same and label.startswith(same)]
    mine, star = (table[names[0]][0], "") if names else (reached(advice.spec, field), "*")
    allowed = {
        label: value
        for label, (value, kept) in table.items()
        if not label.startswith(BOUNDS) and (keep or not label.startswith(KEEPERS))
        if limit is None or kept is None or kept <= 1.05 * limit
    }
    sign = 1 if "objective" in training else -1  # an error is best where it is least
    best = min(allowed, key=lambda label: sign * allowed[label])
    rank = 1 + sum(sign * value < sign * mine for label, value in allowed.items() if label not in names)
    how = f"{advice.label}, {'a rule' if 'his is a rule' in str(advice) else 'measured'}"
    of = len({*allowed, *names}) + (not names)
    said = [
        name,
        scenario,
        str(stored) if keep else "none",
        on,
        how,
        f"{mine:.1f}{star}",
        f"{best} {allowed[best]:.1f}",
    ]
    print("|", " | ".join([*said, f"{allowed['fine-tuning']:.1f}", f"{rank} of {of}"]), "|", flush=True)


def say(words):
    """Beside the table."""
    print(words, file=sys.stderr, flush=True)


torch.set_num_threads(1)
data, name, *more = sys.argv[1:]
on, seconds = more[0] if more else "first", float(more[1]) if len(more) > 1 else 120.0
makers = {
    "language": language,
    "reviews": lambda data: language(data, 300),
    "road": road,
    "cifar": cifar,
    "stars": stars,
}
field = makers[name](Path(data))
for keep in (True, False):
    line(name, field, keep, on, seconds)
