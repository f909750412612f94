"""The page in a real browser: videos play and seek, the live picture moves, the status is drawn."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from examples.stream.picture import CODE_BITS
from tests.examples.stream.viewers import watch
from tests.support.browser import browser, page
from tests.support.needs import need_command
from tests.support.served import Served, serve
from tests.support.waiting import until_blocking

NAME = "Über <b> & 100% #1?.webm"
SECONDS = 20
MINUTES = ["now", *(f"\N{MINUS SIGN}{minutes} min" for minutes in range(1, 6))]
# What the console says of a server that has gone.
UNREACHABLE = "Failed to load resource"
X264 = ["-c:v", "libx264", "-preset", "ultrafast"]
# The frame's number, read from the squares that are drawn at the bottom of the picture.
READ_CODE = f"""() => {{
    const picture = document.getElementById("picture");
    const canvas = document.createElement("canvas");
    canvas.width = picture.naturalWidth;
    canvas.height = picture.naturalHeight;
    if (!canvas.width) return 0;
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0);
    let number = 0;
    for (let bit = 0; bit < {CODE_BITS}; bit++) {{
        const x = (bit + 0.5) * canvas.width / {CODE_BITS};
        const [value] = context.getImageData(x, canvas.height * 0.95, 1, 1).data;
        number = number * 2 + (value > 128 ? 1 : 0);
    }}
    return number;
}}"""


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos that Chromium plays."""
    ffmpeg = need_command("ffmpeg", "ffmpeg")
    folder = tmp_path_factory.mktemp("videos")
    source = ["-f", "lavfi", "-i", f"testsrc=size=160x90:rate=5:duration={SECONDS}"]
    for name, coding in (
        ("film.mp4", [*X264, "-pix_fmt", "yuv420p", "-movflags", "+faststart"]),
        (NAME, ["-c:v", "libvpx", "-deadline", "realtime", "-cpu-used", "8"]),
    ):
        command = [ffmpeg, "-loglevel", "error", *source, *coding, folder / name]
        subprocess.run(command, check=True, timeout=50)
    (folder / "broken.mp4").write_bytes(b"no video" * 100)
    return folder


@pytest.fixture(scope="module")
def started() -> Iterator[Browser]:
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def server(videos: Path) -> Iterator[Served]:
    with serve("examples.stream", str(videos)) as served:
        yield served


def until(opened: Page, condition: str) -> None:
    opened.wait_for_function(condition)


@pytest.mark.parametrize("name", ["film.mp4", NAME])
def test_a_video_plays_and_seeks(server: Served, started: Browser, name: str) -> None:
    with page(started, server.url) as opened:
        opened.get_by_role("link", name=name).click()
        until(opened, "() => player.duration > 0 && player.currentTime > 0.3")
        assert opened.evaluate("player.duration") == pytest.approx(SECONDS, abs=0.5)
        assert opened.locator("#playing").text_content() == name
        opened.evaluate(f"player.currentTime = {SECONDS - 4}")
        until(opened, f"() => !player.seeking && player.currentTime > {SECONDS - 3.8}")
        assert opened.evaluate("player.error") is None
        # It shows what is there at that time, and not the beginning.
        assert opened.evaluate("player.videoWidth") == 160
    assert server.metrics()['http_requests_total{status="206"}'] > 0


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_the_live_picture_moves_and_its_number_grows(
    videos: Path, backend: str, started: Browser
) -> None:
    with (
        serve("examples.stream", str(videos), f"--backend={backend}") as server,
        page(started, server.url) as opened,
    ):
        until(opened, f"() => ({READ_CODE})() > 0")
        first = opened.evaluate(READ_CODE)
        until(opened, f"() => ({READ_CODE})() > {first + 5}")
        before = opened.locator("#picture").screenshot()
        seen = opened.evaluate(READ_CODE)
        until(opened, f"() => ({READ_CODE})() > {seen}")
        assert opened.locator("#picture").screenshot() != before


def test_pausing_ends_the_stream_and_going_on_begins_it_again(
    server: Served, started: Browser
) -> None:
    with page(started, server.url) as opened:
        until(opened, f"() => ({READ_CODE})() > 0")
        button = opened.get_by_role("button", name="Pause")
        button.focus()
        opened.keyboard.press("Space")
        viewers = "[data-metric=stream_viewers]"
        until(opened, f"() => document.querySelector('{viewers}').textContent === '0'")
        still = opened.evaluate(READ_CODE)
        assert still > 0
        opened.keyboard.press("Space")
        until(opened, f"() => ({READ_CODE})() > {still}")


def test_the_status_is_drawn_from_the_metrics(server: Served, started: Browser) -> None:
    with page(started, server.url) as opened:
        frames = opened.locator("[data-metric=stream_frames_total]")
        until(opened, "() => document.getElementById('rate-now').textContent !== ''")
        before = int((frames.text_content() or "").replace(",", ""))
        until(
            opened,
            "() => Number(document.querySelector('[data-metric=stream_frames_total]')"
            f".textContent.replace(',', '')) > {before}",
        )
        serving = opened.locator("#serving").text_content() or ""
        assert serving.startswith("Event loop: ")
        assert "Driver: " in serving
        assert all(opened.locator("[data-metric]").all_text_contents())


