"""Drift: whether new inputs differ from what the model learnt, without labels.

A file is a batch, so the test is a two-sample one, Kolmogorov and Smirnov's (SciPy's `ks_2samp`), on every input and on
features, with a correction for their number (Holm's): the scheme of Rabanser, Guennemann and Lipton (2019, "Failing
loudly"). A detector of streams (ADWIN, KSWIN) would depend on the order of the file's rows and see means or a window.

Three things would raise false alarms, and are avoided:
- A model is surer of rows that it learnt than of fresh ones of the same kind, and exams may be no reference. After
  2 233 reviews of IMDB the entropy of its answers raised an alarm for 20 of 20 samples of fresh reviews, and so did
  its features. The features here are those of the network as it was before it learnt anything (0 of 20): random for a
  built-in one, those of its pretraining for the user's own.
- A memory holds as many rows of a rare label as of a common one. The reference is therefore drawn again, in the mix of
  labels and updates that comes nearest to the new rows (their means, by non-negative least squares): another mix of
  what is known is no drift.
- With many rows every difference is significant. A gap of less than 5 points between distributions is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from perdure.answers import CHUNK, convert
from perdure.data import Rows
from perdure.memory import Memory
from perdure.method import Compose
from perdure.models import evaluating
from perdure.store.folder import StoreError

if TYPE_CHECKING:
    import pyarrow

    from perdure.recipes.recipe import Recipe
    from perdure.store.store import Store
    from perdure.store.update import Answerer

LEVEL, GAP, SMALLEST = 0.01, 0.05, 1e-9
MOST, LEAST = 2000, 30  # rows compared on each side; rows of a label and update that count as a part of their own
FEATURE, FEATURES = "feature ", 32
Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Moved:
    """An input or feature whose distribution is another one: the gap between both, and the middle half of each."""

    name: str
    gap: float
    p: float
    learnt: tuple[float, float]
    new: tuple[float, float]

    def __str__(self) -> str:
        before, after = (f"{low:.3g} to {high:.3g}" for low, high in (self.learnt, self.new))
        sure = f"p = {self.p:.1g}" if self.p >= SMALLEST else f"p < {SMALLEST:g}"
        return (
            f"{self.name} moved: its middle half was {before} and is {after} "
            f"(largest gap between the distributions {100 * self.gap:.0f} points, {sure})"
        )


@dataclass(frozen=True)
class Drift:
    """What was found: `moved`, largest gap first, is empty where there is no drift."""

    rows: int
    reference: int
    compared: int
    moved: list[Moved]

    @property
    def sentences(self) -> list[str]:
        """The finding in words."""
        those = f"{self.rows} new rows against {self.reference} learnt ones"
        if not self.moved:
            few = "; so few rows show nothing but a large shift" if min(self.rows, self.reference) < 100 else ""
            return [f"no drift in {self.compared} inputs and features of {those}{few}"]
        found = [f"drift in {len(self.moved)} of {self.compared} inputs and features of {those}"]
        found += [str(moved) for moved in self.moved if not moved.name.startswith(FEATURE)]
        features = [moved for moved in self.moved if moved.name.startswith(FEATURE)]
        if features:
            most = 100 * features[0].gap
            found.append(f"{len(features)} of the features, which mix all inputs, moved by up to {most:.0f} points")
        return found


def check(store: Store, table: pyarrow.Table) -> Drift:
    """Whether the rows differ from those that the version in production learnt.

    Raises StoreError where that cannot be judged: the method stores no rows, or these rows cannot be read.
    """
    return compared(store, store.answerer(), table)


def compared(store: Store, answerer: Answerer, table: pyarrow.Table) -> Drift:
    """See `check`; for a version that is loaded already."""
    kept = _kept(answerer)
    try:
        answerer.recipe.check(table, labelled=False)
        fresh = answerer.recipe.rows(table.take(_spread(table.num_rows)), labelled=False)
    except ValueError as error:
        raise StoreError(f"these rows cannot be compared: {error}") from error
    network = _untaught(store, answerer.recipe)
    known, new = kept["x"], fresh.read(slice(0, len(fresh)))
    names, before = _statistics(answerer.recipe, network, known)
    after = _statistics(answerer.recipe, network, new)[1]
    reference = before[_alike(before, after, kept["y"].numpy(), kept["task"].numpy())]
    return Drift(len(after), len(reference), len(names), _moved(names, reference, after))


def _kept(answerer: Answerer) -> dict[str, Any]:
    """Rows that were learnt, as many of each label as the method's memory keeps: columns x, y and task."""
    method = answerer.learner.method
    for part in method.parts if isinstance(method, Compose) else [method]:
        store = getattr(part, "store", None)
        if isinstance(store, Memory) and len(store):
            return store.all()
    raise StoreError(
        f"drift cannot be judged: the method {method.name} keeps no rows of the past that stand for all, "
        "and exams are no reference; take a method with a memory, such as derpp"
    )


def _untaught(store: Store, recipe: Recipe) -> torch.nn.Module | None:
    """The network as it was before it learnt anything; None where it does not show its features."""
    own = store.own_network()
    network = recipe.network() if own is None else own
    return network if hasattr(network, "features") else None


def _spread(rows: int) -> list[int]:
    """So many rows at most, evenly spread."""
    return [int(row) for row in np.unique(np.linspace(0, rows - 1, min(rows, MOST)).astype(int))]


# ---- numbers about rows ----


