"""The gate: whether a candidate may take the place of the version in production. Pure functions of answers.

Candidate and reference answered the same rows, so only rows count on which one was right and the other wrong.
References are the best version that ever sat an exam in production, so that small losses cannot add up unseen, and the
version in production now.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from perdure.spelling import one_of

Right = npt.NDArray[np.bool_]
Said = npt.NDArray[np.str_]

Reference = Literal["best", "incumbent"]
Test = tuple[str, Reference, Right, Right]  # what, against whom, the candidate's answers and the reference's

SMALLEST_EXAM, SMALLEST_CLASS = 100, 30  # rows; what is smaller is judged together
POOLED = "small exams together"
RARE = "rare labels together"
OF_LABELS = ("label ", RARE)
LOST = (
    0.5  # drop of a label on drawn rows that shows that it is lost: a share of them may move by chance of the drawing
)


@dataclass(frozen=True)
class Rules:
    """What a candidate must hold to.

    tolerance     largest drop of accuracy on an exam, a share: 0.02 is two points
    drawn         the same on an exam that was drawn from statistics, where no rows are kept: such rows exaggerate
    level         of all tests together: the chance that a candidate as good as the reference is refused by them
    when_unsure   what becomes of a drop that is too large and may be chance: "promote" (with a warning), or "refuse"
    gain          smallest gain of accuracy on the newest exam over the version in production; None: none asked
    flips         largest share of rows, of all exams, that were answered rightly and no longer are; None: any
    bytes         largest size of the model; None: any
    milliseconds  longest time of an answer; None: any
    """

    tolerance: float = 0.02
    drawn: float = 0.1
    level: float = 0.05
    when_unsure: Literal["promote", "refuse"] = "promote"
    gain: float | None = None
    flips: float | None = None
    bytes: int | None = None
    milliseconds: float | None = None

    def __post_init__(self) -> None:
        one_of("when_unsure", self.when_unsure, ("promote", "refuse"))
        for name in ("tolerance", "drawn", "level", "flips"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it is a share, from 0 to 1 (0.02 is two points)")


@dataclass(frozen=True)
class Sitting:
    """One exam as it was answered: for each row whether the answer was right, [n] each, and the row's label.

    `best` are the answers of the best version that sat it in production, `incumbent` those of the version there now.
    `said_by_incumbent` and `said_by_best`, where they were noted, are the labels that these gave; `known` are those
    that the version in production has learnt, None: all.
    """

    exam: str
    labels: Sequence[str]
    candidate: Right
    incumbent: Right
    best: Right
    said_by_incumbent: Sequence[str] = ()
    said_by_best: Sequence[str] = ()
    known: Collection[str] | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.labels), len(self.candidate), len(self.incumbent), len(self.best)}
        if len(lengths) > 1:
            raise ValueError(f"exam {self.exam!r}: answers of different lengths, {sorted(lengths)}")


def sitting(
    exam: str, labels: Said, candidate: Said, incumbent: Said, best: Said, known: Collection[str] | None = None
) -> Sitting:
    """From the labels that each gave, [n] each."""
    right = (candidate == labels, incumbent == labels, best == labels)
    return Sitting(exam, labels.tolist(), *right, incumbent.tolist(), best.tolist(), known)


@dataclass(frozen=True)
class Finding:
    """What was found on one exam, or one label, against one reference.

    `drop` is reference - candidate, a share; `p` is adjusted for all tests (Holm 1979).
    """

    what: str
    against: Literal["best", "incumbent"]
    rows: int
    accuracy: float
    reference: float
    p: float
    verdict: Literal["kept", "worse", "cannot tell"]
    needed: int | None = None

    @property
    def drop(self) -> float:
        """How much less than the reference."""
        return self.reference - self.accuracy


@dataclass(frozen=True)
class Decision:
    """Whether to promote, and why: `refusals` and `warnings` are sentences."""

    promote: bool
    findings: list[Finding]
    refusals: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def decide(
    sittings: Sequence[Sitting],
    rules: Rules,
    newest: str | None = None,
    size: int = 0,
    milliseconds: float = 0.0,
    drawn: Sequence[Sitting] = (),
) -> Decision:
    """The gate's decision. `newest` names the exam of the new data, where there is one; `drawn` are of no real rows.

    Both kinds of exams are judged by themselves, each at half the level where there are both.
    """
    each = replace(rules, level=rules.level / 2) if drawn else rules
    loose = replace(each, tolerance=max(rules.tolerance, rules.drawn))
    findings = judged(sittings, each) + judged(drawn, loose, labels=max(loose.tolerance, LOST))
    refusals = [sentence(found) for found in findings if found.verdict == "worse"]
    unsure = [sentence(found) for found in findings if found.verdict == "cannot tell"]
    if rules.when_unsure == "refuse":
        refusals += unsure
    refusals += _limits(sittings, rules, newest, size, milliseconds)
    return Decision(not refusals, findings, refusals, [] if rules.when_unsure == "refuse" else unsure)


def judged(sittings: Sequence[Sitting], rules: Rules, labels: float | None = None) -> list[Finding]:
    """Every exam and every label against both references, by one-sided exact McNemar tests with Holm's adjustment.

    A unit is worse where it drops by more than the tolerance and the adjusted p is below the level. Exams of fewer than
    100 rows are judged together, so are labels of fewer than 30, all exams taken together. To a label belong its rows
    and those that the reference took for it: one that gives a label too often has all its rows right, and whoever gives
    it less often would be refused for ever. Rows of labels that are not known yet belong to their own alone.
    `labels` is the tolerance for labels, where it is another one.
    """
    tests: list[Test] = []
    whole = _joined(sittings)
    for against in ("best", "incumbent"):
        if against == "incumbent" and np.array_equal(whole["incumbent"], whole["best"]):
            continue
        tests += [*_by_exam(sittings, against), *_by_label(sittings, whole, against)]
    raw = [mcnemar(reference, candidate) for _, _, candidate, reference in tests]
    findings = []
    for (what, against, candidate, reference), p in zip(tests, holm(raw), strict=True):
        drop = float(reference.mean() - candidate.mean())
        large = drop > (rules.tolerance if labels is None or not what.startswith(OF_LABELS) else labels)
        verdict: Literal["kept", "worse", "cannot tell"] = "kept"
        if large:
            verdict = "worse" if p < rules.level else "cannot tell"
        needed = rows_needed(reference, candidate, rules.level / len(tests)) if verdict == "cannot tell" else None
        accuracies = float(candidate.mean()), float(reference.mean())
        findings.append(Finding(what, against, len(candidate), *accuracies, p, verdict, needed))
    return findings


def mcnemar(reference: Right, candidate: Right) -> float:
    """The one-sided exact test (McNemar 1947): how likely so many losses among the rows that changed are by chance.

    With b rows lost and c gained: P(X >= b), X binomial of b + c tosses of a fair coin; 1 where nothing changed.
    """
    lost, gained = int((reference & ~candidate).sum()), int((~reference & candidate).sum())
    total = lost + gained
    if total == 0:
        return 1.0
    k = np.arange(total + 1)
    steps = np.log(total - k[:-1]) - np.log(k[1:])
    logarithms = np.concatenate([[0.0], np.cumsum(steps)]) - total * math.log(2)
    return float(min(1.0, np.exp(logarithms[lost:]).sum()))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): the smallest times their number, the next times one less, never falling."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    found, least = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(p) - rank) * p[i]))
        found[i] = least
    return found


def rows_needed(reference: Right, candidate: Right, level: float, power: float = 0.8) -> int | None:
    """About how many rows would settle such a drop (normal approximation, Connor 1987); None where there is no drop."""
    n = len(reference)
    lost, gained = (reference & ~candidate).sum() / n, (~reference & candidate).sum() / n
    changed, drop = lost + gained, lost - gained
    if drop <= 0:
        return None
    z = NormalDist().inv_cdf
    wide = z(1 - level) * math.sqrt(changed) + z(power) * math.sqrt(max(0.0, changed - drop**2))
    return max(n, math.ceil(float(wide / drop) ** 2))


def sentence(found: Finding) -> str:
    """`exam 2024-03: 91.0 % where the best version had 95.5 % (1 000 rows, p = 0.0001)`."""
    version = "the best version" if found.against == "best" else "the version in production"
    text = (
        f"{found.what}: {100 * found.accuracy:.1f} % where {version} has {100 * found.reference:.1f} % "
        f"({found.rows} rows, p = {found.p:.2g})"
    )
    if found.verdict == "cannot tell":
        settled = "" if found.needed is None else f"; about {found.needed} rows would settle it"
        text += f": too large a drop, but it may be chance{settled}"
    return text


def _by_exam(sittings: Sequence[Sitting], against: Reference) -> list[Test]:
    """Each exam by itself, the small ones together."""
    large = [s for s in sittings if len(s.labels) >= SMALLEST_EXAM]
    small = [s for s in sittings if 0 < len(s.labels) < SMALLEST_EXAM]
    tests: list[Test] = [(f"exam {s.exam}", against, s.candidate, getattr(s, against)) for s in large]
    if small:
        together = _joined(small)
        tests.append((POOLED, against, together["candidate"], together[against]))
    return tests


def _by_label(sittings: Sequence[Sitting], whole: dict[str, Right], against: Reference) -> list[Test]:
    """Each label over all exams, the rare ones together."""
    labels = np.concatenate([np.asarray(s.labels, dtype=str) for s in sittings] or [np.empty(0, dtype=str)])
    given = [getattr(s, f"said_by_{against}") for s in sittings]
    told = all(len(one) == len(s.labels) for one, s in zip(given, sittings, strict=True))
    said = np.concatenate([np.asarray(one, dtype=str) for one in given]) if told and len(labels) else labels
    names, counts = np.unique(labels, return_counts=True)
    known = next((s.known for s in sittings if s.known is not None), names)
    taken = np.isin(labels, list(known))
    groups = [([names[i]], f"label {names[i]}") for i in np.flatnonzero(counts >= SMALLEST_CLASS)]
    rare = names[counts < SMALLEST_CLASS]
    groups += [(list(rare), RARE)] if len(rare) else []
    tests: list[Test] = []
    for members, what in groups:
        mask = np.isin(labels, members) | (np.isin(said, members) & taken)
        tests.append((what, against, whole["candidate"][mask], whole[against][mask]))
    return tests


def _joined(sittings: Sequence[Sitting]) -> dict[str, Right]:
    """The answers of each to all exams."""
    names = ("candidate", "incumbent", "best")
    return {name: np.concatenate([np.zeros(0, dtype=bool), *(getattr(s, name) for s in sittings)]) for name in names}


def _limits(sittings: Sequence[Sitting], rules: Rules, newest: str | None, size: int, milliseconds: float) -> list[str]:
    refusals = []
    new = [s for s in sittings if s.exam == newest]
    if rules.gain is not None and new:
        found = new[0]
        gain = float(found.candidate.mean() - found.incumbent.mean())
        if gain < rules.gain:
            refusals.append(f"new data: a gain of {100 * gain:.1f} points, and {100 * rules.gain:.1f} are asked for")
    total = sum(len(s.labels) for s in sittings)
    lost = sum(int((s.incumbent & ~s.candidate).sum()) for s in sittings)
    if rules.flips is not None and total and lost / total > rules.flips:
        refusals.append(
            f"{lost} of {total} rows that the version in production answers rightly are wrong now; "
            f"at most {100 * rules.flips:g} % may be"
        )
    if rules.bytes is not None and size > rules.bytes:
        refusals.append(f"the model has {size} bytes, and at most {rules.bytes} are allowed")
    if rules.milliseconds is not None and milliseconds > rules.milliseconds:
        refusals.append(f"an answer takes {milliseconds:.1f} ms, and at most {rules.milliseconds:g} are allowed")
    return refusals
