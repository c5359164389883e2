"""A version: what answers, how its rows are read, what it was examined with, and the card that says how it came."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from perdure import checkpoint, recipes, sealed
from perdure.checkpoint import CheckpointError
from perdure.learner import Learner
from perdure.recipes.recipe import Recipe
from perdure.store.drawn import Drawn
from perdure.store.exam import Answers, Exam
from perdure.store.folder import Folder

LEARNER, RECIPE, ANSWERS, CARD = "learner.perdure", "recipe.perdure", "answers.perdure", "card.json"
OWN_EXAM, DRAWN = "exam.perdure", "drawn.perdure"


@dataclass(frozen=True)
class Version:
    """A version on disk. Reading any part of it checks the part's hash against the card, and the card's own."""

    folder: Path
    number: int
    card: dict[str, Any]

    @staticmethod
    def open(folder: Folder, number: int) -> Version:
        """Raises CheckpointError for a version that is missing, or of which anything was changed."""
        path = folder.version(number)
        if not path.is_dir():
            known = ", ".join(map(str, folder.versions())) or "none"
            raise CheckpointError(f"there is no version {number}; there are {known}")
        card = sealed.read(path / CARD)
        if card.get("version") != number:
            raise CheckpointError(f"{path} holds the card of version {card.get('version')}; use an earlier copy")
        return Version(path, number, card)

    def learner(self, model: nn.Module | None = None) -> Learner:
        """What answers; `model` is the user's own network as it was before its first task, where the store has one."""
        try:
            return Learner.load(self._checked(LEARNER), model=model)
        except CheckpointError:
            raise
        except ValueError as error:
            words = "" if model is None else "; --build must make the network that the store was begun with"
            raise CheckpointError(f"{error}{words}") from error

    def recipe(self) -> Recipe:
        """How rows are read."""
        tree = checkpoint.read(self._checked(RECIPE), "recipe")
        recipe = recipes.build(tree["settings"])
        recipe.load_state(tree["state"])
        return recipe

    def exams(self) -> list[Exam]:
        """The exams that came with it: its own, and those that the user brought."""
        return [Exam.read(self._checked(name)) for name in self.card["files"] if name.startswith("exam")]

    def drawn(self) -> Drawn | None:
        """The statistics of the rows that it learnt, where none may be kept."""
        if DRAWN not in self.card["files"]:
            return None
        return Drawn.read(checkpoint.read(self._checked(DRAWN), "drawn"))

    def answers(self) -> Answers:
        """Its answers to all exams when it was made."""
        return Answers.of(checkpoint.read(self._checked(ANSWERS), "answers"))

    def own_grade(self) -> tuple[int, int] | None:
        """How many rows of its own exam it answered rightly, of how many; the card knows when the rows are gone."""
        for exam in self.card["exams"]:
            if exam["exam"] == f"{self.number:04d}" and exam["rows"]:
                return round(exam["candidate"] * exam["rows"]), exam["rows"]
        return None

    def check(self) -> None:
        """Raises CheckpointError unless every file is the one that was written."""
        for name in self.card["files"]:
            self._checked(name)

    def _checked(self, name: str) -> Path:
        path = self.folder / name
        if sealed.file_digest(path) != self.card["files"].get(name):
            raise CheckpointError(f"{path} is damaged or of another version; roll back, or use an earlier copy")
        return path


def write(
    folder: Folder,
    number: int,
    learner: Learner,
    recipe: Recipe,
    exams: Sequence[Exam],
    drawn: Drawn | None,
    answers: Answers,
    card: Mapping[str, Any],
) -> None:
    """A version whole, or not at all: written beside its place, then renamed."""
    place = folder.version(number)
    half = place.with_name(f".{place.name}.tmp")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    learner.save(half / LEARNER)
    checkpoint.write(half / RECIPE, {"settings": recipe.settings(), "state": recipe.state()}, "recipe")
    for index, exam in enumerate(exams):
        exam.write(half / (OWN_EXAM if index == 0 else f"exam-{index}.perdure"))
    if drawn is not None:
        checkpoint.write(half / DRAWN, drawn.tree(), "drawn")
    checkpoint.write(half / ANSWERS, answers.tree(), "answers")
    files = {found.name: sealed.file_digest(found) for found in sorted(half.iterdir())}
    sealed.write(half / CARD, {**card, "version": number, "files": files})
    os.rename(half, place)
    checkpoint.sync_folder(place.parent)
