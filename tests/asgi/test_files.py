"""Files: by path, by descriptor, by Starlette's responses and static files."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from tests.asgi.applications import Application
from tests.asgi.rig import CLOSE, GET, body, chunks, failures, header, serving, status
from tests.support.backends import one_backend
from tests.support.waiting import until
from zc_anyio.asgi import FileResponse, Limits

pytestmark = pytest.mark.anyio

SIZE = 9 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A large file, a small one and an empty one."""
    (tmp_path / "large.bin").write_bytes(os.urandom(SIZE))
    (tmp_path / "small.txt").write_bytes(os.urandom(5000))
    (tmp_path / "empty.txt").write_bytes(b"")
    return tmp_path


def sends(path: Path, **fields: Any) -> Application:
    """Return an application that sends a file by its path."""

    async def file(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, **fields})
        await send({"type": "http.response.pathsend", "path": str(path)})

    return Application(file=file)


async def test_a_file_by_its_path(folder: Path, driver: str) -> None:
    for name in ("large.bin", "small.txt", "empty.txt"):
        content = (folder / name).read_bytes()
        async with serving(sends(folder / name), driver=driver) as rig:
            answer = await rig.ask(
                b"HEAD /file HTTP/1.1\r\nHost: a\r\n\r\n"
                + GET % (b"/file", b"")
                + GET % (b"/hello", CLOSE)
            )
            sent = rig.ring.statistics()
        # HEAD's answer says it as well, unless GET's answer might be different.
        said = answer.count(b"content-length: %d\r\n" % len(content))
        assert said == (2 if content else 1)
        assert b"\r\n\r\n" + content + b"HTTP/1.1 200 OK\r\n" in answer
        assert sent.bytes_sent == len(answer)
        # Three heads, and of the large file a small piece of its map and one for each 4 MiB.
        assert sent.sends == (7 if len(content) == SIZE else 3)


async def test_static_files_of_starlette(folder: Path, driver: str) -> None:
    app = Starlette(routes=[Mount("/static", StaticFiles(directory=folder))])
    async with serving(app, driver=driver) as rig:
        answer = await rig.get("/static/large.bin")
        assert (status(answer), body(answer)) == (200, (folder / "large.bin").read_bytes())
        sent = rig.ring.statistics()
        assert sent.bytes_sent == len(answer)
        # In pieces of the map, not in pieces that were read.
        assert sent.sends <= 8
        etag = f"If-None-Match: {header(answer, 'etag')}\r\n".encode()
        assert status(await rig.get("/static/large.bin", etag)) == 304
        assert status(await rig.get("/static/none")) == 404
        assert status(await rig.get("/static/..%2f..%2fetc/passwd")) == 404


def by_descriptor(path: Path) -> Application:
    async def file(scope: dict[str, Any], receive: Any, send: Any) -> None:
        with path.open("rb") as opened:
            opened.seek(1000)
            headers = [(b"content-length", b"%d" % (3 + 2000 + SIZE - 2000 + 5))]
            if scope["query_string"] == b"chunked":
                headers = []
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"abc", "more_body": True})
            part = {"type": "http.response.zerocopysend", "more_body": True}
            # From the file's position, and then from the new position on.
            await send({**part, "file": opened.fileno(), "count": 500})
            await send({**part, "file": opened, "count": 500})
            await send({**part, "file": opened, "offset": 0, "count": 1000})
            await send({**part, "file": opened})
            await send({"type": "http.response.body", "body": b"defgh"})

    return Application(file=file)


async def test_parts_of_a_file_among_others(folder: Path, driver: str) -> None:
    content = (folder / "large.bin").read_bytes()
    parts = [content[1000:1500], content[1500:2000], content[:1000], content[2000:]]
    async with serving(by_descriptor(folder / "large.bin"), driver=driver) as rig:
        answer = await rig.get("/file?chunked")
        assert chunks(answer) == [b"abc", *parts, b"defgh", b""]
        assert body(await rig.get("/file")) == b"abc" + b"".join(parts) + b"defgh"


