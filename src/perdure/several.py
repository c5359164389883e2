"""Several objectives over one body: one network learns a label, a number and tags of a row at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perdure.data import Batch, Label, Rows
from perdure.objective import OBJECTIVES, FisherKind, Objective, named
from perdure.sources import Array, array, class_names
from perdure.spelling import one_of

KINDS = ("classification", "multi-label", "regression")

Said = str | Sequence[Any]


@dataclass(frozen=True)
class Part:
    """One objective among several: its kind, the labels (or outputs) that its columns stand for, its weight."""

    name: str
    kind: str
    labels: tuple[Label, ...]
    weight: float = 1.0

    @property
    def objective(self) -> Objective:
        """That of its kind."""
        return OBJECTIVES[self.kind]


class Several:
    """Named objectives, each with columns of its own, learnt at once.

    loss = sum over parts of weight x the part's loss, a mean over the rows. A row has a likelihood a part, and they are
    independent: Fisher = sum over parts of weight x the part's Fisher.

    `parts` are, by name, a kind and its width or labels: {"digit": ("classification", 10),
    "odd": ("classification", ["even", "odd"]), "ink": "regression", "tags": ("multi-label", ["old", "new"])}.

    A row's y is [n, width], the parts' columns side by side, those of a classification one-hot; `rows` makes it of
    labels as people have them. A part with NaN in its columns is not labelled in that row: it has no loss, no
    likelihood and no grade there. Every task has all columns. Scenarios "domain", and "task" with a head a task.

    `grade` is the mean of the parts' grades (accuracy, label accuracy, R2), of those with a labelled row; `grades` has
    each. Mind that R2 has no lower bound.
    """

    name: str = "several"
    dense: bool = True
    measure: str = "mean grade"

    def __init__(self, parts: Mapping[str, Said], weights: Mapping[str, float] | None = None) -> None:
        if not parts:
            raise ValueError('several objectives need at least one part: {"digit": ("classification", 10), ...}')
        for name in weights or {}:
            one_of("weights: the part", name, parts)
        self.parts = tuple(_part(name, said, (weights or {}).get(name, 1.0)) for name, said in parts.items())
        ends = torch.tensor([len(part.labels) for part in self.parts]).cumsum(0).tolist()
        self.places = [slice(end - len(part.labels), end) for end, part in zip(ends, self.parts, strict=True)]
        self.width = int(ends[-1])

    def __repr__(self) -> str:
        return f"Several({', '.join(f'{part.name}: {part.kind} {len(part.labels)}' for part in self.parts)})"

    @property
    def recipe(self) -> dict[str, Any]:
        """From which `goal` makes it again, in JSON's words."""
        return {"name": self.name, "parts": [[p.name, p.kind, list(p.labels), p.weight] for p in self.parts]}

    # ---- labels ----

    def rows(self, x: Any, labels: Mapping[str, Any]) -> Rows:
        """Rows whose y is made of the parts' labels, each of n rows; a part that is not named is not labelled.

        classification: labels, None where there is none; multi-label: 0 and 1 [n, k], or a list of labels a row;
        regression: numbers [n] or [n, k]. NaN or None is no label. Raises ValueError for a label that a part hasn't.
        """
        for name in labels:
            one_of("the part", name, [part.name for part in self.parts])
        count = len(next(iter(labels.values())))
        blocks = [
            _encoded(part, labels[part.name]) if part.name in labels else np.full((count, len(part.labels)), np.nan)
            for part in self.parts
        ]
        return Rows(x, np.concatenate(blocks, 1).astype(np.float32), classes=self.columns)

    @property
    def columns(self) -> list[str]:
        """A name for each column of y."""
        return [f"{part.name}={label}" for part in self.parts for label in part.labels]

    def said(self, answers: Tensor) -> dict[str, Any]:
        """Answers [n, width] as each part's own: a list of labels, lists of labels, or values [n, k]."""
        found: dict[str, Any] = {}
        for part, place in zip(self.parts, self.places, strict=True):
            own = answers[:, place]
            if part.kind == "classification":
                found[part.name] = [part.labels[i] for i in own.argmax(1).tolist()]
            elif part.kind == "multi-label":
                rows = (own > 0.5).tolist()
                found[part.name] = [[label for label, on in zip(part.labels, row, strict=True) if on] for row in rows]
            else:
                found[part.name] = own
        return found

    def refuse(self, y: Tensor, task: str) -> None:
        """Raises ValueError where y [n, width] is not what the parts take."""
        if y.shape[1] != self.width:
            raise ValueError(f"task {task!r} has y of {y.shape[1]} columns, but {self!r} has {self.width}")
        for part, place in zip(self.parts, self.places, strict=True):
            own = y[:, place]
            own = own[~own.isnan().any(1)]
            wrong = torch.zeros(len(own), dtype=torch.bool, device=y.device)
            if part.kind != "regression":
                wrong |= ((own != 0) & (own != 1)).any(1)
            if part.kind == "classification":
                wrong |= own.sum(1) != 1
            if bool(wrong.any()):
                wanted = "a single 1 among zeros" if part.kind == "classification" else "zeros and ones"
                raise ValueError(
                    f"task {task!r}: part {part.name!r} takes {wanted}, and {int(wrong.sum())} rows hold something "
                    "else; make y by Several.rows"
                )

    # ---- what a host asks ----

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """The weighted sum of the parts' losses; a part that a row has no label for counts 0 there."""
        losses = [part.weight * part.objective.loss(own, rows) for part, own, rows, _ in self._cut(scores, batch)]
        return torch.stack(losses).sum()

    def distil(self, scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """The weighted sum of the parts' own distances, [n]."""
        return torch.stack([
            part.weight * part.objective.distil(scores[:, place], teacher[:, place], temperature)
            for part, place in zip(self.parts, self.places, strict=True)
        ]).sum(0)  # fmt: skip

    def probes(self, scores: Tensor, batch: Batch, kind: FisherKind, draws: torch.Generator) -> Iterator[Tensor]:
        """The parts' own, times the root of the weight. Exact: one after another, as independent likelihoods add.

        Otherwise one answer of all parts at once, drawn or given.
        """
        if kind == "empirical" and batch.y is None:
            raise ValueError("these rows have no labels, and the empirical Fisher needs them: pass labelled rows")
        joint = scores.new_zeros(len(scores), self.width)
        for place, (part, own, rows, labelled) in zip(self.places, self._cut(scores, batch), strict=True):
            for v in part.objective.probes(own, rows, kind, draws):
                sized = v * (part.weight**0.5 * labelled[:, None])
                if kind == "exact":
                    yield self._home(scores, batch, torch.zeros_like(joint), sized, place)
                else:
                    joint[:, place] = sized
        if kind != "exact":
            yield self._home(scores, batch, joint, joint, slice(None))

    def concerned(self, scores: Tensor, batch: Batch) -> Tensor:
        """The columns of the row's task, whether labelled or not."""
        own = scores.gather(1, self._columns(batch))
        return self._home(scores, batch, own, own, slice(None))

    def sensitivity(self, scores: Tensor, batch: Batch) -> Tensor:
        """Twice the scores that concern a row: an answer is its raw score (Aljundi et al. 2018)."""
        return 2 * self.concerned(scores, batch)

    def answer(self, scores: Tensor, allowed: Tensor | None) -> Tensor:
        """Each part's answers, for every task with a head of its own; 0 in columns that are not allowed."""
        heads = scores.view(-1, self.width)
        parts = [part.objective.answer(heads[:, p], None) for part, p in zip(self.parts, self.places, strict=True)]
        answers = torch.cat(parts, 1).view_as(scores)
        return answers if allowed is None else answers * allowed

    def tally(self, scores: Tensor, batch: Batch) -> Tensor:
        """A part after another: labelled rows, and the part's own tally of them."""
        found: list[Tensor] = []
        for part, own, rows, labelled in self._cut(scores, batch):
            if part.kind == "classification" and rows.columns is not None:
                rows.columns = rows.columns.where(labelled, -1)  # no column: never answered rightly
            found += [labelled.sum(dtype=torch.float64)[None], part.objective.tally(own, rows)]
        return torch.cat(found)

    def grade(self, tally: Tensor, rows: int) -> float:
        """The mean over the parts of their grades. Raises ValueError where no part has a labelled row."""
        known = [value for value in self.grades(tally).values() if value is not None]
        if not known:
            raise ValueError("none of these rows has a label, so there is nothing to grade")
        return fmean(known)

    def grades(self, tally: Tensor) -> dict[str, float | None]:
        """Each part's own grade, by name; None where no row is labelled."""
        sizes = [1 + (3 * len(part.labels) if part.kind == "regression" else 1) for part in self.parts]
        found: dict[str, float | None] = {}
        for part, own in zip(self.parts, torch.split(tally.cpu(), sizes), strict=True):
            labelled = int(own[0])
            found[part.name] = part.objective.grade(own[1:], labelled) if labelled else None
        return found

    # ---- inside ----

    def _columns(self, batch: Batch) -> Tensor:
        columns = batch.columns
        if columns is None or columns.ndim != 2 or columns.shape[1] != self.width:
            found = None if columns is None else list(columns.shape[1:])
            raise ValueError(f"rows of {self!r} have {self.width} columns, and these have {found}")
        return columns

    def _cut(self, scores: Tensor, batch: Batch) -> Iterator[tuple[Part, Tensor, Batch, Tensor]]:
        """Every part with its scores [n, k], its rows as its objective takes them, and which are labelled, [n]."""
        whole = scores.gather(1, self._columns(batch))
        for part, place in zip(self.parts, self.places, strict=True):
            own = whole[:, place]
            labelled = torch.ones(len(own), dtype=torch.bool, device=own.device)
            y, columns = None, torch.arange(own.shape[1], device=own.device).expand_as(own)
            if batch.y is not None:
                y = batch.y[:, place].to(own.dtype)
                labelled = ~y.isnan().any(1)
                y = y.where(labelled[:, None], 0.0)
                columns = columns.where(labelled[:, None], -1)
            weight = labelled.to(own.dtype)
            weight = weight if batch.weight is None else weight * batch.weight
            named = None if y is None else y.argmax(1)
            rows = Batch(
                x=batch.x, y=y, task=batch.task, weight=weight, columns=columns if part.objective.dense else named
            )
            yield part, own, rows, labelled

    def _home(self, scores: Tensor, batch: Batch, whole: Tensor, own: Tensor, place: slice) -> Tensor:
        """`own` in its place among the parts, and these in the columns of the row's task."""
        whole[:, place] = own
        return torch.zeros_like(scores).scatter(1, self._columns(batch), whole.to(scores.dtype))


def goal(said: str | Mapping[str, Any] | Several) -> Objective:
    """The objective that is named, or that a recipe or a Several is. Raises ValueError for any other."""
    if isinstance(said, Several):
        return said
    if isinstance(said, Mapping):
        parts = said.get("parts", [])
        return Several({p[0]: (p[1], p[2]) for p in parts}, weights={p[0]: p[3] for p in parts})
    return named(said)


def recorded(said: str | Mapping[str, Any] | Several) -> str | dict[str, Any]:
    """The same as plain values, from which `goal` makes it again."""
    return said.recipe if isinstance(said, Several) else said if isinstance(said, str) else dict(said)


def _part(name: str, said: Said, weight: float) -> Part:
    kind, labels = (said, 1) if isinstance(said, str) else (said[0], said[1] if len(said) > 1 else 1)
    one_of(f"part {name!r}", kind, KINDS)
    names = class_names(range(labels) if isinstance(labels, int) else labels) if labels else ()
    if not names or (kind == "classification" and len(names) < 2):
        raise ValueError(f"part {name!r} has {len(names)} columns; a classification needs 2 or more, others 1")
    if not weight >= 0:
        raise ValueError(f"the weight of part {name!r} is {weight}; it must be 0 or more")
    return Part(name, kind, names, float(weight))


def _encoded(part: Part, labels: Any) -> Array:
    """Labels as float [n, width], NaN where there are none."""
    width, places = len(part.labels), {label: i for i, label in enumerate(part.labels)}
    if part.kind == "classification":
        return _one_hot(part, labels, places)
    if part.kind == "multi-label" and len(labels) and isinstance(labels[0], (list, tuple, set, type(None))):
        found = np.zeros((len(labels), width))
        for row, said in enumerate(labels):
            for label in said or ():
                found[row, _place(part, label, places)] = 1.0
            if said is None:
                found[row] = np.nan
        return found
    values = np.asarray([np.nan if v is None else v for v in labels] if isinstance(labels, list) else array(labels))
    values = values.astype(np.float64).reshape(len(values), -1)
    if values.shape[1] != width:
        raise ValueError(f"part {part.name!r} has {width} columns, and its labels have {values.shape[1]}")
    return values


def _one_hot(part: Part, labels: Any, places: Mapping[Label, int]) -> Array:
    listed = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    found = np.zeros((len(listed), len(part.labels)))
    for row, label in enumerate(listed):
        if label is None or label != label:
            found[row] = np.nan
        else:
            found[row, _place(part, label, places)] = 1.0
    return found


def _place(part: Part, label: Any, places: Mapping[Label, int]) -> int:
    if label not in places:
        raise ValueError(f"part {part.name!r} has no label {label!r}; its labels are {list(part.labels)}")
    return places[label]
