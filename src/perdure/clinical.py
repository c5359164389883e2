"""What a yes or no is worth to those it is said of: sensitivity, specificity, AUROC and calibration, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perdure import metrics
from perdure.metrics import Numbers, Truths

LEAST = 30  # patients; what fewer say is not judged


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, and the patients that it is of; without a value where these are too few."""

    value: float | None
    low: float | None
    high: float | None
    patients: int

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.patients} patients, not judged"
        between = "" if self.low is None or self.high is None else f" ({self.low:.2f} to {self.high:.2f})"
        return f"{self.value:.2f}{between}"


def diagnosis(
    chances: Numbers,
    sick: Truths,
    *,
    threshold: float = 0.5,
    least: int = LEAST,
    draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Estimate]:
    """How good chances of disease are, one a patient: of those who are sick, and of those who are not.

    sensitivity  share of the sick whose chance is above `threshold`, with its exact interval (Clopper & Pearson 1934)
    specificity  share of the others whose chance is not
    AUROC        `metrics.auroc`, with the percentile interval of `draws` bootstrap samples; patients: the rarer kind
    Brier        `metrics.brier`, likewise, of all patients
    ECE          `metrics.calibration_error` in ten bins, likewise; of few patients it is too large, its interval too

    A group of fewer than `least` patients is counted and not judged.
    """
    chance, truth = np.asarray(chances, dtype=np.float64), np.asarray(sick, dtype=bool)

    def share(right: npt.NDArray[np.bool_]) -> Estimate:
        if len(right) < least:
            return Estimate(None, None, None, len(right))
        return Estimate(
            float(np.mean(right)), *metrics.proportion_interval(int(np.sum(right)), len(right), confidence), len(right)
        )

    def drawn(statistic: Callable[[Numbers, Truths], float | None], patients: int) -> Estimate:
        value = statistic(chance, truth) if patients >= least else None
        if value is None:
            return Estimate(None, None, None, patients)
        low, high = metrics.bootstrap_interval(
            lambda rows: statistic(chance[rows], truth[rows]),
            len(truth), draws=draws, confidence=confidence, seed=seed,
        ) or (None, None)  # fmt: skip
        return Estimate(value, low, high, patients)

    return {
        "sensitivity": share((chance > threshold)[truth]),
        "specificity": share((chance <= threshold)[~truth]),
        "AUROC": drawn(metrics.auroc, int(min(truth.sum(), (~truth).sum()))),
        "Brier": drawn(metrics.brier, len(truth)),
        "ECE": drawn(metrics.calibration_error, len(truth)),
    }


def table(found: Mapping[Sequence[str], Mapping[str, Estimate]], names: Sequence[str]) -> str:
    """Diagnoses as a Markdown table, a line each: under `names` stands what each is of."""
    first = next(iter(found.values()))
    lines = [[*names, *first], ["---"] * (len(names) + len(first))]
    lines += [[*key, *map(str, estimates.values())] for key, estimates in found.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
