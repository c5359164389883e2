"""The report: numbers stand where they should, nothing is claimed within the noise, nothing is needed but the file."""

import json
import re
from copy import deepcopy
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import example_results
import pytest

from perdure import metrics, report
from perdure.report import charts, view, words

VOID = {"meta", "link", "br", "path", "circle"}


class Page(HTMLParser):
    """The page as lists: text of table rows, attributes of tags; a tag left open or closed twice is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        if "svg" not in self.open and "table" in self.open and ("td" in self.open or "th" in self.open):
            self.tables[-1][-1][-1] += data
        if "svg" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).replace("\N{NO-BREAK SPACE}", " ").split())


def page(results: dict[str, Any]) -> Page:
    return Page(report.render(results))


def small(scores: dict[str, list[list[float]]], upper: tuple[str, ...] = ()) -> dict[str, Any]:
    """Two tasks: by method a list over seeds of [task 1 after 1, task 1 after 2, task 2 after 2]."""
    results = example_results.results(tasks=2, seeds=1, scenarios=("class",))
    pattern = results["cells"][0]
    results["cells"] = []
    for method, seeds in scores.items():
        for seed, (first, last, second) in enumerate(seeds):
            matrix: list[list[float | None]] = [[first, None], [last, second]]
            own = {"method": method, "title": method.upper(), "seed": seed, "upper_bound": method in upper}
            results["cells"].append({**pattern, **own, "accuracy": matrix, "metrics": metrics.summary(matrix)})
    return results


@pytest.fixture(scope="module")
def five() -> dict[str, Any]:
    return example_results.results(trace=True)


def test_the_table_shows_mean_and_student_interval_by_hand() -> None:
    results = small({"a": [[0.9, 0.8, 1.0], [0.9, 0.82, 1.0], [0.9, 0.84, 1.0]], "b": [[0.9, 0.1, 1.0]] * 3})
    row = page(results).tables[0][1]
    # average accuracy .90 .91 .92: mean .91, half 4.3027 * .01 / sqrt 3 = .0248; forgetting .10 .08 .06: half .0497
    assert row[2].replace("\N{NO-BREAK SPACE}", " ") == "91.0 ± 2.5"
    assert row[3] == "8.0 ± 5.0"
    assert row[4] == "−8.0 ± 5.0"
    assert row[5] == "95.0 ± 0.0"


def test_costs_are_means_in_human_units(five: dict[str, Any]) -> None:
    rows = {
        row[0].split()[-1]: [text.replace("\N{NO-BREAK SPACE}", " ") for text in row] for row in page(five).tables[0]
    }
    assert rows["ewc"][6:] == ["6.3", "1.3", "266 G", "3.8 MB"]
    assert rows["finetune"][6:] == ["4.0", "0", "170 G", "0 B"]


def test_the_heat_map_is_the_mean_over_seeds_and_leaves_unknown_cells_empty() -> None:
    results = small({"a": [[0.9, 0.5, 0.7], [0.8, 0.3, 0.9]]})
    assert page(results).tables[1] == [["task", "1", "2"], ["after 1", "85.0", ""], ["after 2", "40.0", "80.0"]]
    classes = re.findall(r'<td class="(h\d+)">([\d.]+)</td>', report.render(results))
    assert classes == [("h17", "85.0"), ("h8", "40.0"), ("h16", "80.0")]


def test_a_difference_outside_the_noise_is_named_and_only_the_best_is_bold() -> None:
    results = small({"good": [[0.9, 0.80, 0.9], [0.9, 0.81, 0.9]], "bad": [[0.9, 0.30, 0.9], [0.9, 0.31, 0.9]]})
    said = page(results).text
    assert "GOOD kept most: 85.2 ± 3.2 % average accuracy, 25.0 ± 0.0 points above BAD." in said
    assert "BAD forgot most: 59.5 ± 6.4 points." in said
    assert bold(results, "average_accuracy") == {"good"}


def test_a_difference_within_the_noise_is_never_claimed() -> None:
    results = small({"a": [[0.9, 0.80, 0.9], [0.9, 0.60, 0.9]], "b": [[0.9, 0.70, 0.9], [0.9, 0.65, 0.9]]})
    said = page(results).text
    assert "A has the highest average accuracy" in said
    assert "but these seeds can’t tell it from B." in said
    assert "No method can be said to forget more than another." in said
    assert "kept most" not in said
    assert "forgot most" not in said
    assert bold(results, "average_accuracy") == set()


def test_differences_are_paired_by_seed() -> None:
    """Seeds differ by 0.3, methods always by 0.01: unpaired nothing could be told, paired it can."""
    low, high = [[0.9, x, 0.9] for x in (0.3, 0.6, 0.9)], [[0.9, x + 0.02, 0.9] for x in (0.3, 0.6, 0.9)]
    assert (
        "HIGH kept most: 76.0 ± 37.3 % average accuracy, 1.0 ± 0.0 points above LOW."
        in page(small({"low": low, "high": high})).text
    )


def test_parameters_by_task_and_shared_modules_are_small_tables() -> None:
    results = small({"a": [[0.9, 0.8, 1.0]], "b": [[0.9, 0.8, 1.0]]})
    assert len(page(deepcopy(results)).tables) == 4
    row = {"task": "x", "column": 12345, "adapters": 0, "trained": 12345, "frozen": 0, "total": 12345}
    last = {**row, "task": "y", "adapters": 1, "trained": 12346, "frozen": 12345, "total": 24691}
    results["cells"][0]["parameters"] = [row, last]
    results["cells"][1]["shared"] = [
        {"first": "x", "second": "x", "modules": [3, 2]},
        {"first": "x", "second": "y", "modules": [1, 0]},
        {"first": "y", "second": "y", "modules": [3, 3]},
    ]
    tables = [[[text.replace("\N{NARROW NO-BREAK SPACE}", " ") for text in line] for line in table]
              for table in page(results).tables]  # fmt: skip
    assert ["y", "12 345", "1", "12 346", "12 345", "24 691"] in [line for table in tables for line in table]
    assert [["Task", "x", "y"], ["x", "3, 2", "1, 0"], ["y", "1, 0", "3, 3"]] in tables
    assert len(tables) == 6


def test_one_seed_has_no_interval_and_no_claim() -> None:
    results = example_results.results(seeds=1)
    shown = page(results)
    assert "±" not in shown.text
    assert "one seed can’t tell skill from luck" in shown.text
    assert "kept most" not in shown.text
    assert "forgot most" not in shown.text
    assert not re.search(r'class="[^"]*(band|whisker)"', report.render(results))


def test_an_upper_bound_wins_nothing_and_is_the_measure() -> None:
    scores = {"joint": [[0.9, 0.95, 0.9], [0.9, 0.95, 0.9]], "a": [[0.9, 0.7, 0.9], [0.9, 0.7, 0.9]]}
    results = small(scores | {"b": [[0.9, 0.2, 0.9], [0.9, 0.2, 0.9]]}, upper=("joint",))
    shown = page(results)
    assert "A ends 12.5 ± 0.0 points below the upper bound, JOINT, which sees all tasks at once." in shown.text
    assert "JOINT kept most" not in shown.text
    assert bold(results, "average_accuracy") == {"a"}
    assert shown.tables[0][1][0].split() == ["JOINT", "sees", "all", "joint"]


def bold(results: dict[str, Any], metric: str) -> set[str]:
    (scenario,) = view.scenarios(results)
    return words.leaders(scenario.entries, metric)


def test_unfinished_runs_are_named_and_count_in_no_mean(five: dict[str, Any]) -> None:
    broken = deepcopy(five)
    cell = next(cell for cell in broken["cells"] if (cell["method"], cell["seed"]) == ("replay", 2))
    cell |= {"complete": False, "accuracy": cell["accuracy"][:3]}
    cell["metrics"] |= {"average_accuracy": 0.001}
    shown = page(broken)
    assert (
        "1 of 30 runs did not finish and count in no mean: "
        "Experience replay, class-incremental, seed 2: stopped after 3 of 5 tasks" in shown.text
    )
    row = next(row for row in shown.tables[0] if row[0].split()[-1] == "replay")
    assert "2 of 3 finished" in row[0]
    kept = [
        c["metrics"]["average_accuracy"] for c in five["cells"] if (c["method"], c["scenario"]) == ("replay", "class")
    ][:2]
    assert row[2].startswith(f"{50 * sum(kept):.1f}")


def test_a_method_that_never_finished_shows_its_matrix_but_no_number(five: dict[str, Any]) -> None:
    broken = deepcopy(five)
    for cell in broken["cells"]:
        if cell["method"] == "ewc":
            cell |= {"complete": False, "accuracy": cell["accuracy"][: 2 * (cell["scenario"] == "task")], "trace": None}
    shown = page(broken)
    assert shown.tables[0][5] == ["Elastic weight consolidation 0 of 3 finished ewc", "", *["–"] * 8]
    assert "Elastic weight consolidation" not in [row[0] for row in shown.tables[1]]


def test_null_metrics_are_dashes_and_null_accuracies_are_no_zeros(five: dict[str, Any]) -> None:
    empty = deepcopy(five)
    for cell in empty["cells"]:
        cell["metrics"] = dict.fromkeys(cell["metrics"])
        cell["accuracy"] = [[None] * 5 for _ in range(5)]
        cell["trace"] = None
    shown = page(empty)
    assert shown.tables[0][1][2:6] == ["–"] * 4
    assert "No method finished here." in shown.text
    assert '<td class="h' not in report.render(empty)


def test_text_from_the_results_is_escaped_everywhere(five: dict[str, Any]) -> None:
    evil = """<b onclick="x('&')">"""
    results = deepcopy(five)
    for cell in results["cells"]:
        if cell["method"] == "ewc":
            cell |= {"method": evil, "title": evil * 3, "settings": {evil: evil}, "complete": cell["seed"] != 1}
    results["benchmark"] |= {"name": evil, "description": evil, "tasks": [evil] * 5}
    results |= {"name": evil, "config": {evil: [evil], "model": {"name": evil}}}
    html = report.render(results)
    shown = Page(html)
    assert not [tag for tag, _ in shown.tags if tag == "b"]
    assert evil * 3 in shown.text
    assert "onclick=&#34;" in html
    assert "&amp;lt;" not in html


@pytest.mark.parametrize("tasks", [1, 2, 5, 20])
@pytest.mark.parametrize("seeds", [1, 3])
def test_the_page_is_one_small_closed_file(tasks: int, seeds: int) -> None:
    html = report.render(example_results.results(tasks=tasks, seeds=seeds, trace=tasks > 1))
    shown = Page(html)
    assert len(html.encode()) < 300_000
    assert "://" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert not [tag for tag, _ in shown.tags if tag in ("script", "iframe", "img", "object", "base")]
    for tag, attributes in shown.tags:
        assert not {"src", "srcset", "xlink:href"} & set(attributes)
        assert (attributes.get("href") or "#").startswith(("#", "data:,")), (tag, attributes)
    ids = [attributes["id"] for _, attributes in shown.tags if "id" in attributes]
    links = [attributes["href"] for tag, attributes in shown.tags if tag == "a"]
    assert links == [f"#{name}" for name in ids]


def test_every_drawing_says_what_it_shows(five: dict[str, Any]) -> None:
    html = report.render(five)
    drawings = re.findall(r"<svg ([^>]*)>(.*?)</svg>", html, re.DOTALL)
    # a scenario: 5 bars in the table, 2 charts of all methods, 5 small ones, 2 costs, 2 traces
    assert len(drawings) == 2 * (5 + 2 + 5 + 2 + 2)
    for attributes, inside in drawings:
        assert 'role="img"' in attributes
        assert re.match(r"<title>[^<]+</title><desc>[^<]+</desc>", inside)
        assert "nan" not in inside


def test_a_trace_is_drawn_only_where_there_is_one(five: dict[str, Any]) -> None:
    assert report.render(five).count("accuracy during training</title>") == 4
    assert "stability gap" not in report.render(example_results.results())


def test_the_trace_follows_a_task_from_when_its_training_begins(five: dict[str, Any]) -> None:
    results = deepcopy(five)
    for point in (point for cell in results["cells"] for point in cell["trace"] or ()):
        point["accuracy"] = [0.5 if value is None else value for value in point["accuracy"]]
    entry = next(entry for entry in view.scenarios(results)[0].entries if entry.method == "replay")
    trace = entry.trace()
    assert [min(steps) for steps in trace.values()] == [0, 94, 188, 282, 376]
    values = [point["accuracy"][0] for cell in entry.finished for point in cell["trace"] if point["step"] == 100]
    assert trace[0][100] == pytest.approx(sum(values) / 3)


def test_a_long_trace_is_thinned_without_losing_a_dip() -> None:
    points = [(float(step), 0.2 if step == 777 else 0.9) for step in range(5000)]
    kept = charts._thinned(points, 100)
    assert len(kept) <= 102
    assert kept == sorted(kept)
    assert {points[0], points[777], points[-1]} <= set(kept)


def test_same_results_give_the_same_bytes(five: dict[str, Any], tmp_path: Path) -> None:
    before = json.dumps(five)
    report.write(five, tmp_path / "one.html")
    report.write(json.loads(before), tmp_path / "two.html")
    assert json.dumps(five) == before
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_the_example_of_the_documentation_renders() -> None:
    example = json.loads((Path(__file__).parents[1] / "docs" / "results.example.json").read_text(encoding="utf-8"))
    assert "Experience replay keeps 92.6 % average accuracy." in page(example).text


def test_results_of_another_schema_or_without_cells_are_refused(five: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="schema 2, and this Perdure reads schema 1"):
        report.render({**five, "schema": 2})
    with pytest.raises(ValueError, match="no cell"):
        report.render({**five, "cells": []})


def test_methods_that_share_a_title_are_told_apart_by_their_label() -> None:
    results = small({"ewc-1": [[0.9, 0.8, 0.9]], "ewc-100": [[0.9, 0.7, 0.9]]})
    for cell in results["cells"]:
        cell |= {"title": "EWC", "settings": {"strength": 1.0 if cell["method"] == "ewc-1" else 100.0}}
    said = page(results).text
    assert "2 methods learn" in said
    assert "EWC (ewc-1) has the highest average accuracy" in said
    assert "EWC (ewc-1)strength 1.0" in said
    assert "EWC (ewc-100)strength 100.0" in said


def test_settings_that_differ_by_scenario_are_told_apart(five: dict[str, Any]) -> None:
    results = deepcopy(five)
    for cell in results["cells"]:
        if cell["method"] == "replay":
            cell["settings"] = {"capacity": 10_000 if cell["scenario"] == "task" else 2000}
    shown = page(results).text.replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert "Class-incremental, seed 0: capacity 2 000" in shown
    assert "Task-incremental, seed 0: capacity 10 000" in shown


def test_names_in_the_cost_charts_never_overlap() -> None:
    """Sixteen methods whose costs and accuracies nearly coincide."""
    entries = []
    for number in range(16):
        cell = {"seed": 0, "numbers": {"average_accuracy": 0.9 + 0.001 * number, "cost": 10 + 0.1 * (number % 5)}}
        entries.append(view.Entry(f"some-method-{number}", "", "m0", False, (cell,), ()))
    drawn = charts.against_cost(entries, "cost", "cost", words.short_number)
    assert drawn
    names = re.findall(r'<text class="m0 name" x="([\d.-]+)" y="([\d.-]+)" text-anchor="start">([^<]+)</text>', drawn)
    assert len(names) == 16
    boxes = [(float(x), float(y), float(x) + len(text) * charts.LETTER, float(y) + charts.LINE) for x, y, text in names]
    for index, box in enumerate(boxes):
        assert box[0] >= 0 and box[2] <= 440
        assert not any(charts._touch(box, other) for other in boxes[:index])


@pytest.mark.parametrize("level", [0.0, 0.5, 0.9])
def test_names_at_the_ends_of_lines_never_overlap_nor_leave_the_plot(level: float) -> None:
    results = small(
        {f"method-{number}": [[0.9, level + 0.005 * number, level]] for number in range(13)}
        | {"low": [[0.9, 0.0, 0.0]]}
    )
    drawn = charts.by_method(view.scenarios(results)[0].entries, view.Entry.seen_so_far, 2, "all")
    places = sorted(float(y) for y in re.findall(r'name" x="[\d.]+" y="([\d.-]+)" text-anchor="start"', drawn))
    assert len(places) == 14
    assert min(after - before for before, after in pairwise(places)) >= charts.LINE - 0.1
    assert places[0] > 10
    assert places[-1] < 250


@pytest.mark.parametrize("dark", [False, True])
def test_colours_keep_their_contrast_in_light_and_dark(dark: bool, five: dict[str, Any]) -> None:
    css = report.render(five).split("<style>")[1].split("</style>")[0]
    light, night = css.split("@media screen and (prefers-color-scheme: dark)")
    colours = dict(re.findall(r"--(\w+): (#\w+);", light))
    if dark:
        colours |= dict(re.findall(r"--(\w+): (#\w+);", night.split("\n}")[0]))
    inks = re.findall(r"\.(h\d+) \{ background: var\(--h\d+\); color: var\(--(\w+)\); \}", css)
    assert len(inks) == 21
    for step, ink in inks:
        assert contrast(colours[step], colours[ink]) >= 4.5, step
    for name in ("ink", "soft", "accent", "bound", *(f"m{n}" for n in range(8))):
        assert contrast(colours[name], colours["paper"]) >= 4.5, name
    assert contrast(colours["soft"], colours["card"]) >= 4.5
    assert contrast(colours["soft"], colours["shade"]) >= 4.5
    for task in range(10):
        assert contrast(colours[f"t{task}"], colours["paper"]) >= 3, task


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2.1."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1_650_000, "1.6 MB"),
        (999_960, "1 MB"),
        (47_040_000, "47 MB"),
        (2.5e9, "2.5 GB"),
    ],
)
def test_bytes_are_for_people(value: float, text: str) -> None:
    assert words.size(value).replace("\N{NO-BREAK SPACE}", " ") == text


def test_a_choice_reads_as_words() -> None:
    recipe = {"name": "mlp", "settings": {"hidden": [400, 400], "norm": False}, "seed": None}
    assert words.named(recipe) == "mlp, hidden 400, 400, norm no"
    assert (
        words.named({"epochs": 1, "optimizer": {"name": "adam", "lr": 0.001}}) == "epochs 1, optimizer adam, lr 0.001"
    )
    assert words.percent(-0.0001) == "0.0"
