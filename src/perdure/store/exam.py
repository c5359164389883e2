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
from perdure.store.exams import thinned

if TYPE_CHECKING:
    import pyarrow

    from perdure.learner import Learner
    from perdure.recipes.recipe import Recipe

KIND = "exam"
Right = npt.NDArray[np.bool_]


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
        return Exam(self.name, self.table.take(rows), [self.marks[row] for row in rows])

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


def sit(exams: Sequence[Exam], learner: Learner, recipe: Recipe) -> dict[str, Right]:
    """Which rows of each exam are answered rightly, bool [rows] each; a label that is not known is answered wrongly."""
    found = {}
    for exam in exams:
        said = answers(learner, recipe, exam.table) if len(exam) else []
        truth = recipe.labels(exam.table) if len(exam) else []
        found[exam.name] = np.array([a == b for a, b in zip(said, truth, strict=True)], dtype=bool)
    return found


def answers(learner: Learner, recipe: Recipe, table: pyarrow.Table) -> list[Any]:
    """The label that the learner gives each row."""
    said = learner.predict(recipe.rows(table, labelled=False))
    return said.tolist() if isinstance(said, Tensor) else said


def kept(exams: Sequence[Exam]) -> dict[str, list[int]]:
    """Which rows of each exam are asked, so that all together stay below the cap."""
    return thinned({exam.name: exam.marks for exam in exams})


@dataclass(frozen=True)
class Answers:
    """Which rows of which exams were asked, and which answered rightly: what a version leaves behind, a byte a row."""

    rows: dict[str, list[int]]
    right: dict[str, Right]

    def tree(self) -> dict[str, Any]:
        """For a file."""
        return {
            name: {"rows": torch.tensor(self.rows[name]), "right": torch.from_numpy(self.right[name])}
            for name in self.rows
        }

    @staticmethod
    def of(tree: Mapping[str, Any]) -> Answers:
        """What `tree` gave."""
        return Answers(
            {name: part["rows"].tolist() for name, part in tree.items()},
            {name: part["right"].numpy() for name, part in tree.items()},
        )

    def on(self, name: str, rows: Sequence[int]) -> Right | None:
        """Its answers to these rows of an exam; None where it did not sit all of them."""
        places = {row: place for place, row in enumerate(self.rows.get(name, []))}
        if not all(row in places for row in rows):
            return None
        return np.asarray(self.right[name][[places[row] for row in rows]]) if len(rows) else np.zeros(0, dtype=bool)
