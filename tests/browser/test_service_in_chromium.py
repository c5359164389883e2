"""The service's page in a real Chromium: nothing fetched from elsewhere, no script, readable, never too wide."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from store_examples import LABEL, begin, clouds
from test_report_in_chromium import LOWEST_CONTRAST, PICTURES, browser  # noqa: F401

from perdure import methods
from perdure.store.store import Store

uvicorn = pytest.importorskip("uvicorn")

pytestmark = pytest.mark.browser


def served(root: Path, name: str) -> tuple[Any, str]:
    from perdure.service import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(root, name), port=0, log_level="error"))
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.02)
    return server, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A store with many exams, a refused version, a roll back, drift, and words that would like to be code."""
    root = tmp_path_factory.mktemp("stores")
    store, _ = begin(root, clouds(["a", "b"], rows=120), training={"epochs": 3, "batch_size": 64})
    for number, label in enumerate("cdefghij"):
        store.update(clouds([label], rows=60, seed=number), accept_shift=True)
    store.rollback(1)
    store.promote(2, force="<img src=x onerror=alert(1)>" + "w" * 300)
    server, url = served(root, "clouds")
    import httpx

    odd = clouds(["k"], rows=200).drop_columns([LABEL]).to_pylist()
    httpx.post(f"{url}predict", json={"rows": odd}).raise_for_status()
    yield url
    server.should_exit = True


@pytest.mark.parametrize("scripts", [True, False])
def test_the_page_opens_in_silence_and_fetches_nothing_else(browser: Any, address: str, scripts: bool) -> None:  # noqa: F811
    page = browser.new_page(java_script_enabled=scripts)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_load_state("networkidle")
    assert said == [] and [url for url in asked if not url.startswith("data:")] == [address]
    assert "Version 2 answers" in page.inner_text("main") and "drift in" in page.inner_text("main")
    assert page.locator(".heat td:not(:empty)").count() > 20 and page.locator("main img").count() == 0
    page.close()


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_the_page_never_scrolls_sideways(browser: Any, address: str, width: int) -> None:  # noqa: F811
    page = browser.new_page(viewport={"width": width, "height": 800})
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"service-{width}.png", full_page=True)
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable(browser: Any, address: str, scheme: str) -> None:  # noqa: F811
    page = browser.new_page(color_scheme=scheme)
    page.goto(address)
    for selector in ("p", "li", "dd", "dt", "a", "th", ".numbers td:not(:empty)", ".heat td:not(:empty)"):
        assert page.evaluate(LOWEST_CONTRAST, selector) >= 4.5, selector
    page.close()


def test_a_store_without_exams_has_a_page(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    begin(tmp_path, clouds(["a", "b"], rows=60), keep_rows=False, method=methods.EWC())
    assert Store("clouds", tmp_path).exams() == []
    server, url = served(tmp_path, "clouds")
    page = browser.new_page()
    page.goto(url)
    assert "no exam was brought" in page.inner_text("main") and "nothing was asked yet" in page.inner_text("main")
    page.close()
    server.should_exit = True
