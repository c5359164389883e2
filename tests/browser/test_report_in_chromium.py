"""The report in a real Chromium: nothing fetched, nothing overflowing, readable in light, dark and on a phone."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import example_results
import pytest

from perdure import report

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
PICTURES = Path(__file__).parents[2] / "build" / "screenshots"
HOSTILE = """<b onclick="x('&')">"""

# The lowest WCAG contrast of the texts that a selector finds, against the first opaque background behind each.
LOWEST_CONTRAST = """selector => {
  const parse = text => text.match(/[\\d.]+/g).map(Number)
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)
  const behind = node => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor)
      if (colour.length === 3 || colour[3] === 1) return colour
    }
    return [255, 255, 255]
  }
  const found = [...document.querySelectorAll(selector)].map(node => {
    const style = getComputedStyle(node)
    const ink = node instanceof SVGElement ? style.fill : style.color
    const [low, high] = [light(parse(ink)), light(behind(node))].sort((a, b) => a - b)
    return (high + 0.05) / (low + 0.05)
  })
  return found.length ? Math.min(...found) : 0
}"""

# Pairs of names in one chart whose drawn boxes overlap by more than a hair.
TOUCHING = """() => [...document.querySelectorAll('svg.chart')].flatMap(chart => {
  const names = [...chart.querySelectorAll('text.name[text-anchor=start]')]
    .map(node => [node.textContent, node.getBBox()])
  const across = (a, b) => a.x + 1 < b.x + b.width && b.x + 1 < a.x + a.width
  const along = (a, b) => a.y + 3 < b.y + b.height && b.y + 3 < a.y + a.height
  return names.flatMap(([one, a], i) => names.slice(i + 1)
    .filter(([_, b]) => across(a, b) && along(a, b)).map(([other]) => `${one} / ${other}`))
})"""


def hostile() -> dict[str, Any]:
    results = example_results.results(seeds=1)
    for cell in results["cells"]:
        if cell["method"] == "ewc":
            cell |= {"method": HOSTILE, "title": HOSTILE * 3, "settings": {"n": HOSTILE}, "complete": False}
    results["name"] = HOSTILE
    return results


CASES = {
    "five": lambda: example_results.results(trace=True),
    "twenty": lambda: example_results.results(tasks=20),
    "one": lambda: example_results.results(tasks=1, seeds=1, scenarios=("class",)),
    "hostile": hostile,
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium on the path; make test-browser installs Debian's")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield found
        found.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    for name, make in CASES.items():
        report.write(make(), folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in CASES}


@pytest.mark.parametrize("case", CASES)
def test_the_page_opens_in_silence_and_fetches_nothing(browser: Any, files: dict[str, Path], case: str) -> None:
    page = browser.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(files[case].as_uri())
    page.wait_for_load_state("networkidle")
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [files[case].as_uri()]
    page.close()


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("case", CASES)
def test_the_page_never_scrolls_sideways(browser: Any, files: dict[str, Path], case: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(files[case].as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    widest = (
        "Math.max(...[...document.querySelectorAll('svg, p, h1, h4, dd')].map(e => e.getBoundingClientRect().right))"
    )
    boxed = "document.querySelectorAll('.scroll svg').forEach(e => e.remove())"
    page.evaluate(boxed)
    assert page.evaluate(widest) <= width
    page.close()


@pytest.mark.parametrize("case", ["five", "twenty"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable(browser: Any, files: dict[str, Path], case: str, scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme)
    page.goto(files[case].as_uri())
    for selector in ("p", "dd", "dt", "summary", "a", "th", ".numbers td", ".numbers small", ".half", ".tag", "pre"):
        assert page.evaluate(LOWEST_CONTRAST, selector) >= 4.5, selector
    assert page.evaluate(LOWEST_CONTRAST, ".heat td:not(:empty)") >= 4.5
    assert page.evaluate(LOWEST_CONTRAST, "text.tick, text.name.bound, .m0.name, .m1.name, .m2.name, .m3.name") >= 4.5
    assert page.evaluate(LOWEST_CONTRAST, "text.name") >= 3
    page.close()


def test_dark_mode_is_dark_and_print_is_light(browser: Any, files: dict[str, Path]) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    page = browser.new_page(color_scheme="light")
    page.goto(files["five"].as_uri())
    assert page.evaluate(background) == "rgb(251, 251, 249)"
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(background) == "rgb(18, 22, 25)"
    page.emulate_media(color_scheme="dark", media="print")
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    assert page.evaluate(LOWEST_CONTRAST, "p, td:not(:empty), th") >= 4.5
    page.close()


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("case", CASES)
def test_names_in_charts_do_not_touch(browser: Any, files: dict[str, Path], case: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(files[case].as_uri())
    assert page.evaluate(TOUCHING) == []
    page.close()


@pytest.mark.parametrize(
    ("name", "width", "scheme", "whole"),
    [
        ("readme", 1280, "light", False),
        ("readme-dark", 1280, "dark", False),
        ("light", 1280, "light", True),
        ("dark", 1280, "dark", True),
        ("phone", 360, "light", True),
    ],
)
def test_pictures_are_taken(
    browser: Any, files: dict[str, Path], name: str, width: int, scheme: str, whole: bool
) -> None:
    size = {"width": width, "height": 1480 if not whole else 800}
    page = browser.new_page(viewport=size, color_scheme=scheme, device_scale_factor=1 if whole and width > 600 else 2)
    page.goto(files["five"].as_uri())
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"report-{name}.png", full_page=whole)
    assert (PICTURES / f"report-{name}.png").stat().st_size > 50_000
    page.close()
