"""Which method for your stream: from what you allow, and a short measured trial on pieces of the first task."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from perdure import methods
from perdure.data import Task
from perdure.experiment import rehearse
from perdure.experiment.candidates import Candidate, Needs, Spec, candidates
from perdure.experiment.settings import RequestError
from perdure.experiment.trials import Trial, Tried
from perdure.method import Method
from perdure.streams import Stream

LEAST_FORGETTING = 0.05  # of fine-tuning, for a trial to tell methods apart
CLOSE = 0.05  # of the best: such candidates are tried with every seed
NEAR = 0.01  # of the best, or a standard error: such candidates are taken to be as good

# What is proposed where no trial can tell: as the README's table has it.
RULES = {
    "trained": ("slda",),
    "keep": ("replay",),
    "task": ("ewc",),
    "domain": ("generative-replay", "lwf"),
    "class": ("generative-replay", "lwf"),
}
LATE = "the time for the trial was over"


@dataclass(frozen=True)
class Advice:
    """What is proposed, and why; `str(advice)` says all of it. `method()` makes it, `spec` is its settings."""

    needs: Needs
    label: str
    spec: Spec
    why: list[str]
    tried: list[Tried] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def method(self) -> Method:
        """The proposed method, new."""
        return methods.build(self.spec)

    def __str__(self) -> str:
        lines = [f"take {self.label}: {json.dumps(self.spec)}", "", *self.why]
        if self.tried:
            lines += ["", "tried:"]
            lines += [
                f"  {t.label}: {t}" + (f"; refused: {t.refused}" if t.refused else "")
                for t in sorted(self.tried, key=lambda t: -t.accuracy)
            ]
        if self.left_out:
            lines += ["", "not tried:", *(f"  {label}: {reason}" for label, reason in self.left_out)]
        return "\n".join(lines)


def advise(
    first: Task,
    model: Callable[[], nn.Module],
    needs: Needs,
    *,
    training: Mapping[str, Any] | None = None,
    known: Stream | None = None,
    steps: int = 200,
    rows: int = 6000,
    seeds: Sequence[int] = (0, 1),
    seconds: float = 300.0,
    out: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Advice:
    """A method for the stream that begins with `first`, whose test rows are not read.

    model     makes the network, new each time (with its trained body, where there is one)
    training  the Learner's settings, as for the stream itself
    known     tasks that came so far, to try on instead of pieces of the first: see `pieces.first_three`
    steps, rows, seeds, seconds   of the trial: steps a piece at most, train rows in all, runs, wall time in all
    out       a folder that keeps what was tried: stopped, the same call goes on

    Each candidate learns a stream of three pieces of the first task, those within 5 points of the best with every seed;
    of those that keep within `needs` and are as good as the best but for noise, the cheapest is proposed. A memory is
    as small in the trial as the pieces are. Where plain training forgets nothing of the pieces, or is as good as the
    best but for noise, they cannot tell, and a rule decides; the advice says so. Raises RequestError where no learner
    can be made.
    """
    trial = Trial(first, model, needs, dict(training or {}), steps, rows, time.monotonic() + seconds, say)
    chosen, left_out = candidates(needs, first.train)
    with trial.remembered(out):
        plain, stream, words = _forgetful(trial, chosen[0], seeds, known)
        if plain is None or stream is None:
            return _by_rule(trial, chosen, left_out, words)
        tried = [plain]
        for candidate in chosen[1:]:
            found = _attempt(trial, candidate, stream, seeds[:1], left_out)
            tried += [found] if found else []
        best = max((found.accuracy for found in tried if not found.refused), default=1.0)
        for place, found in enumerate(tried):
            if place and not found.refused and found.accuracy >= best - CLOSE and len(seeds) > 1:
                again = _attempt(trial, trial.candidates[found.label], stream, seeds, [])
                tried[place] = again or found
    asked = sum(len(task.test or ()) for task in stream)
    _, near, noise = _near(tried, asked)
    told = len(near) == 1 and all(reason != LATE for _, reason in left_out)
    if plain in near and not told and plain.forgetting >= LEAST_FORGETTING:
        words += f" {100 * noise:.1f} points are noise on {asked} held-out rows: plain training is as good as the best."
        return replace(_by_rule(trial, _left(chosen, tried, left_out), left_out, words), tried=tried)
    return _chosen(needs, tried, left_out, words, asked)


def _left(chosen: Sequence[Candidate], tried: Sequence[Tried], left_out: Sequence[tuple[str, str]]) -> list[Candidate]:
    """Those that nothing speaks against: neither a limit, nor that they cannot learn; that time was over does not."""
    gone = {label for label, reason in left_out if reason != LATE}.union(
        found.label for found in tried if found.refused
    )
    return [candidate for candidate in chosen if candidate.label not in gone]


def _attempt(
    trial: Trial, candidate: Candidate, stream: Stream, seeds: Sequence[int], left_out: list[tuple[str, str]]
) -> Tried | None:
    """What a candidate reaches; None, and why, where it can't be tried."""
    if trial.late:
        left_out.append((candidate.label, LATE))
        return None
    try:
        return trial.of(candidate, stream, seeds)
    except FloatingPointError:
        left_out.append((candidate.label, "it diverged in the trial"))
    except (ValueError, TypeError) as error:
        left_out.append((candidate.label, str(error)))
    return None


