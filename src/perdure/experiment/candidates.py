"""Which methods are worth a trial under somebody's constraints, with which settings, and why the others are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from perdure import methods
from perdure.data import Rows

CAPACITY = 2000  # rows, where nobody says how many bytes
ROW_OVERHEAD = 16  # bytes of a stored row beside its input: its label and its task
SCORES = 128  # bytes of a stored row's scores: of 32 labels

Spec = dict[str, Any]


@dataclass(frozen=True)
class Needs:
    """What a stream's owner allows.

    scenario  "task" (which task a row is of is told), "domain" (the same labels, other inputs) or "class" (new labels)
    keep      whether rows of the past may be stored
    memory    bytes that a method may keep beside the model; None for no limit
    seconds   for the first task, to learn and consolidate; None for no limit
    trained   whether the network's body was trained before, on much data
    """

    scenario: str
    keep: bool = True
    memory: int | None = None
    seconds: float | None = None
    trained: bool = False

    def capacity(self, rows: Rows, more: int = 0) -> int:
        """How many rows a memory may hold that takes `more` bytes a row beside the row itself."""
        if self.memory is None:
            return CAPACITY
        return max(1, int(self.memory // (rows.bytes / len(rows) + ROW_OVERHEAD + more)))


@dataclass(frozen=True)
class Candidate:
    """A method to try: its label, its settings (`methods.build`), and how many rows its memory holds, if it has one."""

    label: str
    spec: Spec
    capacity: int = 0

    def bytes(self, rows: Rows) -> int:
        """What its memory for rows may take."""
        return round(self.capacity * (rows.bytes / len(rows) + ROW_OVERHEAD))

    def scaled(self, share: float) -> Spec:
        """The settings for a trial on a share of the rows: a memory as small in proportion."""
        return _with_capacity(self.spec, max(10, round(self.capacity * share))) if self.capacity else self.spec


def candidates(needs: Needs, rows: Rows) -> tuple[list[Candidate], list[tuple[str, str]]]:
    """What is to be tried, fine-tuning first, and (label, reason) of what the constraints leave out."""
    tried, left_out = [Candidate("finetune", {"name": "finetune"})], list[tuple[str, str]]()
    for candidate in _all(needs.capacity(rows), needs.capacity(rows, SCORES)):
        reason = _reason(candidate, needs, rows)
        if reason is None:
            tried.append(candidate)
        else:
            left_out.append((candidate.label, reason))
    return tried, left_out


def _all(capacity: int, scored: int) -> list[Candidate]:
    kept = {"capacity": capacity}
    with_lwf = {"parts": [{"name": "replay", **kept}, {"name": "lwf"}]}
    return [
        Candidate("replay", {"name": "replay", **kept}, capacity),
        Candidate("replay, balanced", {"name": "replay", **kept, "policy": "balanced"}, capacity),
        Candidate("replay + lwf", with_lwf, capacity),
        Candidate("er-ace", {"name": "er-ace", **kept}, capacity),
        Candidate("derpp", {"name": "derpp", "capacity": scored}, scored),
        Candidate("icarl", {"name": "icarl", "capacity": scored}, scored),
        Candidate("cumulative", {"name": "cumulative"}),
        Candidate("ewc", {"name": "ewc"}),
        Candidate("ewc, 10 times as strong", {"name": "ewc", "strength": 10 * methods.EWC().strength}),
        Candidate("mas", {"name": "mas"}),
        Candidate("si", {"name": "si"}),
        Candidate("lwf", {"name": "lwf"}),
        Candidate("packnet", {"name": "packnet"}),
        Candidate("generative-replay", {"name": "generative-replay"}),
        Candidate("slda", {"name": "slda"}),
        Candidate("ranpac", {"name": "ranpac"}),
        Candidate("ncm", {"name": "ncm"}),
    ]


def _reason(candidate: Candidate, needs: Needs, rows: Rows) -> str | None:
    """Why a candidate is not tried, or None."""
    method = methods.build(candidate.spec)
    parts = method.parts if isinstance(method, methods.Compose) else [method]
    keeps = any(part.keeps_rows for part in parts)
    if needs.scenario not in method.scenarios:
        return f"it works in scenario {', '.join(method.scenarios)}"
    if "classification" not in method.objectives and not rows.dense:
        return "it does not classify"
    if keeps and not needs.keep:
        return "it keeps rows of the past, which may not be kept"
    if keeps and not candidate.capacity and needs.memory is not None:
        return "it keeps every row, so that no limit of memory holds for long"
    least = 100 * (rows.bytes / len(rows) + ROW_OVERHEAD)
    if keeps and needs.memory is not None and needs.memory < least:
        return f"the memory would hold fewer than 100 rows: {needs.memory} bytes, and these take {least:.0f}"
    if not method.takes_steps and not needs.trained:
        return "it trains no body, and none that is trained was brought"
    if candidate.label == "generative-replay" and not isinstance(rows.read(slice(0, 1)), Tensor):
        return "it makes rows of one tensor, and these have named columns"
    return None


def _with_capacity(spec: Spec, capacity: int) -> Spec:
    if "parts" in spec:
        return {"parts": [_with_capacity(part, capacity) for part in spec["parts"]]}
    return {**spec, "capacity": capacity} if "capacity" in spec else spec
