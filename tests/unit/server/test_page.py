"""The page at /, in a real Chromium where there is one: drawing, cancelling, history, records, keys, other widths."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.soak.quick import Running
from tests.unit.server.conftest import client_of

from leandiffusion.server.guard import Rules
from leandiffusion.server.page import FILES
from leandiffusion.server.service import Service

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 60_000  # milliseconds


def test_the_page_loads_nothing_from_elsewhere(client: httpx2.Client):
    for path in FILES:
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert not re.search(r"https?:|//\w+\.|@import|innerHTML|eval\(", answer.text)
    assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: make browser")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Page:
    """The page, opened; what its console complains of is an error."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda told: self.errors.append(told.text) if told.type == "error" else None)
        self.page.goto(url)

    def state(self, words: str) -> None:
        self.page.wait_for_function(
            "words => new RegExp(words).test(document.getElementById('state').textContent)", arg=words, timeout=PATIENCE
        )

    def fill(self, **values: str) -> None:
        for name, value in values.items():
            self.page.fill(f"#{name}", value)


@pytest.fixture
def opened(browser: Any, running: Running) -> Iterator[Page]:
    page = Page(browser, running.url)
    page.state("ready")
    yield page
    assert page.errors == []
    page.context.close()


DROP = """text => {
    const bytes = Uint8Array.from(atob(text), (each) => each.charCodeAt(0)), carried = new DataTransfer();
    carried.items.add(new File([bytes], "b.png", { type: "image/png" }));
    const how = { dataTransfer: carried, bubbles: true, cancelable: true };
    document.body.dispatchEvent(new DragEvent("drop", how));
}"""

QUICK = {"prompt": "a red circle", "size": "64x64", "steps": "6", "seed": "5"}


def test_a_picture_is_drawn_and_kept_with_how(opened: Page):
    opened.fill(**QUICK)
    opened.page.keyboard.press("Control+Enter")
    opened.state("done, seed 5")
    opened.page.wait_for_selector("#draw:enabled")
    assert opened.page.inner_text("#state") == "done, seed 5"  # whatever the server said after the picture
    assert opened.page.get_attribute("#now img", "alt") == "drawn: a red circle"
    opened.page.wait_for_selector("#history li")
    opened.page.click("#history li button:has-text('How')")
    assert "Seed: 5, Size: 64x64" in opened.page.inner_text("#record")
    opened.page.click("#history li button:has-text('Vary')")
    opened.state(r"done, seed (?!5$)\d+")
    opened.page.wait_for_function("() => document.querySelectorAll('#history li').length == 2")
    opened.page.click("#history li:last-child button:has-text('Again')")
    opened.state("done, seed 5$")


def test_a_drawing_is_cancelled_by_button_or_key(opened: Page, running: Running):
    for end in (lambda: opened.page.click("#cancel"), lambda: opened.page.keyboard.press("Escape")):
        opened.fill(**{**QUICK, "steps": "1000"})
        opened.page.click("#draw")
        opened.state("step [1-9]")
        end()
        opened.state("cancelled")
        while running.service.queue.jobs():
            opened.page.wait_for_timeout(20)
    opened.fill(**QUICK)
    opened.page.click("#draw")
    opened.state("done, seed 5")


def test_the_plan_follows_the_slider(opened: Page):
    opened.page.wait_for_function("() => document.getElementById('plan-told').textContent.startsWith('128x128: peak')")
    all_of_it = opened.page.inner_text("#plan-told")
    opened.page.fill("#memory", "6")  # of a hundred steps from 200 MiB to all there is
    opened.page.wait_for_function(
        "before => { const now = document.getElementById('plan-told').textContent; return now !== before }",
        arg=all_of_it,
    )
    assert re.search("[MG]iB", opened.page.inner_text("#memory-told"))
    opened.errors.clear()  # the browser's own line, where so little does not do on this machine


def test_what_is_wrong_is_told_where_it_is(opened: Page):
    opened.fill(**{**QUICK, "size": "65x64"})
    opened.page.click("#draw")
    opened.state("size: 65 is not a multiple of 8")
    assert opened.page.evaluate("document.activeElement.id") == "size"
    opened.errors.clear()  # the browser's own line for an answer of 400


def test_a_picture_that_is_opened_or_dropped_shows_its_record(opened: Page, client: httpx2.Client, tmp_path: Path):
    import base64

    asked = {"prompt": "a <img src=x onerror=alert(1)> circle", "num_inference_steps": 1, "seed": 8, "size": "64x64"}
    drawn = client.post("/v1/images/generations", json={**asked, "prompt": "a blue circle"}).json()["data"][0]
    path = tmp_path / "a.png"
    path.write_bytes(base64.b64decode(drawn["b64_json"]))
    opened.page.set_input_files("#file", path)
    opened.state("opened a.png")
    assert opened.page.input_value("#seed") == "8"
    assert opened.page.input_value("#prompt") == "a blue circle"
    opened.page.evaluate(DROP, drawn["b64_json"])
    opened.state("opened b.png$")
    weighted = {**asked, "prompt": "a (red:1.2) circle", "prompt_syntax": "weighted", "model": "other", "seed": 2**62}
    opened.page.evaluate("[...document.getElementById('model').options].find((each) => each.value == 'other').remove()")
    opened.page.evaluate(DROP, client.post("/v1/images/generations", json=weighted).json()["data"][0]["b64_json"])
    opened.state("opened b.png, but the form cannot repeat: the model other, its seed, which is too long")
    assert (opened.page.input_value("#syntax"), opened.page.input_value("#seed")) == ("weighted", "")
    path.write_bytes(b"no picture")
    opened.page.set_input_files("#file", [])
    opened.page.set_input_files("#file", path)
    opened.state("no PNG picture")
    opened.errors.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [340, 1280])
def test_everybody_can_read_and_reach_it(browser: Any, running: Running, scheme: Any, width: int):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = Page(browser, running.url, color_scheme=scheme, viewport={"width": width, "height": 800}, bypass_csp=True)
    page.state("ready")
    page.fill(**{**QUICK, "steps": "1"})
    page.page.click("#draw")
    page.page.wait_for_selector("#history li")
    page.page.click("#plan-told")
    found = axe.Axe().run(page.page).response["violations"]
    assert [(each["id"], each["nodes"][0]["html"]) for each in found] == []
    assert page.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), "it is wider than the window"
    reached = []
    page.page.evaluate("document.activeElement.blur()")
    for _ in range(24):
        page.page.keyboard.press("Tab")
        reached.append(page.page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    there = {"prompt", "negative", "model", "size", "steps", "seed", "memory", "draw", "file", "Draw again", "Save"}
    assert there <= {*reached}
    page.context.close()


@pytest.fixture
def locked(on_paper: None) -> Iterator[Running]:
    running = Running(Service({"demo": "demo"}), Rules(api_key="a-key-of-length"))
    yield running
    running.end()


def test_the_page_asks_for_the_key(browser: Any, locked: Running):
    context = browser.new_context()
    page = context.new_page()
    page.on("dialog", lambda dialog: dialog.accept("a-key-of-length"))
    page.goto(locked.url)
    page.wait_for_function("() => document.getElementById('state').textContent == 'ready'")
    assert page.locator("#model option").all_inner_texts() == ["demo"]
    context.close()
    with client_of(locked) as client:
        assert client.get("/v1/models").status_code == 401
