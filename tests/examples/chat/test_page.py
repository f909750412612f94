"""The page in a real browser: two people chat and exchange a picture, and nothing is markup."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright")

from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import browser, page
from tests.support.redis import redis_server
from tests.support.served import Served, serve

ATTACK = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def started() -> Iterator[Browser]:
    with browser() as running:
        yield running


@pytest.fixture
def served() -> Iterator[Served]:
    with serve("examples.chat") as server:
        yield server


def join(view: Page, name: str, room: str = "lobby") -> None:
    """Join by keyboard alone."""
    expect(view.locator("#join-name")).to_be_focused()
    view.keyboard.type(name)
    view.keyboard.press("Tab")
    view.locator("#join-room").fill(room)
    view.keyboard.press("Enter")
    expect(view.locator("#state")).to_have_text("connected")
    expect(view.locator("#text")).to_be_focused()


def test_two_people_chat_and_exchange_a_picture(
    started: Browser, served: Served, tmp_path: Path
) -> None:
    picture = tmp_path / "<b>red.png"
    Image.new("RGB", (320, 200), "red").save(picture)
    with page(started, served.url) as ada, page(started, served.url, phone=True) as bob:
        join(ada, "ada")
        join(bob, "bob")
        expect(ada.locator("#names li")).to_have_text(["ada", "bob"])
        expect(bob.locator("#count")).to_have_text("2")
        ada.keyboard.type("hello bob")
        ada.keyboard.press("Enter")
        expect(bob.locator(".messages .text")).to_have_text(["hello bob"])
        # Once it is kept, the sender sees that.
        expect(ada.locator(".own .mark")).to_have_text("✓")
        expect(ada.locator(".sending")).to_have_count(0)
        ada.keyboard.type(ATTACK)
        ada.keyboard.press("Enter")
        expect(bob.locator(".messages .text")).to_have_text(["hello bob", ATTACK])
        assert "owned" not in bob.title()
        assert bob.locator(".messages img, .messages script").count() == 0
        # A picture, by its button.
        bob.locator("#file").set_input_files(picture)
        for view in (ada, bob):
            image = view.locator(".picture img")
            expect(image).to_be_visible()
            image.evaluate("image => image.decode()")
            assert image.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [
                320,
                200,
            ]
            expect(image).to_have_attribute("alt", picture.name)
        ada.locator(".picture").click()
        expect(ada.locator("#viewer")).to_be_visible()
        ada.keyboard.press("Escape")
        expect(ada.locator("#viewer")).to_be_hidden()
        # A later member gets all of it; the picture is fetched when it is scrolled to.
        with page(started, served.url) as eve:
            join(eve, "eve")
            expect(eve.locator(".messages .text")).to_have_text(["hello bob", ATTACK])
            expect(eve.locator(".picture img")).to_be_visible()
        # The names of pictures and people are text as well.
        bob.locator("#leave").click()
        expect(ada.locator("#names li")).to_have_text(["ada"])


def test_a_large_picture_is_fetched_only_when_it_is_looked_at(
    started: Browser, served: Served, tmp_path: Path
) -> None:
    picture = tmp_path / "noise.png"
    side = 1500
    Image.frombytes("RGB", (side, side), random.Random(1).randbytes(3 * side * side)).save(picture)
    assert picture.stat().st_size > 6 << 20
    with page(started, served.url) as ada, page(started, served.url) as bob:
        join(ada, "ada")
        join(bob, "bob")
        asked: list[str] = []
        bob.on("request", lambda request: asked.append(request.url))
        ada.locator("#file").set_input_files(picture)
        image = bob.locator(".picture img")
        expect(image).to_be_visible()
        image.evaluate("image => image.decode()")
        assert image.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [480, 480]
        (preview,) = asked
        assert preview.endswith("/preview")
        # By keyboard: the picture's button, then Esc, or the button that has the focus.
        button = bob.get_by_role("button", name="Show noise.png, 6.4 MiB, from ada")
        viewer, viewed = bob.locator("#viewer"), bob.locator("#viewed")
        for key in ("Escape", "Enter"):
            button.focus()
            bob.keyboard.press("Enter")
            expect(viewer).to_be_visible()
            expect(bob.locator("#viewer-note")).to_be_empty()
            # The browser takes it from its cache, a moment later.
            expect(viewed).to_have_js_property("naturalWidth", side)
            expect(viewed).to_have_attribute("alt", "noise.png")
            expect(bob.get_by_role("button", name="Close")).to_be_focused()
            bob.keyboard.press(key)
            expect(viewer).to_be_hidden()
            expect(button).to_be_focused()
        assert preview.removesuffix("/preview") in asked
        # Closed and opened again before the event of closing comes.
        button.click()
        bob.evaluate(
            """() => {
                document.getElementById("viewer").close();
                document.querySelector(".picture").click();
            }"""
        )
        expect(viewed).to_have_js_property("naturalWidth", side)
        expect(bob.locator("#viewer-note")).to_be_empty()


def test_a_large_picture_without_a_preview_is_a_button(started: Browser, served: Served) -> None:
    with page(started, served.url, expected="EncodingError") as view:
        join(view, "ada")
        # It only begins like a picture, so the browser can make no preview of it.
        content = b"\x89PNG\r\n\x1a\n" + bytes(100_000)
        view.locator("#file").set_input_files(
            {"name": "odd.png", "mimeType": "image/png", "buffer": content}
        )
        button = view.locator(".picture")
        expect(button).to_have_text("odd.png, 98 KiB")
        button.click()
        expect(view.locator("#viewer-note")).to_have_text("This picture cannot be shown")
        view.get_by_role("button", name="Close").click()
        expect(view.locator("#viewer")).to_be_hidden()


def test_a_picture_is_dropped_into_the_room(started: Browser, served: Served) -> None:
    with page(started, served.url) as view:
        join(view, "ada")
        view.evaluate(
            """async () => {
                const canvas = document.createElement("canvas");
                canvas.width = canvas.height = 64;
                const blob = await new Promise((done) => canvas.toBlob(done));
                const transfer = new DataTransfer();
                transfer.items.add(new File([blob], "drawn.png", { type: "image/png" }));
                const init = { dataTransfer: transfer, bubbles: true, cancelable: true };
                window.dispatchEvent(new DragEvent("dragover", init));
                window.dispatchEvent(new DragEvent("drop", init));
            }"""
        )
        expect(view.locator(".picture img")).to_be_visible()
        expect(view.locator("#drop")).to_be_hidden()


def test_the_page_says_what_is_refused(started: Browser) -> None:
    with serve("examples.chat", "--message-rate=0.001") as served:
        with page(started, served.url) as view:
            join(view, "ada")
            for _ in range(25):
                view.keyboard.type("again")
                view.keyboard.press("Enter")
            expect(view.locator(".sending.failed").first).to_contain_text("too fast")
            expect(view.locator(".sending.failed").first.get_by_role("button")).to_be_visible()


def test_the_page_says_that_redis_is_gone_and_that_it_is_back(
    started: Browser, tmp_path: Path
) -> None:
    with redis_server(tmp_path) as redis, serve("examples.chat", f"--redis={redis.url}") as served:
        with page(started, served.url) as ada, page(started, served.url) as bob:
            join(ada, "ada")
            join(bob, "bob")
            expect(ada.locator("#banner")).to_be_hidden()
            redis.kill()
            expect(ada.locator("#banner")).to_contain_text("cannot be reached")
            ada.locator("#text").fill("are you there?")
            ada.keyboard.press("Enter")
            expect(bob.locator(".messages .text")).to_have_text(["are you there?"])
            expect(ada.locator(".own .mark")).to_have_text("…")
            redis.start()
            expect(ada.locator("#banner")).to_be_hidden()
            expect(ada.locator(".own .mark")).to_have_text("✓")
        # It has said what happened.  There may also be warnings about memory streams that coredis
        # does not close when it cannot connect.
        served.stop()
        assert "Redis cannot be reached" in served.errors
        assert "ERROR" not in served.errors, served.errors


def test_the_page_connects_again(started: Browser) -> None:
    refused = "ERR_CONNECTION_REFUSED"
    with serve("examples.chat") as served, page(started, served.url, expected=refused) as view:
        join(view, "ada")
        served.stop()
        expect(view.locator("#state")).to_have_text("reconnecting")
        expect(view.locator(".note").first).to_contain_text("going away")
        view.locator("#text").fill("is anybody there?")
        view.keyboard.press("Enter")
        expect(view.locator(".sending.failed")).to_contain_text("not connected")
        with serve("examples.chat", f"--port={served.port}"):
            expect(view.locator("#state")).to_have_text("connected")
            view.get_by_role("button", name="Send again").click()
            expect(view.locator(".messages .own .text")).to_have_text(["is anybody there?"])
        view.locator("#leave").click()


def test_what_people_write_stays_in_its_place(started: Browser, served: Served) -> None:
    hebrew = "\N{HEBREW LETTER ALEF}\N{HEBREW LETTER BET}\N{HEBREW LETTER GIMEL}"
    with page(started, served.url) as view:
        join(view, hebrew)
        view.locator("#text").fill("\u202eturned")
        view.keyboard.press("Enter")
        expect(view.locator(".own .text")).to_have_text(["turned"])
        # The name is on the left of the time, and a day is marked once.
        who, when = view.locator(".own .who"), view.locator(".own .when")
        expect(who).to_have_text(hebrew)
        assert who.evaluate("e => e.tagName") == "BDI"
        left, right = who.bounding_box(), when.bounding_box()
        assert left is not None
        assert right is not None
        assert left["x"] + left["width"] <= right["x"]
        view.locator("#text").fill("line\n" * 100)
        view.keyboard.press("Enter")
        long = view.locator(".own .text").last
        expect(long).to_have_class("text folded")
        folded = long.bounding_box()
        unfold = view.get_by_role("button", name="Show all")
        unfold.press("Enter")
        expect(view.get_by_role("button", name="Show less")).to_have_attribute(
            "aria-expanded", "true"
        )
        whole = long.bounding_box()
        assert folded is not None
        assert whole is not None
        assert whole["height"] > 3 * folded["height"]
        expect(view.locator(".day")).to_have_count(1)


def test_a_text_that_is_too_long_is_told_of_and_not_cut(started: Browser, served: Served) -> None:
    with page(started, served.url) as view:
        join(view, "ada")
        view.locator("#text").fill("x" * 4001)
        view.keyboard.press("Enter")
        expect(view.locator(".note")).to_have_text(
            "This message has 4001 characters; 4000 are the most."
        )
        expect(view.locator("#text")).to_have_value("x" * 4001)
        expect(view.locator(".sending")).to_have_count(0)


def test_the_page_refuses_a_room_that_cannot_have_that_name(
    started: Browser, served: Served
) -> None:
    with page(started, f"{served.url}#%F0%9F%8E%89") as view:
        view.locator("#join-name").fill("ada")
        view.keyboard.press("Enter")
        room = view.locator("#join-room")
        assert "letters, digits" in room.evaluate("e => e.validationMessage")
        expect(view.locator("#chat")).to_be_hidden()
        room.fill("Team-\xdc")
        view.keyboard.press("Enter")
        expect(view.locator("#room")).to_have_text("team-\xfc")
        expect(view.locator("#state")).to_have_text("connected")


def test_a_server_that_has_frozen_is_noticed_and_nothing_goes_out_later(
    started: Browser, served: Served
) -> None:
    # What the server sends when it goes on comes after the page has closed.
    with page(started, served.url, expected="after close") as ada:
        join(ada, "ada")
        served.process.send_signal(signal.SIGSTOP)
        try:
            expect(ada.locator("#state")).to_have_text("reconnecting")
            ada.locator("#text").fill("too late")
            ada.keyboard.press("Enter")
            expect(ada.locator(".sending.failed")).to_contain_text("not connected")
        finally:
            served.process.send_signal(signal.SIGCONT)
        expect(ada.locator("#state")).to_have_text("connected")
        with page(started, served.url) as bob:
            join(bob, "bob")
            bob.locator("#text").fill("hello")
            bob.keyboard.press("Enter")
            expect(bob.locator(".messages .text")).to_have_text(["hello"])


def test_two_people_of_one_name_are_told_apart(started: Browser, served: Served) -> None:
    with page(started, served.url) as one, page(started, served.url) as other:
        join(one, "alice")
        join(other, "alice")
        one.locator("#text").fill("it is me")
        one.keyboard.press("Enter")
        expect(one.locator(".own .text")).to_have_text(["it is me"])
        expect(other.locator(".messages .text")).to_have_text(["it is me"])
        expect(other.locator(".own")).to_have_count(0)
        expect(other.locator("#names li")).to_have_text(["alice", "alice-2"])
