"""The live picture: what viewers get, and what slow and stalled ones cost the others."""

from __future__ import annotations

import io
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial
from http.client import HTTPResponse
from pathlib import Path

import pytest
from PIL import Image

from examples.stream.picture import CODE_BITS, Picture
from tests.examples.stream.viewers import Viewers, watch
from tests.support.served import COMBINATIONS, LIMIT, Served, serve

STALLED = 20
VIEWERS = 200


def read_code(image: Image.Image) -> int:
    """Return the frame's number that is drawn as squares."""
    grey = image.convert("L")
    side = grey.width / CODE_BITS
    bits = [
        grey.getpixel((int((at + 0.5) * side), int(grey.height * 0.95))) for at in range(CODE_BITS)
    ]
    return int("".join("1" if bit > 128 else "0" for bit in bits), 2)  # type: ignore[operator]


def read_parts(
    sock: socket.socket, count: int, between: Callable[[], object] = lambda: None
) -> list[tuple[int, bytes]]:
    """Read parts of the live picture; return the number and the picture of each."""
    with HTTPResponse(sock) as file:
        file.begin()
        assert file.status == 200
        assert file.headers["content-type"] == "multipart/x-mixed-replace; boundary=frame"
        return _read_parts(file, count, between)


def _read_parts(
    file: HTTPResponse, count: int, between: Callable[[], object]
) -> list[tuple[int, bytes]]:
    assert file.readline() == b"--frame\r\n"
    parts = []
    for _ in range(count):
        lines = [line.decode().partition(": ") for line in iter(file.readline, b"\r\n")]
        fields = {name: value.strip() for name, _, value in lines}
        assert fields["Content-Type"] == "image/jpeg"
        parts.append((int(fields["X-Frame"]), file.read(int(fields["Content-Length"]))))
        assert file.read(11) == b"\r\n--frame\r\n"
        between()
    return parts


@contextmanager
def stalled_viewers(server: Served, count: int) -> Iterator[list[socket.socket]]:
    """Connections that ask for the picture and never read."""
    with ExitStack() as stack:
        yield [stack.enter_context(watch(server, receive_buffer=4096)) for _ in range(count)]


def until_metric(server: Served, condition: Callable[[dict[str, float]], object]) -> None:
    until = time.monotonic() + LIMIT
    while not condition(values := server.metrics()):
        assert time.monotonic() < until, values
        time.sleep(0.05)


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_frames_are_pictures_in_order_with_their_number_in_them(
    combination: str, tmp_path: Path
) -> None:
    with serve("examples.stream", str(tmp_path), "--fps=100", *combination.split()) as server:
        with watch(server) as sock:
            parts = read_parts(sock, 5)
        numbers = [number for number, _ in parts]
        assert numbers == sorted(set(numbers))
        for number, data in parts:
            image = Image.open(io.BytesIO(data))
            image.load()
            assert image.format == "JPEG"
            assert read_code(image) == number
        until_metric(server, lambda values: values["stream_viewers"] == 0)
        assert server.ask("/live", method="HEAD").status == 200


def test_clients_without_chunks_get_the_same_picture(tmp_path: Path) -> None:
    with serve("examples.stream", str(tmp_path), "--fps=50") as server:
        with server.connect() as old, watch(server) as new:
            old.sendall(b"GET /live HTTP/1.0\r\n\r\n")
            for sock in (old, new):
                for number, data in read_parts(sock, 3):
                    assert read_code(Image.open(io.BytesIO(data))) == number


def test_a_slow_viewer_skips_frames_and_stays(tmp_path: Path) -> None:
    with serve("examples.stream", str(tmp_path), "--fps=50") as server:

        def ten_frames() -> None:
            until = server.metrics()["stream_frames_total"] + 10
            until_metric(server, lambda values: values["stream_frames_total"] >= until)

        with watch(server, receive_buffer=32 << 10) as sock:
            parts = read_parts(sock, 8, ten_frames)
            values = server.metrics()
        numbers = [number for number, _ in parts]
        assert numbers == sorted(set(numbers))
        # 80 were rendered meanwhile; what is on its way already is not skipped.
        assert numbers[-1] - numbers[0] > 20
        assert values["stream_frames_skipped_total"] > 0
        assert values["stream_viewers_dropped_total"] == 0
        for number, data in parts:
            assert read_code(Image.open(io.BytesIO(data))) == number


