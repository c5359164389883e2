"""Charts as inline SVG; colours are classes of the page's style sheet, so that one drawing serves light and dark."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from perdure.report.view import Entry, Estimate, floor_of
from perdure.report.words import estimate, percent, whole

LETTER = 6.6  # about the width of a letter in a 12-unit label: enough to keep labels apart, whatever the font
LINE = 14.0
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Line:
    """One line of a chart: (x, y) points, and perhaps a band of (x, low, high) around it."""

    label: str
    style: str
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Dot:
    """One point of a scatter: a cost, an accuracy and half its interval."""

    label: str
    style: str
    x: float
    y: float
    half: float | None


@dataclass(frozen=True)
class Scale:
    """Maps data to drawing units, linear or by powers of ten; a logarithmic scale keeps a place of its own for zero."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value."""
        low, high, start = self.low, self.high, self.start
        if self.logarithmic:
            if value <= 0:
                return start
            start += 0.12 * (self.end - start)
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return start + (value - low) / ((high - low) or 1.0) * (self.end - start)


def shade(index: int, total: int) -> str:
    """The style of task ``index`` of ``total``: ten steps from the first task to the last."""
    return f"t{round(9 * index / max(total - 1, 1))}"


def by_method(
    entries: Sequence[Entry], pick: Callable[[Entry], list[Estimate | None]], tasks: int, title: str
) -> Markup:
    """Accuracy after each task, one line a method with its interval as a band, named at the right end."""
    lines = []
    for entry in entries:
        found = [(x, value) for x, value in enumerate(pick(entry), 1) if value is not None]
        band = [(x, value.mean - value.half, value.mean + value.half) for x, value in found if value.half is not None]
        lines.append(Line(entry.method, entry.style, [(x, value.mean) for x, value in found], band))
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup("")
    ends = "; ".join(f"{line.label} {percent(line.points[-1][1])} % at the end" for line in lines)
    height = max(250.0, 60 + LINE * len(lines))
    plot = (36.0, 12.0, 440 - 14 - LETTER * max(len(_short(line.label)) for line in lines), height - 34)
    floor = floor_of(y for line in lines for _, y in line.points)
    x, y = Scale(1, tasks, plot[0] + 8, plot[2] - 8), Scale(floor, 1, plot[3], plot[1])
    inside = [_axes(plot, y, [(x(n), str(n)) for n in _counted(tasks)], "after task")]
    inside += [_band(line, x, y) for line in lines] + [_path(line, x, y, tasks <= 10) for line in lines]
    inside += _end_labels(lines, plot[2], y)
    return _svg(440, height, title, f"One line a method: {ends}.", inside)


def by_task(entry: Entry, tasks: Sequence[str], floor: float) -> Markup:
    """Accuracy on each task over time for one method; a line begins, with its task's number, where it was learnt."""
    matrix = entry.matrix()
    lines = []
    for task in range(len(tasks)):
        points = [(i + 1.0, row[task]) for i, row in enumerate(matrix) if i >= task and task < len(row)]
        lines.append(Line(str(task + 1), shade(task, len(tasks)), [(x, y) for x, y in points if y is not None]))
    lines = [line for line in lines if line.points]
    plot = (36.0, 16.0, 292.0, 176.0)
    x, y = Scale(1, len(tasks), plot[0] + 10, plot[2] - 8), Scale(floor, 1, plot[3], plot[1])
    inside = [_axes(plot, y, [(x(n), str(n)) for n in _counted(len(tasks))], "after task")]
    inside += [_path(line, x, y, marks=len(tasks) <= 10) for line in lines]
    for line in lines if len(tasks) <= 10 else ():
        inside.append(_text(x(line.points[0][0]), y(line.points[0][1]) - 6, line.label, f"{line.style} name", "middle"))
    ends = "; ".join(
        f"task {line.label} {percent(line.points[0][1])} to {percent(line.points[-1][1])} %" for line in lines
    )
    return _svg(
        300,
        210,
        f"{entry.title}: accuracy on each task over time",
        f"From when it was learnt to the end: {ends}.",
        inside,
    )