def rate_line(opened: Page) -> list[tuple[float, float]]:
    """Return the points of the line of frames a second."""
    drawn = opened.locator("#rate polyline").first.get_attribute("points") or ""
    return [(float(x), float(y)) for x, y in (point.split(",") for point in drawn.split())]


def test_the_graphs_have_axes_and_a_past(videos: Path, started: Browser) -> None:
    with serve("examples.stream", str(videos), "--fps=50") as server:
        with watch(server) as viewer:
            deadline = time.monotonic() + 4
            while time.monotonic() < deadline:
                viewer.recv(1 << 20)
        began = time.time()
        with page(started, server.url) as opened:
            # The page does not watch.
            opened.locator("#pause").click()
            opened.locator("#rate polyline").wait_for(state="attached")
            points = rate_line(opened)
            # More than the page can have seen itself.
            assert len(points) > time.time() - began + 1
            box = opened.locator("#rate").bounding_box()
            assert box is not None
            assert points == sorted(points)
            assert 0 < points[0][0] < points[-1][0] <= box["width"]
            labels = opened.locator("#rate text").all_text_contents()
            assert labels[0] == "0/s"
            # The second if a sample was taken a little late.
            assert labels[1:3] in (["25/s", "50/s"], ["50/s", "100/s"])
            assert labels[3:] == MINUTES
            labels = opened.locator("#held text").all_text_contents()
            assert labels[0] == "0 B"
            assert labels[2].endswith(" MiB")
            assert labels[3:] == MINUTES
            # The first watched 50 frames a second, which are above half of the graph.
            assert min(y for _, y in points) < box["height"] / 2 + 20
            # It goes on.
            until(
                opened,
                "() => document.querySelector('#rate polyline').getAttribute('points')"
                f".split(' ').length > {len(points)}",
            )


def test_the_history_is_told_whatever_is_asked(server: Served) -> None:
    until_blocking(lambda: json.loads(server.ask("/history?after=nonsense").body)["samples"])
    told = json.loads(server.ask("/history").body)
    assert told["seconds"] == 300
    last, _, held = told["samples"][-1]
    assert held >= 0
    later = json.loads(server.ask(f"/history?after={last}").body)["samples"]
    assert all(at > last for at, _, _ in later)
    assert len(later) < len(told["samples"])


def test_it_works_by_keyboard(server: Served, started: Browser) -> None:
    with page(started, server.url) as opened:
        for _ in range(20):
            opened.keyboard.press("Tab")
            if opened.evaluate("document.activeElement.textContent") == "film.mp4":
                break
        opened.keyboard.press("Enter")
        until(opened, "() => player.currentTime > 0.2")
        assert opened.evaluate("document.activeElement.id") == "player"


def test_it_fits_a_phone(server: Served, started: Browser) -> None:
    with page(started, server.url, phone=True) as opened:
        opened.get_by_role("link", name="film.mp4").tap()
        until(opened, "() => player.currentTime > 0.2")
        width = opened.evaluate("document.documentElement.scrollWidth")
        assert width <= opened.evaluate("window.innerWidth")
        for target in opened.locator("button, .files a").all():
            box = target.bounding_box()
            assert box is not None
            assert box["height"] >= 40


def test_a_file_that_is_not_a_video_is_reported(server: Served, started: Browser) -> None:
    with page(started, server.url) as opened:
        opened.get_by_role("link", name="broken.mp4").click()
        until(opened, "() => playing.textContent.startsWith('This browser cannot play it')")


def test_the_picture_comes_back_after_the_server_did(videos: Path, started: Browser) -> None:
    with serve("examples.stream", str(videos)) as first:
        with page(started, first.url, expected=UNREACHABLE) as opened:
            until(opened, f"() => ({READ_CODE})() > 0")
            first.stop()
            until(opened, "() => serving.textContent === 'The server does not answer.'")
            with serve("examples.stream", str(videos), f"--port={first.port}"):
                until(opened, "() => serving.textContent.startsWith('Event loop')")
                until(opened, f"() => ({READ_CODE})() > 0")


@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_picture_that_has_frozen_is_noticed_and_asked_for_again(
    videos: Path, started: Browser, how: str
) -> None:
    with serve("examples.stream", str(videos)) as first:
        with page(started, first.url, expected=UNREACHABLE) as opened:
            until(opened, f"() => ({READ_CODE})() > 0")
            if how == "killed":
                first.process.kill()
                first.process.communicate()
                with serve("examples.stream", str(videos), f"--port={first.port}"):
                    moves(opened)
            else:
                first.process.send_signal(signal.SIGSTOP)
                try:
                    note = "document.getElementById('live-note').textContent"
                    until(opened, f"() => {note}.startsWith('No frames come')")
                finally:
                    first.process.send_signal(signal.SIGCONT)
                moves(opened)


def moves(opened: Page) -> None:
    """Wait until the picture has changed twice."""
    for _ in range(2):
        seen = opened.evaluate(READ_CODE)
        until(opened, f"() => ({READ_CODE})() !== {seen}")
