"""An exam on disk: rows as the user gave them, and their marks; and who answered which of them rightly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from perdure import checkpoint
from perdure.data import Rows
from perdure.recipes.tables import pick
from perdure.store.exams import thinned

if TYPE_CHECKING:
    import pyarrow

    from perdure.learner import Learner
    from perdure.recipes.recipe import Recipe

KIND = "exam"
Said = npt.NDArray[np.str_]


@dataclass(frozen=True)
class Exam:
    """Rows that are asked and never learnt: a table of the user's columns, and each row's mark."""

    name: str
    table: pyarrow.Table
    marks: list[int]

    def __len__(self) -> int:
        return len(self.marks)

    def select(self, rows: Sequence[int]) -> Exam:
        """Some of its rows."""
        return Exam(self.name, pick(self.table, rows), [self.marks[row] for row in rows])

    def write(self, path: Path) -> None:
        """As one hashed file: the table as Parquet inside."""
        import pyarrow.parquet

        buffer = BytesIO()
        pyarrow.parquet.write_table(self.table, buffer)
        content = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        marks = torch.from_numpy(np.array(self.marks, dtype=np.uint64).view(np.int64))
        checkpoint.write(path, {"name": self.name, "table": content, "marks": marks}, KIND)

    @staticmethod
    def read(path: Path) -> Exam:
        """What `write` wrote. Raises CheckpointError for a file that is damaged or foreign."""
        import pyarrow.parquet

        tree = checkpoint.read(path, KIND)
        table = pyarrow.parquet.read_table(BytesIO(tree["table"].numpy().tobytes()))
        return Exam(tree["name"], table, tree["marks"].numpy().view(np.uint64).tolist())


def sit(exams: Sequence[Exam], learner: Learner, recipe: Recipe) -> dict[str, Said]:
    """The label that is given to each row of each exam, as text, [rows] each."""
    said = {exam.name: answers(learner, recipe, exam.table) if len(exam) else [] for exam in exams}
    return {name: texts(labels) for name, labels in said.items()}


def truth(exam: Exam, recipe: Recipe) -> Said:
    """The labels of an exam's rows, as text."""
    return texts(recipe.labels(exam.table) if len(exam) else [])


def texts(labels: Sequence[int | str]) -> Said:
    """Labels as an array of text."""
    return np.array([str(label) for label in labels], dtype=np.str_)


def answers(learner: Learner, recipe: Recipe, table: pyarrow.Table) -> list[Any]:
    """The label that the learner gives each row."""
    return given(learner, recipe.rows(table, labelled=False))


def given(learner: Learner, rows: Rows) -> list[Any]:
    """The label that the learner gives each row, as the network takes them."""
    said = learner.predict(rows)
    return said.tolist() if isinstance(said, Tensor) else said


def kept(exams: Sequence[Exam]) -> dict[str, list[int]]:
    """Which rows of each exam are asked, so that all together stay below the cap."""
    return thinned({exam.name: exam.marks for exam in exams})


@dataclass(frozen=True)
class Answers:
    """Which rows of which exams were asked, and what was said: what a version leaves behind."""

    rows: dict[str, list[int]]
    said: dict[str, Said]

    def tree(self) -> dict[str, Any]:
        """For a file: labels by number."""
        everything = np.concatenate([texts([]), *self.said.values()])
        names = sorted(set(everything.tolist()))
        exams = {
            name: {"rows": torch.tensor(rows), "said": torch.from_numpy(np.searchsorted(names, self.said[name]))}
            for name, rows in self.rows.items()
        }
        return {"labels": names, "exams": exams}

    @staticmethod
    def of(tree: Mapping[str, Any]) -> Answers:
        """What `tree` gave."""
        names = texts(tree["labels"])
        return Answers(
            {name: part["rows"].tolist() for name, part in tree["exams"].items()},
            {name: names[part["said"].numpy()] for name, part in tree["exams"].items()},
        )

    def on(self, name: str, rows: Sequence[int]) -> Said | None:
        """Its answers to these rows of an exam; None where it did not sit all of them."""
        places = {row: place for place, row in enumerate(self.rows.get(name, []))}
        if not all(row in places for row in rows):
            return None
        return self.said[name][[places[row] for row in rows]] if len(rows) else texts([])