def _statistics(recipe: Recipe, network: torch.nn.Module | None, x: Any) -> tuple[list[str], Numbers]:
    """Names, and a number of each for every row [n, names]: inputs first, then features."""
    columns = _inputs(recipe, x)
    names, values = list(columns), list(columns.values())
    if network is not None:
        features = _features(network, Rows(x))
        names += [f"{FEATURE}{number + 1}" for number in range(features.shape[1])]
        values += list(features.T)
    return names, np.stack(values, 1)


def _inputs(recipe: Recipe, x: Any) -> dict[str, Numbers]:
    if isinstance(x, dict):
        parts = [_inputs_of(_names(recipe, name, column), column) for name, column in x.items()]
        return _scaled(recipe, {name: values for part in parts for name, values in part.items()})
    return _inputs_of(_names(recipe, "x", x), x)


def _inputs_of(names: list[str], x: torch.Tensor) -> dict[str, Numbers]:
    if x.dim() == 4:
        flat = x.flatten(1).double()
        return {"brightness": flat.mean(1).numpy(), "contrast": flat.std(1).numpy()}
    if not names:  # hashed words, which have no order
        return {"length in words": (x != 0).sum(1).double().numpy()}
    return dict(zip(names, x.double().numpy().T, strict=True))


def _names(recipe: Recipe, column: str, x: torch.Tensor) -> list[str]:
    """What the numbers of a row are called."""
    if column == "numbers":
        scales = list(recipe.scales)  # type: ignore[attr-defined]
        return [*scales, *(f"missing {name}" for name in scales)]
    if column == "categories":
        return [f"category {name}" for name in recipe.known]  # type: ignore[attr-defined]
    return list(recipe.columns) if hasattr(recipe, "columns") and x.dim() == 2 else []


def _scaled(recipe: Recipe, found: dict[str, Numbers]) -> dict[str, Numbers]:
    """Numbers in the user's own units."""
    for name, scale in getattr(recipe, "scales", {}).items():
        if scale:
            found[name] = found[name] * scale[1] + scale[0]
    return found


def _features(network: torch.nn.Module, rows: Rows) -> Numbers:
    """What the head sees, or, of more than 32 numbers, fixed random mixtures of them, [n, at most 32]."""
    with torch.inference_mode(), evaluating(network):
        parts = [
            network.features(convert(rows.read(slice(start, start + CHUNK)), torch.device("cpu")))  # type: ignore[operator]
            for start in range(0, len(rows), CHUNK)
        ]
    found = torch.cat(parts).flatten(1).double()
    if found.shape[1] > FEATURES:
        draws = torch.Generator().manual_seed(0)
        found = found @ torch.randn(found.shape[1], FEATURES, generator=draws, dtype=torch.float64)
    return np.asarray(found.numpy())


# ---- the comparison ----


def _alike(known: Numbers, new: Numbers, labels: Any, updates: Any) -> list[int]:
    """Learnt rows in that mix of labels and updates whose means come nearest to the new rows'."""
    parts = _parts(labels, updates)
    centre, spread = known.mean(0), known.std(0) + 1e-9
    means = np.stack([((known[rows] - centre) / spread).mean(0) for rows in parts], 1)
    wanted = (new.mean(0) - centre) / spread
    firm = 1e3  # how firmly the shares add up to one
    optimize = _scipy("scipy.optimize")
    shares, _ = optimize.nnls(np.vstack([means, np.full(len(parts), firm)]), np.append(wanted, firm))
    shares /= shares.sum()
    order = np.argsort(-shares)
    main = order[: int(np.searchsorted(shares[order].cumsum(), 0.99)) + 1]
    total = min(MOST, *(len(parts[part]) / shares[part] for part in main))
    draws = torch.Generator().manual_seed(0)
    chosen: list[int] = []
    for rows, share in zip(parts, shares, strict=True):
        drawn = torch.randperm(len(rows), generator=draws)[: round(total * share)]
        chosen += rows[drawn.numpy()].tolist()
    return chosen


def _parts(labels: Any, updates: Any) -> list[npt.NDArray[np.int64]]:
    """The numbers of the rows of each label and update; of those that are few, of each label."""
    pairs, number, count = np.unique(np.stack([labels, updates], 1), axis=0, return_inverse=True, return_counts=True)
    pairs[count < LEAST, 1] = -1
    _, place = np.unique(pairs, axis=0, return_inverse=True)
    part = place.reshape(-1)[number.reshape(-1)]
    return [np.flatnonzero(part == one) for one in np.unique(part)]


def _moved(names: list[str], before: Numbers, after: Numbers) -> list[Moved]:
    """What differs: significantly by Holm's procedure over all, and by more than the smallest gap that counts."""
    stats = _scipy("scipy.stats")
    tests = [stats.ks_2samp(before[:, column], after[:, column], method="asymp") for column in range(len(names))]
    found = []
    for rank, column in enumerate(np.argsort([test.pvalue for test in tests], kind="stable")):
        test = tests[column]
        if test.pvalue * (len(names) - rank) >= LEVEL:
            break
        if test.statistic >= GAP:
            middles = [tuple(np.quantile(side[:, column], [0.25, 0.75]).tolist()) for side in (before, after)]
            found.append(Moved(names[column], float(test.statistic), float(test.pvalue), *middles))
    return sorted(found, key=lambda moved: (moved.name.startswith(FEATURE), -moved.gap))


def _scipy(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise StoreError("drift needs scipy: pip install 'perdure[drift]'") from error
