"""MovieLens 100k by month: stars (RMSE) and lists of films (recall@10, NDCG@10), of the next month and of old ones.

    python examples/recommendation.py data/movielens100k [--small] [--seeds 3] [--out runs/recommendation]

A month of fewer than 8 000 ratings joins the next. Lists are of what got 4 or 5 stars. --small: 100 people.
"""

from functools import partial
from pathlib import Path
from statistics import fmean

from options import options

from perdure import Learner, Stream, Task, datasets, lists, methods, models, streams
from perdure.augment import Unseen
from perdure.experiment.study import picture, study, table

args = options("runs/recommendation").parse_args()
rows = datasets.movielens100k(args.data).train
rows = rows.select(rows.read(slice(None))["user"] <= (100 if args.small else 1000))
months = streams.by_month(Task(rows, name="MovieLens 100k"), "time", 800 if args.small else 8000)
TRAINING = {"rating": {"lr": 0.03, "epochs": 2, "width": 4}, "ranking": {"lr": 0.01, "epochs": 5, "width": 16}}
METHODS = {
    "fine-tuning": lambda _: methods.Finetune(),
    "EWC": lambda of: methods.EWC(0.001) if of == "rating" else methods.EWC(1.0, pull="proximal"),
    "replay": lambda of: methods.Replay(5000, rows=16 if of == "rating" else 64),
    "cumulative replay": lambda _: methods.Cumulative(),
    "full retraining": lambda _: methods.Joint(),
}


def made(of: str, method: str, seed: int) -> Learner:
    """A learner of stars ("rating") or lists ("ranking"); settings were chosen on the first three months, seed 100."""
    lr, epochs, width = TRAINING[of].values()
    settings = {"scenario": "domain", "epochs": epochs, "optimizer": {"name": "adam", "lr": lr}, "batch_size": 256}
    model, unseen = models.ratings(width, dropout=0.3), Unseen() if of == "ranking" else None
    return Learner(model, METHODS[method](of), objective=of, augment=unseen, seed=seed, **settings)


def look(learner: Learner, stream: Stream) -> dict[str, float]:
    """The months before, by the fifth that is never learnt; and the next month's rows, before they are learnt."""
    done, ranking = learner.clock.task, learner.objective.name == "ranking"
    old = fmean(learner.evaluate(stream[: max(1, done - 1)]))
    found = {"old AUC": old} if ranking else {"old RMSE x 1000": 4000 * (1 - old)}
    for after in stream[done : done + 1]:
        known = after.train.select(learner.model.body.users.place(after.train.read(slice(None))["user"]) >= 0)
        for who, part in (("next", after.train), ("next, known people:", known)):
            stars = 0 if ranking else 4000 * (1 - learner.evaluate(Task(part, part)))
            grades = lists.graded(learner, part, learner.augment) if ranking else {"RMSE x 1000": stars}
            found |= {f"{who} {name}": value for name, value in grades.items()}
    return {**found, "multiply-adds (10^6)": learner.cost.multiply_adds / 1e6}


for of, stream in {"rating": months, "ranking": lists.pairs(months, least=4)}.items():
    learners = {name: partial(made, of, name) for name in METHODS}
    results = study(stream, learners, out=Path(args.out, of), seeds=range(args.seeds), look=look, say=print)
    for cell in results.cells:  # of the next month the mean over the months; of the old ones what is true at the end
        cell.looked.update({name: [fmean(seen)] for name, seen in cell.looked.items() if name.startswith("next")})
    print(table(results, [*results.cells[0].looked, "forgetting", "train s", "consolidate s", "memory MB"]))
    picture(results, Path(args.out, f"{of}.svg"))