def test_a_frame_that_does_not_fit_its_buffer_is_refused() -> None:
    picture = Picture(320, 180)
    room = picture.room()
    now = datetime.now().astimezone()
    view = memoryview(bytearray(room))
    part = picture.encode(7, now, view)
    assert part.chunk.tobytes() == b"%x\r\n%b\r\n" % (len(part.bare), part.bare.tobytes())
    assert len(part.chunk) <= room
    with pytest.raises(ValueError):
        picture.encode(7, now, view[: len(part.chunk) // 2])


def test_stalled_viewers_change_nothing_for_the_others(tmp_path: Path) -> None:
    """200 viewers, 20 of them stalled: the others get every frame; memory is bounded."""
    arguments = ["--fps=5", "--stall=600", f"--viewers={VIEWERS}", "--driver=io_uring"]
    with serve("examples.stream", str(tmp_path), *arguments) as server:
        with stalled_viewers(server, STALLED):
            until_metric(server, lambda values: values["stream_viewers_stalled"] == STALLED)
            with Viewers(server, VIEWERS - STALLED) as viewers:
                assert server.ask("/live").status == 503  # one more
                viewers.read_until(lambda: all(viewers.frames))
                first = max(seen[0] for seen in viewers.frames)
                memory = []
                for last in (first + 10, first + 20):
                    viewers.read_until(partial(viewers.all_have_seen, last))
                    memory.append(server.metrics())
                assert not viewers.ended
                assert memory[-1]["stream_viewers_stalled"] == STALLED
                # Every frame from the first to the last, of which there were 20.
                for seen in viewers.frames:
                    got = [number for number in seen if first <= number <= last]
                    assert len(got) >= 0.9 * (last - first + 1), got
                frame = (
                    memory[-1]["stream_live_bytes_total"]
                    / (memory[-1]["stream_frames_delivered_total"])
                )
                # Between two frames only the stalled have anything outstanding: two frames each,
                # for which the kernel accounts up to four times as much.
                until_metric(
                    server,
                    lambda values: (
                        values["stream_unacknowledged_bytes"] < STALLED * 2.2 * frame
                        and values["stream_kernel_bytes"] < STALLED * 8 * frame
                    ),
                )
                for values in memory:
                    assert values["stream_kernel_bytes_most"] < 8 * frame


@pytest.mark.parametrize("combination", ["--backend=trio --driver=io_uring", "--driver=copy"])
def test_a_stalled_viewer_is_dropped_and_holds_nothing_any_more(
    combination: str, tmp_path: Path
) -> None:
    arguments = ["--fps=10", "--stall=2", *combination.split()]
    with serve("examples.stream", str(tmp_path), *arguments) as server:
        with stalled_viewers(server, 3), Viewers(server, 3) as viewers:

            def dropped() -> bool:
                return server.metrics()["stream_viewers_dropped_total"] == 3

            viewers.read_until(dropped)
            seen = [len(frames) for frames in viewers.frames]
            viewers.read_until(
                lambda: all(
                    len(frames) > before + 5
                    for frames, before in zip(viewers.frames, seen, strict=True)
                )
            )
            until_metric(
                server,
                lambda values: (
                    values["stream_viewers"] == 3
                    and values["stream_kernel_bytes"] < 3 * 2 * 100_000
                    and values.get("zc_anyio_held_sends", 0) < 10
                ),
            )
            assert not viewers.ended


def test_a_stop_ends_the_picture_though_viewers_stall(tmp_path: Path) -> None:
    with serve("examples.stream", str(tmp_path), "--fps=20") as server:
        with stalled_viewers(server, 2), Viewers(server, 2) as viewers:
            viewers.read_until(lambda: all(len(frames) > 5 for frames in viewers.frames))
            assert server.stop() == ""
            assert server.process.returncode == 0
            viewers.read_until(lambda: len(viewers.ended) == 2)