def trace(entry: Entry, tasks: Sequence[str]) -> Markup:
    """Accuracy during training, step by step: the dips right after a task begins are the stability gap."""
    traces = entry.trace()
    budget = max(20, 1200 // len(traces))
    lines = [
        Line(str(task + 1), shade(task, len(tasks)), _thinned(list(steps.items()), budget))
        for task, steps in traces.items()
    ]
    last = max(step for steps in traces.values() for step in steps)
    plot = (36.0, 16.0, 426.0, 186.0)
    x, y = (
        Scale(0, last, plot[0] + 4, plot[2] - 4),
        Scale(floor_of(v for t in traces.values() for v in t.values()), 1, plot[3], plot[1]),
    )
    inside = [_axes(plot, y, [(x(n), whole(n)) for n in _round_ticks(max(last, 1))], "training step")]
    starts = [x(line.points[0][0]) for line in lines]
    inside += [_element("path", "rule", d=f"M{start:.1f} {plot[1]:.1f}V{plot[3]:.1f}") for start in starts]
    inside += [_path(line, x, y, marks=False) for line in lines]
    for line, start in zip(lines, starts, strict=True) if len(tasks) <= 10 else ():
        inside.append(_text(start, plot[1] - 4, line.label, f"{line.style} name", "middle"))
    lows = "; ".join(f"task {task + 1} falls to {percent(min(steps.values()))} %" for task, steps in traces.items())
    return _svg(440, 220, f"{entry.title}: accuracy during training", f"Lowest points: {lows}.", inside)


def against_cost(entries: Sequence[Entry], cost: str, axis: str, label: Callable[[float | None], str]) -> Markup | None:
    """Average accuracy against a cost, one named dot a method; None where nobody has both numbers."""
    dots = []
    for entry in entries:
        spent, score = entry.estimate(cost), entry.estimate("average_accuracy")
        if spent is not None and score is not None:
            dots.append(Dot(entry.method, entry.style, spent.mean, score.mean, score.half))
    if not dots:
        return None
    plot = (36.0, 12.0, 430.0, 236.0)
    x = _cost_scale([dot.x for dot in dots], plot[0] + 12, plot[2] - 14)
    y = Scale(floor_of(dot.y - (dot.half or 0) for dot in dots), 1, plot[3], plot[1])
    inside = [_axes(plot, y, [(x(value), label(value)) for value in _cost_ticks(x, dots)], axis)]
    for dot in dots:
        if dot.half is not None:
            low, high = max(dot.y - dot.half, y.low), min(dot.y + dot.half, 1.0)
            inside.append(_element("path", f"{dot.style} whisker", d=f"M{x(dot.x):.1f} {y(low):.1f}V{y(high):.1f}"))
        inside.append(_element("circle", f"{dot.style} dot", cx=f"{x(dot.x):.1f}", cy=f"{y(dot.y):.1f}", r="5"))
    inside += _beside(dots, x, y, plot)
    found = "; ".join(f"{dot.label} {percent(dot.y)} % at {label(dot.x)}" for dot in dots)
    return _svg(440, 270, f"Average accuracy against {axis}", f"One dot a method: {found}.", inside)


def interval_bar(entry: Entry, floor: float) -> Markup:
    """A dot with its interval on the axis from ``floor`` to 100 %, to stand beside the number in the table."""
    value = entry.estimate("average_accuracy")
    if value is None:
        return Markup("")
    x = Scale(floor, 1, 5, 105)
    inside = [_element("path", "rule", d="M5 9H105")]
    if value.half is not None:
        low, high = max(value.mean - value.half, floor), min(value.mean + value.half, 1.0)
        inside.append(_element("path", f"{entry.style} whisker", d=f"M{x(low):.1f} 9H{x(high):.1f}"))
    inside.append(_element("circle", f"{entry.style} dot", cx=f"{x(value.mean):.1f}", cy="9", r="4"))
    title = f"{entry.title}: {estimate(value)} %"
    return _svg(110, 18, title, f"On an axis from {percent(floor)} to 100 %.", inside, "bar")


def _svg(width: float, height: float, title: str, text: str, inside: Iterable[Markup], style: str = "chart") -> Markup:
    body = Markup("").join(inside)
    return Markup('<svg class="{}" viewBox="0 0 {:g} {:g}" role="img"><title>{}</title><desc>{}</desc>{}</svg>').format(
        style, width, height, title, text, body
    )


def _element(tag: str, style: str, **places: str) -> Markup:
    named = Markup(" ").join(Markup('{}="{}"').format(name, value) for name, value in places.items())
    return Markup('<{0} class="{1}" {2}/>').format(tag, style, named)


def _text(x: float, y: float, text: str, style: str, anchor: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(style, x, y, anchor, text)


def _axes(plot: Box, y: Scale, ticks: Iterable[tuple[float, str]], axis: str) -> Markup:
    left, _, right, bottom = plot
    parts = []
    for value in _shares(y.low):
        parts.append(_element("path", "rule", d=f"M{left:.1f} {y(value):.1f}H{right:.1f}"))
        parts.append(_text(left - 6, y(value) + 4, f"{100 * value:.0f}", "tick", "end"))
    parts += [_text(place, bottom + 15, label, "tick", "middle") for place, label in ticks]
    parts.append(_text((left + right) / 2, bottom + 31, axis, "tick", "middle"))
    return Markup("").join(parts)


def _shares(floor: float) -> list[float]:
    span = 1 - floor
    step = 0.01 if span < 0.06 else 0.02 if span < 0.12 else 0.05 if span < 0.31 else 0.1 if span < 0.51 else 0.2
    return [floor + step * n for n in range(round(span / step) + 1) if floor + step * n < 1 + 1e-9]


def _thinned(points: Sequence[tuple[float, float]], budget: int) -> list[tuple[float, float]]:
    """About ``budget`` points: the first, and of every stretch the lowest and the last, so that no dip is lost."""
    if len(points) <= budget:
        return list(points)
    width = math.ceil(2 * len(points) / budget)
    kept = [points[0]]
    for start in range(0, len(points), width):
        stretch = points[start : start + width]
        kept += [min(stretch, key=lambda point: point[1]), stretch[-1]]
    return list(dict.fromkeys(kept))


def _counted(tasks: int) -> list[int]:
    return [n for n in range(1, tasks + 1) if tasks <= 10 or n % 5 == 0 or n == 1]


def _path(line: Line, x: Scale, y: Scale, marks: bool) -> Markup:
    places = [(x(a), y(max(b, y.low))) for a, b in line.points]
    drawn = _element("path", f"{line.style} line", d="M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places))
    ends = places if marks else places[:1]
    return drawn + Markup("").join(
        _element("circle", f"{line.style} mark", cx=f"{a:.1f}", cy=f"{b:.1f}", r="2.4") for a, b in ends
    )


def _band(line: Line, x: Scale, y: Scale) -> Markup:
    if not line.band:
        return Markup("")
    upper = [f"{x(a):.1f} {y(min(high, 1.0)):.1f}" for a, _, high in line.band]
    lower = [f"{x(a):.1f} {y(max(low, y.low)):.1f}" for a, low, _ in reversed(line.band)]
    return _element("path", f"{line.style} band", d="M" + "L".join(upper + lower) + "Z")


def _end_labels(lines: Sequence[Line], right: float, y: Scale) -> list[Markup]:
    """Names beside the ends of their lines, pushed apart where they would touch."""
    ends = [(y(max(line.points[-1][1], y.low)), line) for line in lines]
    wanted = sorted(ends, key=lambda end: end[0])
    places: list[float] = []
    for place, _ in wanted:
        places.append(max(place, places[-1] + LINE) if places else place)
    for index in range(len(places) - 1, -1, -1):
        limit = y.start if index == len(places) - 1 else places[index + 1] - LINE
        places[index] = min(places[index], limit)
    return [
        _text(right + 4, place + 4, _short(line.label), f"{line.style} name", "start")
        for place, (_, line) in zip(places, wanted, strict=True)
    ]


def _beside(dots: Sequence[Dot], x: Scale, y: Scale, plot: Box) -> list[Markup]:
    """A name beside each dot, at the nearest place that touches no other name, dot or whisker."""
    taken: list[Box] = [(x(dot.x) - 6, y(dot.y) - 6, x(dot.x) + 6, y(dot.y) + 6) for dot in dots]
    taken += [
        (x(dot.x) - 1, y(min(dot.y + dot.half, 1)), x(dot.x) + 1, y(max(dot.y - dot.half, y.low)))
        for dot in dots
        if dot.half is not None
    ]
    parts = []
    for dot in dots:
        text, place = _short(dot.label), (x(dot.x), y(dot.y))
        around = [_label_box(place, len(text) * LETTER, side, lift) for lift in _lifts() for side in (1, -1, 0, 2, -2)]
        around = [box for box in around if _within(box, plot)] or around
        box = min(around, key=lambda box: sum(_touch(box, other) for other in taken))
        taken.append(box)
        near = (min(max(place[0], box[0]), box[2]), min(max(place[1], box[1]), box[3]))
        if math.dist(place, near) > 10:
            parts.append(_element("path", "leader", d=f"M{place[0]:.1f} {place[1]:.1f}L{near[0]:.1f} {near[1]:.1f}"))
        parts.append(_text(box[0], box[3] - 3, text, f"{dot.style} name", "start"))
    return parts


def _lifts() -> list[float]:
    return [0.0] + [sign * LINE * step for step in range(1, 12) for sign in (-1, 1)]


def _label_box(place: tuple[float, float], width: float, side: int, lift: float) -> Box:
    """The box of a label at a side of its dot: 0 centred, 1 right, 2 far right, negative left; lifted by some units."""
    away = 9 if abs(side) == 1 else 100
    left = place[0] - width / 2 if side == 0 else place[0] + away if side > 0 else place[0] - away - width
    return (left, place[1] + lift - 7, left + width, place[1] + lift + 7)


def _within(box: Box, plot: Box) -> bool:
    return box[0] >= plot[0] and box[1] >= plot[1] - 8 and box[2] <= plot[2] + 8 and box[3] <= plot[3]


def _touch(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _cost_scale(values: Sequence[float], start: float, end: float) -> Scale:
    positive = [value for value in values if value > 0]
    if not positive or max(positive) <= 20 * min(positive):
        return Scale(0, max(values) or 1.0, start, end)
    low, high = 10 ** math.floor(math.log10(min(positive))), 10 ** math.ceil(math.log10(max(positive)))
    return Scale(low, high, start, end, logarithmic=True)


def _cost_ticks(x: Scale, dots: Sequence[Dot]) -> list[float]:
    if x.logarithmic:
        powers = range(round(math.log10(x.low)), round(math.log10(x.high)) + 1)
        zero = [0.0] if any(dot.x <= 0 for dot in dots) else []
        return zero + [10.0**power for power in powers]
    return _round_ticks(x.high)


def _round_ticks(high: float) -> list[float]:
    power = 10 ** math.floor(math.log10(high))
    step = next(power * part for part in (0.2, 0.5, 1, 2) if high / (power * part) <= 5)
    return [step * n for n in range(int(high / step + 1e-9) + 1)]


def _short(label: str) -> str:
    return label if len(label) <= 18 else label[:17] + "…"