def _forgetful(
    trial: Trial, finetune: Candidate, seeds: Sequence[int], known: Stream | None
) -> tuple[Tried, Stream, str] | tuple[None, None, str]:
    """Plain training on the first stream for trials on which it forgets, that stream, and words on it."""
    seen = []
    try:
        pieces = rehearse.streams(trial.first, trial.needs.scenario, trial.model(), trial.rows)
        for stream in pieces if known is None else [known]:
            found = trial.of(finetune, stream, seeds)
            lost = f"{100 * found.forgetting:.1f} points"
            if known is not None or found.forgetting >= LEAST_FORGETTING:
                seen.append(f"Tried on: {stream.description} Plain training forgets {lost} there.")
                return found, stream, " ".join(seen)
            seen.append(f"Not on: {stream.description} Plain training forgets only {lost} there.")
    except RequestError as error:
        seen.append(f"No trial: {error}.")
    return None, None, " ".join(seen)


def _by_rule(trial: Trial, chosen: Sequence[Candidate], left_out: list[tuple[str, str]], words: str) -> Advice:
    """The rule's first method that learns a step of the first task; the others are left out, and why."""
    needs = trial.needs
    rules = [RULES["trained"]] if needs.trained else []
    rules += [RULES["keep"]] if needs.keep else []
    order = [label for rule in [*rules, RULES[needs.scenario], ("finetune",)] for label in rule]
    known = {candidate.label: candidate for candidate in chosen}
    unfit = dict[str, str]()
    for label in (label for label in order if label in known):
        unfit[label] = trial.unfit(known[label])
        if not unfit[label]:
            break
    else:
        raise RequestError(f"the first task cannot be learnt, not even by plain training: {unfit['finetune']}")
    left_out += [(name, reason) for name, reason in unfit.items() if reason]
    why = [
        words,
        "So this is a rule and no measurement: what serves most streams of this kind. One task alone often shows no "
        "forgetting: ask again when three are there (--on first-three, or --data with three tables).",
    ]
    return Advice(needs, label, known[label].spec, why, [], left_out)


def _near(tried: Sequence[Tried], rows: int) -> tuple[list[Tried], list[Tried], float]:
    """Those that keep within the limits, those of them that are as good as the best but for noise, and the noise."""
    within = [found for found in tried if not found.refused]
    if not within:
        raise RequestError("no method keeps within these limits, not even plain training; allow more time")
    best = max(within, key=lambda found: found.accuracy).accuracy
    noise = max(NEAR, (best * (1 - best) / rows) ** 0.5)  # one standard error of a share
    return within, [found for found in within if found.accuracy >= best - noise], noise


def _chosen(needs: Needs, tried: Sequence[Tried], left_out: list[tuple[str, str]], words: str, rows: int) -> Advice:
    within, near, noise = _near(tried, rows)
    best = max(within, key=lambda found: found.accuracy)
    taken = min(near, key=lambda found: (found.work, found.memory))
    plain = next(found for found in tried if found.label == "finetune")
    why = [words, f"{taken.label} reached {taken}."]
    if taken is not best:
        others = ", ".join(found.label for found in near if found is not taken)
        why.append(
            f"On {rows} held-out rows {100 * noise:.1f} points are noise, and within that of the best are, too: "
            f"{others}. It is the cheapest of these."
        )
    if plain.forgetting < LEAST_FORGETTING:
        why.append("Little is forgotten so far, so methods differ little: ask again when more tasks are there.")
    elif taken.accuracy - plain.accuracy < LEAST_FORGETTING:
        why.append(
            f"That is hardly more than plain training's {100 * plain.accuracy:.1f} %: under these limits no "
            "method that was tried keeps what was learnt. Keeping rows, telling the task, "
            "or a trained body would change that."
        )
    if "pieces by their looks" in words or "in another order" in words:
        why.append(
            "Pieces of one task are not the stream to come: ask again when three are there (--on first-three, "
            "or --data with three tables)."
        )
    return Advice(needs, taken.label, taken.spec, why, list(tried), left_out)
