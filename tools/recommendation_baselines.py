"""What needs no network, on the months of examples/recommendation.py, and paired differences to fine-tuning.

    python tools/recommendation_baselines.py data/movielens100k [runs/recommendation]

Stars: the mean so far, plus a film's mean deviation and a person's, each damped by five ratings (counted over all
months so far). Lists: the ten films with most high ratings so far that the person has not seen.
"""

import itertools
import sys
from pathlib import Path
from statistics import fmean

import torch

from perdure import Rows, Task, datasets, lists, metrics, streams
from perdure.augment import Unseen
from perdure.experiment.results import Results

DAMPING = 5.0
IDS = 2000  # more than there are people or films


def summed(rows: Rows, name: str, values: torch.Tensor) -> torch.Tensor:
    """The sum of the values for each id, [IDS]."""
    return torch.zeros(IDS).index_add_(0, rows.read(slice(None))[name], values)


def stars(months: streams.Stream) -> list[list[float]]:
    """RMSE on each next month: everybody, and people known by then."""
    found, films, people, count = [], torch.zeros(2, IDS), torch.zeros(2, IDS), torch.zeros(2)
    for month, following in itertools.pairwise(months):
        y = torch.tensor(month.train.labels)[:, 0]
        count += torch.stack([y.sum(), torch.tensor(float(len(y)))])
        mean, one = count[0] / count[1], torch.ones(len(y))
        films += torch.stack([summed(month.train, "item", y), summed(month.train, "item", one)])
        people += torch.stack([summed(month.train, "user", y), summed(month.train, "user", one)])
        film, person = ((sums[0] - mean * sums[1]) / (sums[1] + DAMPING) for sums in (films, people))
        x, truth = following.train.read(slice(None)), torch.tensor(following.train.labels)[:, 0]
        said = (mean + film[x["item"]] + person[x["user"]]).clamp(1, 5)
        groups = (truth > 0, people[1][x["user"]] > 0)
        found.append([metrics.rmse(said[who].tolist(), truth[who].tolist()) for who in groups])
    return found


def popular(months: streams.Stream) -> list[list[float]]:
    """recall@10 and NDCG@10 on each next month: everybody, and people known by then."""
    found, seen, count = [], Unseen(), torch.zeros(IDS)
    for month, following in itertools.pairwise(months):
        seen.add(month.train.read(slice(None)))
        count += summed(month.train, "item", torch.ones(len(month.train)))
        best, wanted, grades = count.argsort(descending=True, stable=True).tolist(), Unseen(), []
        wanted.add(following.train.read(slice(None)))
        for user in wanted.users:
            hidden, relevant = set(seen.items(user)), wanted.items(user)
            ranked = [film for film in best[: 10 + len(hidden)] if film not in hidden]
            both = [metric(ranked, relevant) for metric in (metrics.recall_at, metrics.ndcg_at)]
            grades.append((bool(hidden), *both))
        known = [grade for grade in grades if grade[0]]
        found.append([fmean(grade[place] for grade in group) for group in (grades, known) for place in (1, 2)])
    return found


def differences(results: Results) -> None:
    """Each method less fine-tuning, with the same seeds: mean and half width of the 95 % interval."""
    seen = {(cell.method, cell.seed): cell.looked or {} for cell in results.cells}
    for method in dict.fromkeys(name for name, _ in seen if name != "fine-tuning"):
        for name in (name for name in results.cells[0].looked or {} if "multiply" not in name):
            sides = [
                [
                    fmean(looked[name]) if name.startswith("next") else looked[name][-1]
                    for (m, _), looked in seen.items()
                    if m == side
                ]
                for side in (method, "fine-tuning")
            ]
            mean, half = metrics.difference(sides[0], sides[1], paired=True)
            print(f"{method}, {name}: {mean:+.4f} ± {half:.4f}")


months = streams.by_month(Task(datasets.movielens100k(sys.argv[1]).train, name="MovieLens 100k"), "time", 8000)
for title, table in (
    ("RMSE, known people", stars(months)),
    ("recall, NDCG, known people's", popular(lists.pairs(months, 4))),
):
    print(f"{title}: {', '.join(f'{fmean(column):.4f}' for column in zip(*table, strict=True))}")
for folder in sorted(Path(sys.argv[2]).iterdir()) if len(sys.argv) > 2 else ():
    if folder.is_dir():
        differences(Results.read(folder))