@one_backend
async def test_a_file_that_is_not_there_is_the_applications_error(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (folder / "none", folder):
        async with serving(sends(path)) as rig:
            assert status(await rig.get("/file")) == 500
    assert len(failures(caplog)) == 2


@one_backend
async def test_a_file_that_has_grown_is_sent_with_its_announced_size(folder: Path) -> None:
    content = (folder / "small.txt").read_bytes()
    for length, expected in ((1000, 200), (len(content), 200), (len(content) + 1, 500)):
        headers = [(b"content-length", b"%d" % length)]
        async with serving(sends(folder / "small.txt", headers=headers)) as rig:
            answer = await rig.get("/file")
            assert status(answer) == expected
            if expected == 200:
                assert body(answer) == content[:length]


@one_backend
async def test_a_file_that_is_truncated_meanwhile_ends_the_connection_early(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, size = folder / "large.bin", 64 << 20
    async with serving(sends(path)) as rig:

        def run(sock: socket.socket) -> None:
            sock.sendall(GET % (b"/file", b""))
            sock.recv(1000)
            os.truncate(path, 1000)
            received = 0
            # The stream is shut down for sending, and reset when it is closed: which of them the
            # client meets first depends on how fast it reads.
            with suppress(ConnectionResetError):
                while chunk := sock.recv(1 << 16):
                    received += len(chunk)
            assert received < size

        path.write_bytes(bytes(size))
        await rig.client(run, receive_buffer=4096)
    # Told in one line, and not as an error of the application.
    assert failures(caplog) == [f"{path} was truncated while it was sent"]
    assert not any(record.exc_info for record in caplog.records)


async def test_a_client_that_stalls_in_a_file_holds_nothing(folder: Path, driver: str) -> None:
    (folder / "large.bin").write_bytes(bytes(64 << 20))
    app = sends(folder / "large.bin")
    async with serving(app, driver=driver, limits=Limits(stall_seconds=0.5)) as rig:
        sock = await anyio.to_thread.run_sync(lambda: rig.connect(receive_buffer=4096))
        with sock:
            sock.sendall(GET % (b"/file", b""))
            await until(lambda: rig.ring.statistics().bytes_sent > 10_000)
            await until(lambda: rig.ring.statistics().failed > 0)
        await until(lambda: rig.ring.statistics().held == 0)


# --- FileResponse ---


def starlette(path: Path, done: list[str] | None = None) -> Starlette:
    async def file(request: Request) -> Response:
        background = None if done is None else BackgroundTask(done.append, "done")
        return FileResponse(path, background=background)

    return Starlette(routes=[Route("/file", file)])


@pytest.mark.parametrize(
    "wanted",
    ["0-0", "1000-", "-1000", "5-5000000", "3000000-4000000", "0-99999999999"],
)
@one_backend
async def test_a_range_goes_out_without_being_read(folder: Path, wanted: str) -> None:
    content = (folder / "large.bin").read_bytes()
    first, _, last = wanted.partition("-")
    start = int(first) if first else SIZE - int(last)
    end = min(SIZE, int(last) + 1) if first and last else SIZE
    async with serving(starlette(folder / "large.bin")) as rig:
        answer = await rig.get("/file", f"Range: bytes={wanted}\r\n".encode())
        assert status(answer) == 206
        assert header(answer, "content-range") == f"bytes {start}-{end - 1}/{SIZE}"
        assert header(answer, "content-length") == str(end - start)
        assert body(answer) == content[start:end]
        # Starlette's own would have sent 64 KiB at a time.
        assert rig.ring.statistics().sends <= 8


async def test_several_ranges(folder: Path, driver: str) -> None:
    content = (folder / "large.bin").read_bytes()
    async with serving(starlette(folder / "large.bin"), driver=driver) as rig:
        answer = await rig.get("/file", b"Range: bytes=0-9, 3000000-3999999, 20-29\r\n")
        assert status(answer) == 206
        kind = header(answer, "content-type") or ""
        boundary = kind.partition("boundary=")[2].encode()
        assert kind.startswith("multipart/byteranges")
        assert header(answer, "content-length") == str(len(body(answer)))
        *parts, end = body(answer).split(b"--" + boundary)[1:]
        assert end == b"--"
        found = [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts]
        assert found == [content[:10], content[20:30], content[3000000:4000000]]


@one_backend
async def test_conditions_and_headers_that_are_not_ranges(folder: Path) -> None:
    content = (folder / "small.txt").read_bytes()
    async with serving(starlette(folder / "small.txt")) as rig:
        answer = await rig.get("/file")
        assert (status(answer), body(answer)) == (200, content)
        etag, modified = header(answer, "etag"), header(answer, "last-modified")
        for condition, expected in ((etag, 206), (modified, 206), ('"other"', 200)):
            fields = f"Range: bytes=1-2\r\nIf-Range: {condition}\r\n".encode()
            answer = await rig.get("/file", fields)
            assert status(answer) == expected
            assert body(answer) == (content[1:3] if expected == 206 else content)
        assert status(await rig.get("/file", b"Range: bytes=5000-\r\n")) == 416
        assert status(await rig.get("/file", b"Range: lines=1-2\r\n")) == 400
        head = await rig.ask(b"HEAD /file HTTP/1.1\r\nHost: a\r\n" + CLOSE + b"\r\n")
        assert (header(head, "content-length"), body(head)) == ("5000", b"")


@one_backend
async def test_background_tasks_run_once_when_the_file_is_sent(folder: Path) -> None:
    done: list[str] = []
    async with serving(starlette(folder / "small.txt", done)) as rig:
        await rig.get("/file")
        await rig.get("/file", b"Range: bytes=1-2\r\n")
    assert done == ["done", "done"]


@one_backend
async def test_under_another_server_it_is_starlettes_own(folder: Path) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        await anyio.sleep_forever()

    scope: dict[str, Any] = {"type": "http", "method": "GET", "headers": [(b"range", b"bytes=1-2")]}
    await FileResponse(folder / "small.txt")(
        {**scope, "asgi": {"spec_version": "2.4"}}, receive, send
    )
    assert b"".join(m.get("body", b"") for m in sent) == (folder / "small.txt").read_bytes()[1:3]
