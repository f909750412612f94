"""Clients that are slow, go away in the middle, or flood, and what is given up by applications."""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from tests.asgi.applications import Application
from tests.asgi.rig import CLOSE, GET, body, failures, receive_all, serving, shake
from tests.asgi.test_files import sends
from tests.support.backends import one_backend
from tests.support.waiting import LIMIT, until
from zc_anyio.asgi import ClientDisconnectedError, Limits

pytestmark = pytest.mark.anyio

SIZE = 9 << 20


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large.bin"
    path.write_bytes(os.urandom(SIZE))
    return path


async def test_a_slow_client_that_makes_progress_gets_a_whole_file(
    large: Path, driver: str
) -> None:
    limits = Limits(stall_seconds=1.0, least_rate=1000)
    async with serving(sends(large), driver=driver, limits=limits) as rig:

        def run(sock: socket.socket) -> bytes:
            sock.sendall(GET % (b"/file", CLOSE))
            received = bytearray()
            # For longer than a client may take nothing.
            slow_until = time.monotonic() + 2.5
            while chunk := sock.recv(1 << 18):
                received += chunk
                if time.monotonic() < slow_until:
                    time.sleep(0.2)
            return bytes(received)

        answer = await rig.client(run, receive_buffer=64 << 10)
        assert body(answer) == large.read_bytes()
        # It was sent in pieces of what such a client takes in a second.
        assert rig.ring.statistics().sends > 4


async def test_a_client_that_goes_away_in_a_file_leaves_nothing(large: Path, driver: str) -> None:
    async with serving(sends(large), driver=driver) as rig:

        def run(sock: socket.socket) -> None:
            sock.sendall(GET % (b"/file", b""))
            sock.recv(1000)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        await rig.client(run, receive_buffer=4096)
        await until(lambda: rig.ring.statistics().failed > 0)
        await until(lambda: rig.ring.statistics().held == 0)


# --- WebSockets ---


async def listens(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


PING = b"\x89\x80" + bytes(4)
FLOODS = {
    "pings": PING * 5000,
    "pongs": b"\x8a\x80" + bytes(4) + PING * 5000,
    "empty fragments": b"\x01\x80" + bytes(4) + (b"\x00\x80" + bytes(4)) * 5000,
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_of_frames_that_bring_nothing_ends_a_websocket(kind: str) -> None:
    async with serving(Application(echo=listens)) as rig:

        def run(sock: socket.socket) -> bytes:
            sock.sendall(shake() + FLOODS[kind])
            return receive_all(sock)

        answer = await rig.client(run)
        assert struct.pack("!H", 1008) + b"flooding" in answer


@one_backend
async def test_few_pings_are_answered() -> None:
    async with serving(Application(echo=listens)) as rig:

        def run(sock: socket.socket) -> bytes:
            sock.sendall(shake() + PING * 100 + b"\x88\x80" + bytes(4))
            return receive_all(sock)

        assert body(await rig.client(run)).count(b"\x8a\x00") == 100


async def test_a_websocket_that_its_application_gives_up_is_reset(
    driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def gives_up(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        # More than the kernel takes.
        await send({"type": "websocket.send", "bytes": bytes(16 << 20)})
        raise ClientDisconnectedError("too slow")

    async with serving(Application(echo=gives_up), driver=driver) as rig:

        def run(sock: socket.socket) -> None:
            sock.sendall(shake())
            with pytest.raises(ConnectionResetError):
                while sock.recv(1 << 16):
                    # A reset that comes while the buffer here is full can be lost; this asks again.
                    sock.sendall(PING)
                    time.sleep(0.01)

        with anyio.fail_after(LIMIT):
            await rig.client(run, receive_buffer=4096)
        await until(lambda: rig.ring.statistics().held == 0)
    assert not failures(caplog)
