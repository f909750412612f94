"""Takes the pictures of the examples' pages, for docs/images.

``.venv/bin/python -m scripts.take_screenshots [stream] [chat]``; it needs Chromium and ffmpeg.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from PIL import Image, ImageOps
from playwright.sync_api import Page, expect

from tests.examples.stream.viewers import Viewers, watch
from tests.support.browser import browser, page
from tests.support.served import serve

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
BYTES_MOST = 200 * 1000
VIDEOS = {
    "A walk in the fractals.mp4": "mandelbrot=size=640x360:rate=10",
    "Test picture.mp4": "testsrc2=size=640x360:rate=10",
    "Life.mp4": "life=size=640x360:rate=10:mold=10:death_color=#203040:life_color=#80c0ff",
}


def make_videos(folder: Path) -> None:
    """Make videos to be listed and played."""
    for name, source in VIDEOS.items():
        command = ["ffmpeg", "-loglevel", "error", "-f", "lavfi", "-i", source, "-t", "8"]
        subprocess.run([*command, "-pix_fmt", "yuv420p", folder / name], check=True)


def shrink(path: Path) -> None:
    """Reduce a picture to 256 colours."""
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
    size = path.stat().st_size
    assert size < BYTES_MOST, f"{path} has {size} bytes"
    print(f"{path.relative_to(ROOT)}: {size} bytes")


def passed(until: float) -> bool:
    """Whether it is later than that."""
    return time.monotonic() > until


def stream() -> None:
    """Take the stream server's page, on a desk and on a phone."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_videos(folder)
        server = stack.enter_context(serve("examples.stream", str(folder), "--stall=600"))
        started = stack.enter_context(browser())
        viewers = stack.enter_context(Viewers(server, 40))
        for _ in range(5):
            stack.enter_context(watch(server, receive_buffer=4096))  # never reads
        for name, phone in (("stream.png", False), ("stream-phone.png", True)):
            with page(started, server.url, phone=phone) as opened:
                opened.get_by_role("link", name="fractals").click()
                for _ in range(40):
                    # The other viewers and the page get time in turns.
                    until = time.monotonic() + 0.25
                    viewers.read_until(partial(passed, until))
                    opened.wait_for_timeout(50)
                opened.evaluate("player.pause()")
                opened.screenshot(path=IMAGES / name, full_page=not phone)
            shrink(IMAGES / name)


def say(view: Page, *lines: str) -> None:
    """Say something in the chat, and wait until it is kept."""
    for line in lines:
        view.locator("#text").fill(line)
        view.locator("#text").press("Enter")
        expect(view.locator(".messages .own").last).to_contain_text("✓")


def chat() -> None:
    """Take the chat's page, on a desk and on a phone."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        picture = folder / "fractal.png"
        drawn = Image.effect_mandelbrot((640, 300), (-2.2, -0.8, 0.9, 0.65), 60)
        ImageOps.colorize(drawn, "#0b1f33", "#f0b35a", "#4fc3b3").save(picture)
        server = stack.enter_context(serve("examples.chat"))
        started = stack.enter_context(browser())
        views = []
        for name, phone in (("Ada", False), ("Grace", True), ("Mary", False), ("Emmy", False)):
            view = stack.enter_context(page(started, server.url, phone=phone))
            if not phone:
                view.set_viewport_size({"width": 1000, "height": 720})
            view.locator("#join-name").fill(name)
            view.locator("#join-name").press("Enter")
            expect(view.locator("#state")).to_have_class("state open")
            views.append(view)
        ada, grace, mary, emmy = views
        say(ada, "Good morning!", "Who has seen how deep this picture goes?")
        grace.locator("#file").set_input_files(picture)
        expect(grace.locator(".own .picture img")).to_be_visible()
        say(grace, "This one?  It never ends.")
        say(emmy, "It is its own picture, again and again.")
        say(mary, "One buffer, a thousand windows: https://example.org/fractals")
        say(ada, "That is the one.  Thank you all!")
        for view, name in ((ada, "chat.png"), (grace, "chat-phone.png")):
            expect(view.locator(".messages li")).to_have_count(7)
            view.screenshot(path=IMAGES / name)
            shrink(IMAGES / name)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    # The arguments name the pages; all of them by default.
    for take in [globals()[name] for name in sys.argv[1:]] or [stream, chat]:
        take()
