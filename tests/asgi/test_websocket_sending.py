"""How messages of WebSockets leave: by reference, whole, in order, and not after a close."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from functools import partial
from types import FrameType
from typing import Any

import anyio
import pytest
from websockets.sync.client import ClientConnection
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, TextMessage

import zc_anyio
from tests.asgi.rig import body, client, failures, receive_all, serving, shake
from tests.support.backends import one_backend
from tests.support.waiting import LIMIT, until
from zc_anyio.asgi import websocket_frame

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 1 << 20])
def test_frames_are_those_of_wsproto(size: int) -> None:
    connection = Connection(ConnectionType.SERVER)
    assert websocket_frame("a" * size) == connection.send(TextMessage(data="a" * size))
    assert websocket_frame(bytes(size)) == connection.send(BytesMessage(data=bytes(size)))
    if size:
        text = "ü" * (size // 2)
        assert websocket_frame(text) == connection.send(TextMessage(data=text))


@one_backend
@pytest.mark.parametrize("compression", ["deflate", None])
async def test_a_large_message_is_sent_by_reference_and_what_changes_is_copied(
    compression: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, changing = os.urandom(1 << 20), bytearray(os.urandom(200_000))
    expected = bytes(changing)
    sent: list[object] = []

    def send_nowait(stream: zc_anyio.ZeroCopySocketStream, parts: Any) -> None:
        sent.extend(parts)
        original(stream, parts)

    original = zc_anyio.ZeroCopySocketStream.send_nowait
    monkeypatch.setattr(zc_anyio.ZeroCopySocketStream, "send_nowait", send_nowait)

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            raise NotImplementedError
        await receive()
        await send({"type": "websocket.accept"})
        for data in (whole, changing):
            await send({"type": "websocket.send", "bytes": data})
        changing[:] = bytes(len(changing))
        await receive()

    def run(websocket: ClientConnection) -> None:
        assert websocket.recv(LIMIT) == whole
        assert websocket.recv(LIMIT) == expected
        websocket.send("seen")

    async with serving(app) as rig:
        await client(rig, "", run, compression=compression, max_size=None)
    assert any(part is whole for part in sent) == (compression is None)
    assert not any(part is changing for part in sent)


async def test_nothing_follows_the_answer_to_a_close(
    driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when an application waits to send at that moment; it is told that the client is gone."""
    begun = 0
    told: list[BaseException] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        nonlocal begun
        if scope["type"] != "websocket":
            raise NotImplementedError
        await receive()
        await send({"type": "websocket.accept"})
        try:
            while True:
                begun += 1
                await send({"type": "websocket.send", "bytes": bytes(100_000)})
        except Exception as exc:
            told.append(exc)

    def run(sock: socket.socket) -> bytes:
        sock.sendall(shake())
        # Until the window is full, and the application waits.
        seen = 0
        while begun != seen or not seen:
            seen = begun
            time.sleep(0.2)
        sock.sendall(b"\x88\x82\0\0\0\0\x03\xe8")
        return receive_all(sock)

    async with serving(app, driver=driver) as rig:
        rest = body(await rig.client(run))
        await until(lambda: told)
    assert isinstance(told[0], OSError)
    frame = b"\x82\x7f" + (100_000).to_bytes(8, "big") + bytes(100_000)
    whole, left = divmod(len(rest), len(frame))
    assert left == 4
    assert rest == frame * whole + b"\x88\x02\x03\xe8"
    assert not failures(caplog)


async def test_messages_of_several_tasks_do_not_mix(driver: str) -> None:
    """Also when the window is full, and small ones come while large ones wait."""
    sizes = [10, 300_000, 10, 300_000]
    arrived: list[bytes] = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            raise NotImplementedError

        async def repeat(number: int) -> None:
            for _ in range(40):
                data = bytes([number]) * sizes[number]
                await send({"type": "websocket.send", "bytes": data})
                await anyio.lowlevel.checkpoint()

        await receive()
        await send({"type": "websocket.accept"})
        async with anyio.create_task_group() as tasks:
            for number in range(len(sizes)):
                tasks.start_soon(repeat, number)

    def run(websocket: ClientConnection) -> None:
        time.sleep(0.2)  # until they wait
        for data in websocket:
            assert isinstance(data, bytes)
            arrived.append(data)

    async with serving(app, driver=driver) as rig:
        await client(rig, "", run, compression=None, max_size=None)
    assert len(arrived) == 40 * len(sizes)
    for number, size in enumerate(sizes):
        assert arrived.count(bytes([number]) * size) == 40


async def test_an_application_broadcasts_one_frame_in_order_with_its_own(driver: str) -> None:
    """By the extension ``zc_anyio``, which gives the stream and the ring."""
    members: list[Any] = []
    frame = websocket_frame("b" * 100_000)

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            raise NotImplementedError
        await receive()
        await send({"type": "websocket.accept"})
        extension = scope["extensions"]["zc_anyio"]
        members.append(extension["stream"])
        assert extension["ring"] is zc_anyio.current_ring()
        if len(members) == 3:
            async with zc_anyio.send_group() as group:
                await group.broadcast(members, frame)
        await receive()
        await send({"type": "websocket.send", "text": "behind"})
        await receive()

    def run(websocket: ClientConnection) -> None:
        assert websocket.recv(LIMIT) == "b" * 100_000
        websocket.send("go on")
        assert websocket.recv(LIMIT) == "behind"

    async with serving(app, driver=driver) as rig:
        async with anyio.create_task_group() as tasks:
            for compression in ("deflate", None, "deflate"):
                tasks.start_soon(partial(client, rig, "", run, compression=compression))
        # Held and counted once for each member.
        assert rig.ring.statistics().bytes_sent > 300_000


def test_frames_that_two_threads_make() -> None:
    def slowly(frame: FrameType, event: str, _: object) -> Any:
        # The other thread has its turn at every line of what makes frames.
        if event == "line" and frame.f_code.co_name == "_frame":
            time.sleep(0.0005)
        return slowly

    def make(data: str | bytes) -> None:
        sys.settrace(slowly)
        made.extend((data, websocket_frame(data)) for _ in range(20))

    made: list[tuple[str | bytes, bytes]] = []
    threads = [threading.Thread(target=make, args=[data]) for data in ("text", b"bytes")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 40
    assert all(frame == websocket_frame(data) for data, frame in made)
