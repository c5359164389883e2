"""Numbers and findings in plain words; no sentence claims a difference that lies within the noise."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from markupsafe import Markup

from perdure.report.view import Entry, Estimate, difference_of, told_apart

NOTHING = "–"
SPACE, THIN = "\N{NO-BREAK SPACE}", "\N{NARROW NO-BREAK SPACE}"
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)


def percent(value: float | None) -> str:
    """A share as per cent with one decimal: 0.9261 is "92.6"."""
    return NOTHING if value is None else _signed(f"{100 * value:.1f}")


def estimate(value: Estimate | None) -> str:
    """A mean with its 95 % interval, in per cent: "92.6 ± 0.4"; a single seed has no interval."""
    if value is None:
        return NOTHING
    return percent(value.mean) if value.half is None else f"{percent(value.mean)}{SPACE}±{SPACE}{percent(value.half)}"


def seconds(value: float | None) -> str:
    """Seconds with the digits that matter: "0.13", "4.2", "132"."""
    if value is None:
        return NOTHING
    return "0" if value == 0 else f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 99.95 else whole(value)


def whole(value: float) -> str:
    """A whole number with its thousands apart: "12 665"."""
    return _signed(f"{value:,.0f}".replace(",", THIN))


def size(value: float | None) -> str:
    """Bytes in decimal units: "1.6 MB"."""
    return NOTHING if value is None else _scaled(value, ("B", "kB", "MB", "GB", "TB"))


def count(value: float | None) -> str:
    """A large count: "170 G" is 170 thousand million."""
    return NOTHING if value is None else _scaled(value, ("", "k", "M", "G", "T", "P", "E"))


def duration(started: str, finished: str) -> str:
    """The time between two ISO dates: "1 min 5 s"."""
    total = round((datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds())
    hours, minutes, rest = total // 3600, total // 60 % 60, total % 60
    parts = [(hours, "h"), (minutes, "min"), (rest if not hours else 0, "s")]
    return " ".join(f"{number}{SPACE}{unit}" for number, unit in parts if number) or f"under 1{SPACE}s"


def date(text: str) -> str:
    """An ISO date for people: "22 November 2026"; the names of months don't depend on the machine's language."""
    day = datetime.fromisoformat(text)
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


def setting(value: Any) -> str:
    """One setting as a person would say it: lists and tables without brackets, null as "none"."""
    if isinstance(value, dict) and "name" in value:
        return named(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {setting(inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(setting(inner) for inner in value) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return whole(value) if isinstance(value, int) else str(value)


def named(value: str | dict[str, Any]) -> str:
    """A choice and its settings, nulls left out: {"name": "mlp", "hidden": [400, 400]} is "mlp, hidden 400, 400"."""
    if isinstance(value, str):
        return value
    known = {name: inner for name, inner in value.items() if name not in ("name", "settings")} | value.get(
        "settings", {}
    )
    parts = [f"{name} {setting(inner)}" for name, inner in known.items() if inner is not None]
    return ", ".join([str(value["name"]), *parts] if "name" in value else parts)


def short_number(value: float | None) -> str:
    """A number for the ticks of an axis, without needless zeros."""
    return NOTHING if value is None else f"{value:g}" if value < 1000 else whole(value)


def protocol(tasks: int, methods: int, seeds: int) -> str:
    """The experiment in one sentence."""
    runs = "once" if seeds == 1 else f"with {seeds} seeds"
    return (
        f"{methods} {'method learns' if methods == 1 else 'methods learn'} "
        f"{'one task' if tasks == 1 else f'the {tasks} tasks one after another'}, {runs}, "
        "and after each task every known task is examined on rows it never trained on."
    )


def bold_means(seeds: int) -> str:
    """What bold stands for in the table."""
    if seeds == 1:
        return "Bold: the best number of one seed, which says nothing about luck."
    return "Bold: the best that does not see all, and those that these seeds can’t tell from it."


def findings(entries: Sequence[Entry]) -> list[Markup]:
    """A sentence each on what kept most, what forgot most, and how far the upper bound is."""
    rivals = [entry for entry in entries if not entry.upper_bound]
    sentences = [_kept_most(rivals), _forgot_most(rivals), _below_the_bound(entries)]
    return [sentence for sentence in sentences if sentence] or [Markup("No method finished here.")]


def _kept_most(rivals: Sequence[Entry]) -> Markup | None:
    ranked = ranking(rivals, "average_accuracy")
    if not ranked:
        return None
    best, value = ranked[0], estimate(ranked[0].estimate("average_accuracy"))
    ties = [entry for entry in ranked[1:] if not told_apart(best, entry, "average_accuracy")]
    if len(ranked) == 1:
        return Markup("{} keeps {}\N{NO-BREAK SPACE}% average accuracy.").format(_name(best), value)
    if len(best.values("average_accuracy")) == 1:
        return Markup(
            "{} has the highest average accuracy, {}\N{NO-BREAK SPACE}%; one seed can’t tell skill from luck."
        ).format(_name(best), value)
    if not ties:
        gap = estimate(difference_of(best, ranked[1], "average_accuracy"))
        return Markup("{} kept most: {}\N{NO-BREAK SPACE}% average accuracy, {} points above {}.").format(
            _name(best), value, gap, _name(ranked[1])
        )
    return Markup(
        "{} has the highest average accuracy, {}\N{NO-BREAK SPACE}%, but these seeds can’t tell it from {}."
    ).format(_name(best), value, _listing(ties))


def _forgot_most(rivals: Sequence[Entry]) -> Markup | None:
    ranked = ranking(rivals, "forgetting")[::-1]
    if len(ranked) < 2:
        return None
    worst, value = ranked[0], estimate(ranked[0].estimate("forgetting"))
    ties = [entry for entry in ranked[1:] if not told_apart(worst, entry, "forgetting")]
    if (worst.mean("forgetting") or 0.0) <= 0:
        return None
    if len(worst.values("forgetting")) == 1:
        return Markup("{} shows the most forgetting, {} points.").format(_name(worst), value)
    if not ties:
        return Markup("{} forgot most: {} points.").format(_name(worst), value)
    if len(ties) + 1 == len(ranked):
        return Markup("No method can be said to forget more than another.")
    return Markup("{} forgot most, and these seeds can’t tell them apart.").format(_listing([worst, *ties]))


def _below_the_bound(entries: Sequence[Entry]) -> Markup | None:
    rivals = ranking([entry for entry in entries if not entry.upper_bound], "average_accuracy")
    bounds = ranking([entry for entry in entries if entry.upper_bound], "average_accuracy")
    gap = difference_of(bounds[0], rivals[0], "average_accuracy") if rivals and bounds else None
    if gap is None:
        return None
    best, bound = _name(rivals[0]), _name(bounds[0])
    if gap.half is not None and not told_apart(bounds[0], rivals[0], "average_accuracy"):
        return Markup("{} can’t be told from the upper bound, {}, which sees all tasks at once.").format(best, bound)
    side = "below" if gap.mean >= 0 else "above"
    distance = estimate(Estimate(abs(gap.mean), gap.half, gap.count))
    return Markup("{} ends {} points {} the upper bound, {}, which sees all tasks at once.").format(
        best, distance, side, bound
    )


def ranking(entries: Sequence[Entry], metric: str) -> list[Entry]:
    """Entries that have the metric, best first; forgetting is better when low."""
    sign = 1 if metric == "forgetting" else -1
    scored = [(value.mean, entry) for entry in entries if (value := entry.estimate(metric)) is not None]
    return [entry for _, entry in sorted(scored, key=lambda pair: sign * pair[0])]


def leaders(entries: Sequence[Entry], metric: str) -> set[str]:
    """Methods to print in bold.

    The best that is no upper bound and, with several seeds, all it can't be told from; none where all are alike.
    """
    ranked = ranking([entry for entry in entries if not entry.upper_bound], metric)
    if len(ranked) < 2:
        return set()
    several = len(ranked[0].values(metric)) > 1
    ties = [entry.method for entry in ranked[1:] if several and not told_apart(ranked[0], entry, metric)]
    return set() if len(ties) + 1 == len(ranked) else {ranked[0].method, *ties}


def _name(entry: Entry) -> Markup:
    return Markup("<strong>{}</strong>").format(entry.title)


def _listing(entries: Sequence[Entry]) -> Markup:
    names = [_name(entry) for entry in entries]
    return names[0] if len(names) == 1 else Markup(" and ").join([Markup(", ").join(names[:-1]), names[-1]])


def _scaled(value: float, units: Sequence[str]) -> str:
    power = 0
    while value >= 999.5 and power + 1 < len(units):
        value, power = value / 1000, power + 1
    digits = f"{value:.0f}" if value >= 99.95 else f"{value:.1f}".removesuffix(".0")
    return f"{digits}{SPACE}{units[power]}".strip()


def _signed(text: str) -> str:
    text = "0.0" if text == "-0.0" else text
    return text.replace("-", "−")
