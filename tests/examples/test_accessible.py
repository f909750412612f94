"""Both pages can be read, in light and in dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

pytest.importorskip("playwright")

from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.examples.accessible import MEASURE, check
from tests.support.browser import browser, page
from tests.support.served import serve

Scheme = Literal["light", "dark"]
schemes = pytest.mark.parametrize("scheme", ["light", "dark"])

# A name of every hue, as others and the user itself have it, and in the list of names.
EVERY_HUE = """async () => {
    const { colored, make } = await import("/assets/elements.js");
    for (let hue = 0; hue < 360; hue++) {
        const name = String.fromCodePoint(360 + hue);
        for (const className of ["", "own"]) {
            const item = make("li", className);
            item.append(colored(make("bdi", "who", name), name));
            messages.append(item);
        }
        names.append(colored(make("li", "", name), name));
    }
}"""


@pytest.fixture(scope="module")
def started() -> Iterator[Browser]:
    with browser() as running:
        yield running


def say(view: Page, text: str) -> None:
    view.locator("#text").fill(text)
    view.keyboard.press("Enter")


@schemes
@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
def test_the_chat(started: Browser, tmp_path: Path, scheme: Scheme, phone: bool) -> None:
    picture = tmp_path / "red.png"
    Image.new("RGB", (320, 200), "red").save(picture)
    with (
        serve("examples.chat", "--message-rate=0.001") as server,
        page(started, server.url, scheme=scheme) as bob,
        page(started, server.url, scheme=scheme, phone=phone) as view,
    ):
        check(view, "Your name", "Join", "lobby")
        for one, name in ((bob, "bob"), (view, "ada")):
            one.locator("#join-name").fill(name)
            one.keyboard.press("Enter")
        expect(view.locator("#state")).to_have_text("connected")
        say(bob, "hello https://example.org/")
        expect(view.locator(".messages .text")).to_have_count(1)
        say(view, "line\n" * 30)
        expect(view.locator(".own .mark")).to_have_text("✓")
        view.locator("#file").set_input_files(picture)
        expect(view.locator(".picture img")).to_be_visible()
        for _ in range(20):
            say(view, "again")
        expect(view.locator(".sending.failed").first).to_contain_text("too fast")
        say(view, "x" * 4001)
        view.locator("#text").fill("")
        for hidden in ("banner", "drop", "newest"):
            view.evaluate(f"{hidden}.hidden = false")
        view.evaluate("banner.textContent = 'Other servers cannot be reached.'")
        if phone:
            view.locator("#people-button").tap()
        expect(view.locator("#names li")).to_have_text(["ada", "bob"])
        texts = ["Leave", "bob", "https://example.org/", "✓", "Show all", "again", "Send again"]
        texts += ["Message", "Send", "Other servers cannot be reached.", "New messages ↓"]
        check(view, *texts, "Drop the picture to send it")
        view.evaluate(EVERY_HUE)
        check(view)
        view.locator(".picture").focus()
        view.keyboard.press("Enter")
        expect(view.locator("#viewer-note")).to_be_empty()
        view.evaluate("document.getElementById('viewer-note').textContent = 'Loading…'")
        check(view, "Close", "Loading…")
        view.keyboard.press("Tab")
        view.keyboard.press("Escape")
        expect(view.locator("#viewer")).to_be_hidden()
        expect(view.locator(".picture")).to_be_focused()


@schemes
@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
def test_the_stream(started: Browser, tmp_path: Path, scheme: Scheme, phone: bool) -> None:
    for name in ("broken.mp4", "notes.txt"):
        (tmp_path / name).write_bytes(b"no video" * 100)
    with (
        serve("examples.stream", str(tmp_path)) as server,
        page(started, server.url, scheme=scheme, phone=phone) as view,
    ):
        view.get_by_role("link", name="broken.mp4").click()
        expect(view.locator("#playing")).to_contain_text("cannot play it")
        view.locator("#rate polyline").wait_for(state="attached")
        texts = ["Stream", "Live", "Pause", "One buffer is sent to all viewers.", "notes.txt"]
        check(view, *texts, "800 B", "All metrics", "Viewers", "0/s", "now", "0 B")


def test_what_is_measured(started: Browser) -> None:
    """Colours whose contrast is known: WCAG's greatest, and the lightest grey that is enough."""
    html = """<body style="background: #fff"><p style="color: #000">a</p>
        <div style="background: #000"><p style="color: #fff; opacity: 0.5">b</p></div>
        <p style="color: #767676">c</p><p style="color: #777">d</p>
        <h1 style="color: #949494; font-size: 24px">e</h1><p hidden>f</p>"""
    with page(started, f"data:text/html,{html.replace('#', '%23')}") as view:
        found = {each["text"]: each for each in view.evaluate(MEASURE)}
    assert found.keys() == set("abcde")
    ratios = {text: round(each["ratio"], 2) for text, each in found.items()}
    assert ratios == {"a": 21, "b": pytest.approx(5.28, abs=0.05), "c": 4.54, "d": 4.48, "e": 3.03}
    assert [text for text, each in found.items() if each["ratio"] < each["least"]] == ["d"]
