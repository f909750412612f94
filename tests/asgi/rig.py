"""The ASGI server in this process, and blocking clients in threads."""

from __future__ import annotations

import base64
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import pytest
from websockets.sync.client import ClientConnection, connect

import zc_anyio
from tests.support.waiting import LIMIT
from zc_anyio.asgi import Limits, serve

T = TypeVar("T")

GET = b"GET %s HTTP/1.1\r\nHost: a\r\n%s\r\n"
CLOSE = b"Connection: close\r\n"
SHAKE = (
    b"GET /%b HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n%%b\r\n"
)


class Rig:
    """A running server, and clients of it.

    :ivar ring: the ring that it sends through.
    :ivar stop: stops it gracefully.
    :ivar stopped: it has ended.
    """

    def __init__(self, ring: zc_anyio.Ring, url: str) -> None:
        self.ring = ring
        self.url = url
        self.port = int(url.rpartition(":")[2])
        self.stop = anyio.Event()
        self.stopped = anyio.Event()

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        """Return a connection; the caller closes it."""
        sock = socket.socket()
        sock.settimeout(LIMIT)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            sock.connect(("127.0.0.1", self.port))
        except OSError:
            sock.close()
            raise
        return sock

    async def client(self, function: Callable[[socket.socket], T], **options: int) -> T:
        """Run a client in a thread, with a connection."""

        def run() -> T:
            with self.connect(**options) as sock:
                return function(sock)

        return await anyio.to_thread.run_sync(run)

    async def ask(self, *pieces: bytes) -> bytes:
        """Send bytes, and return all that comes until the server closes."""

        def run(sock: socket.socket) -> bytes:
            for piece in pieces:
                sock.sendall(piece)
            return receive_all(sock)

        return await self.client(run)

    async def get(self, target: str, headers: bytes = b"") -> bytes:
        """Ask for something on a connection of its own."""
        return await self.ask(GET % (target.encode(), headers + CLOSE))


def receive_all(sock: socket.socket) -> bytes:
    """Receive until the end."""
    received = bytearray()
    while chunk := sock.recv(1 << 18):
        received += chunk
    return bytes(received)


def receive_answer(sock: socket.socket, size: int) -> bytes:
    """Receive a head, and a body of a size that is known; return the body."""
    received = bytearray()
    while b"\r\n\r\n" not in received or len(received.partition(b"\r\n\r\n")[2]) < size:
        chunk = sock.recv(1 << 18)
        assert chunk, received
        received += chunk
    return bytes(received.partition(b"\r\n\r\n")[2])


def status(answer: bytes) -> int:
    """Return the status of an answer."""
    assert answer.startswith(b"HTTP/1.1 "), answer
    return int(answer.split(b" ", 2)[1])


def body(answer: bytes) -> bytes:
    """Return what follows the head."""
    return answer.partition(b"\r\n\r\n")[2]


def header(answer: bytes, name: str) -> str | None:
    """Return a header of an answer."""
    for line in answer.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name.encode():
            return value.strip().decode()
    return None


def chunks(answer: bytes) -> list[bytes]:
    """Return the chunks of a body, including the last, empty one."""
    rest, found = body(answer), []
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        found.append(rest[:length])
        if not length:
            return found
        assert rest[length : length + 2] == b"\r\n"
        rest = rest[length + 2 :]


@asynccontextmanager
async def serving(
    app: Any, *, driver: str = "auto", limits: Limits | None = None, **options: Any
) -> AsyncIterator[Rig]:
    """Serve an application on a free port; stopped gracefully at the end."""
    async with zc_anyio.open_ring(driver=driver) as ring:  # type: ignore[arg-type]
        async with anyio.create_task_group() as tasks:
            stop = anyio.Event()
            stopped = anyio.Event()

            async def run(*, task_status: Any) -> None:
                await serve(
                    app, port=0, stop=stop, limits=limits, task_status=task_status, **options
                )
                stopped.set()

            (url,) = await tasks.start(run)
            rig = Rig(ring, url)
            rig.stop, rig.stopped = stop, stopped
            yield rig
            stop.set()
            with anyio.fail_after(LIMIT):
                await stopped.wait()


def failures(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged as an error."""
    return [record.message for record in caplog.records if record.levelno >= logging.ERROR]


def shake(path: bytes = b"echo", *fields: bytes) -> bytes:
    """Return a request for a WebSocket."""
    return SHAKE % (path, base64.b64encode(os.urandom(16))) % b"".join(fields)


async def client(
    rig: Rig, path: str, run: Callable[[ClientConnection], Any], **options: Any
) -> Any:
    """Run a WebSocket client in a thread."""

    def connected() -> Any:
        url = f"ws://127.0.0.1:{rig.port}/{path}"
        with connect(url, open_timeout=LIMIT, close_timeout=LIMIT, **options) as websocket:
            return run(websocket)

    return await anyio.to_thread.run_sync(connected)
