"""WebSockets: with a real client, and byte by byte."""

from __future__ import annotations

import os
import socket
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from tests.asgi.rig import body, client, failures, header, receive_all, serving, shake, status
from tests.support.backends import one_backend
from tests.support.waiting import LIMIT, until
from zc_anyio.asgi import Limits

pytestmark = pytest.mark.anyio


class Application:
    """Echoes, unless the path says something else.

    :ivar told: what it was told at the end of each WebSocket.
    :ivar scopes: of all WebSockets.
    """

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []
        self.scopes: list[dict[str, Any]] = []
        self.done = anyio.Event()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            raise NotImplementedError
        self.scopes.append(scope)
        assert await receive() == {"type": "websocket.connect"}
        await getattr(self, scope["path"].strip("/"))(receive, send)

    async def echo(self, receive: Any, send: Any) -> None:
        offered = self.scopes[-1]["subprotocols"]
        accept = {"type": "websocket.accept", "headers": [(b"x-own", b"yes")]}
        await send({**accept, "subprotocol": offered[0] if offered else None})
        while (message := await receive())["type"] == "websocket.receive":
            await send({**message, "type": "websocket.send"})
        self.told.append(message)

    async def refuses(self, receive: Any, send: Any) -> None:
        await send({"type": "websocket.close"})

    async def denies(self, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/plain")]
        await send({"type": "websocket.http.response.start", "status": 418, "headers": headers})
        part = {"type": "websocket.http.response.body"}
        await send({**part, "body": b"no ", "more_body": True})
        await send({**part, "body": b"tea"})

    async def ends(self, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": 4000, "reason": "enough"})
        with pytest.raises(RuntimeError):
            await send({"type": "websocket.send", "text": "more"})
        self.told.append(await receive())

    async def returns(self, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})

    async def fails(self, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        raise ZeroDivisionError

    async def fails_early(self, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    async def sleeps(self, receive: Any, send: Any) -> None:
        """Never looks at what comes."""
        await send({"type": "websocket.accept"})
        await self.done.wait()

    async def floods(self, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        try:
            while True:
                await send({"type": "websocket.send", "bytes": bytes(100_000)})
        except OSError:
            self.told.append({"type": "oserror"})
            raise


@pytest.mark.parametrize("compression", ["deflate", None])
async def test_messages_of_all_kinds(driver: str, compression: str | None) -> None:
    app = Application()
    messages = ["text", "ünïcode 🎉", "", b"", b"\0\xff", "a" * 100_000, os.urandom(3 << 20)]

    def run(websocket: ClientConnection) -> None:
        assert websocket.subprotocol == "chat"
        assert websocket.response is not None
        assert websocket.response.headers["x-own"] == "yes"
        assert bool(websocket.protocol.extensions) == (compression is not None)
        for message in messages:
            websocket.send(message)
            assert websocket.recv(LIMIT) == message
        websocket.send(iter(["in ", "", "pieces"]))
        assert websocket.recv(LIMIT) == "in pieces"
        websocket.ping().wait(LIMIT)
        websocket.close(4001, "done")

    async with serving(app, driver=driver) as rig:
        options: dict[str, Any] = {"subprotocols": ["chat", "x"], "max_size": None}
        await client(rig, "echo", run, compression=compression, **options)
        await until(lambda: app.told)
        assert rig.ring.statistics().bytes_sent > 100_000
    assert app.told == [{"type": "websocket.disconnect", "code": 4001, "reason": "done"}]
    scope = app.scopes[0]
    assert (scope["scheme"], scope["subprotocols"]) == ("ws", ["chat", "x"])


@one_backend
async def test_how_an_application_refuses(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with serving(Application()) as rig:
        answer = await rig.ask(shake(b"refuses"))
        assert status(answer) == 403
        answer = await rig.ask(shake(b"denies"))
        assert (status(answer), body(answer)) == (418, b"no tea")
        assert header(answer, "content-type") == "text/plain"
        assert status(await rig.ask(shake(b"fails_early"))) == 500
    logged = [record.message.partition(" - ")[2] for record in caplog.records]
    assert '"WebSocket /refuses" 403' in logged
    assert '"WebSocket /denies" 418' in logged


@one_backend
@pytest.mark.parametrize(
    ("path", "code", "reason"),
    [("ends", 4000, "enough"), ("returns", 1000, ""), ("fails", 1011, "")],
)
async def test_how_an_application_ends(path: str, code: int, reason: str) -> None:
    app = Application()

    def run(websocket: ClientConnection) -> None:
        with pytest.raises(ConnectionClosed) as caught:
            websocket.recv(LIMIT)
        assert caught.value.rcvd is not None
        assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (code, reason)

    async with serving(app) as rig:
        await client(rig, path, run)
    if path == "ends":
        assert [message["type"] for message in app.told] == ["websocket.disconnect"]


@one_backend
async def test_requests_that_are_not_for_a_websocket() -> None:
    async with serving(Application()) as rig:
        wrong = shake().replace(b"Version: 13", b"Version: 12")
        answer = await rig.ask(wrong)
        assert (status(answer), header(answer, "sec-websocket-version")) == (426, "13")
        assert status(await rig.ask(shake().replace(b"-Key", b"-Kex"))) == 400


# Wrong frames of a client that masks with zeros, and the code with which each is closed.
VIOLATIONS = {
    "not masked": (b"\x81\x02hi", 1002),
    "reserved bit": (b"\xc1\x80\0\0\0\0", 1002),
    "reserved opcode": (b"\x83\x80\0\0\0\0", 1002),
    "fragmented ping": (b"\x09\x80\0\0\0\0", 1002),
    "large ping": (b"\x89\xfe\x00\x7e\0\0\0\0" + bytes(126), 1002),
    "continuation of nothing": (b"\x80\x80\0\0\0\0", 1002),
    "two beginnings": (b"\x01\x81\0\0\0\0a\x81\x81\0\0\0\0b", 1002),
    "no UTF-8": (b"\x81\x81\0\0\0\0\xff", 1007),
    "cut UTF-8": (b"\x81\x81\0\0\0\0\xc3", 1007),
    "wrong close code": (b"\x88\x82\0\0\0\0\x03\xed", 1002),
    "large": (b"\x82\xff\0\0\0\0\x00\x10\x00\x01\0\0\0\0" + bytes((1 << 20) + 1), 1009),
    "large in pieces": (b"\x02\xfe\xff\xff\0\0\0\0" + bytes(65535), 1009),
}


@one_backend
@pytest.mark.parametrize("name", VIOLATIONS)
async def test_violations_close_with_their_code(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = Application()
    frames, code = VIOLATIONS[name]
    if name == "large in pieces":
        frames += (b"\x00" + frames[1:]) * 17
    async with serving(app, limits=Limits(websocket_bytes=1 << 20)) as rig:

        def run(sock: socket.socket) -> bytes:
            sock.sendall(shake())
            while b"\r\n\r\n" not in (head := sock.recv(1000)):
                pass
            assert head.startswith(b"HTTP/1.1 101 ")
            sock.sendall(frames)
            return receive_all(sock)

        received = await rig.client(run)
        assert received[0] == 0x88
        assert int.from_bytes(received[2:4], "big") == code
        await until(lambda: app.told)
        assert app.told[0]["code"] == code
    assert not failures(caplog)


@one_backend
async def test_a_bomb_of_compression_is_closed_early() -> None:
    app = Application()

    def run(websocket: ClientConnection) -> None:
        # Either sending it or receiving the answer tells that it was closed.
        with pytest.raises(ConnectionClosed) as caught:
            websocket.send("a" * (256 << 20))
            websocket.recv(LIMIT)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1009

    async with serving(app, limits=Limits(websocket_bytes=1 << 20)) as rig:
        await client(rig, "echo", run)
        await until(lambda: app.told)
        assert app.told[0]["code"] == 1009


@one_backend
async def test_an_extension_that_is_nonsense_is_declined() -> None:
    async with serving(Application()) as rig:
        for offer in (b"permessage-deflate; client_max_window_bits=x", b"other", b",,;"):

            def run(sock: socket.socket, offer: bytes = offer) -> bytes:
                sock.sendall(shake(b"returns", b"Sec-WebSocket-Extensions: " + offer + b"\r\n"))
                return receive_all(sock)

            answer = await rig.client(run)
            assert status(answer) == 101
            assert header(answer, "sec-websocket-extensions") is None


async def test_what_the_application_does_not_take_is_not_received() -> None:
    app = Application()
    async with serving(app) as rig:

        def run(sock: socket.socket) -> None:
            sock.sendall(shake(b"sleeps"))
            sock.recv(1000)
            sock.settimeout(0.5)
            frame = b"\x82\xfe\xff\xff\0\0\0\0" + bytes(65535)
            with pytest.raises(TimeoutError):
                for _ in range(2000):
                    sock.sendall(frame)

        await rig.client(run)
        app.done.set()


async def test_a_client_that_vanishes(driver: str, caplog: pytest.LogCaptureFixture) -> None:
    app = Application()
    async with serving(app, driver=driver) as rig:
        for path in ("echo", "floods"):

            def run(sock: socket.socket, path: str = path) -> None:
                sock.sendall(shake(path.encode()))
                sock.recv(1000)

            await rig.client(run)
        await until(lambda: len(app.told) == 2)
    expected = {"type": "websocket.disconnect", "code": 1006, "reason": ""}
    assert expected in app.told
    assert {"type": "oserror"} in app.told
    assert not failures(caplog)


@one_backend
async def test_a_client_that_does_not_answer_pings_is_dropped() -> None:
    app = Application()
    async with serving(app, limits=Limits(websocket_ping_seconds=0.2)) as rig:

        def run(sock: socket.socket) -> bytes:
            sock.sendall(shake())
            return receive_all(sock)

        answer = await rig.client(run)
        assert body(answer).startswith(b"\x89\x00")
        assert app.told[0]["code"] == 1006

        def answers(websocket: ClientConnection) -> None:
            with pytest.raises(TimeoutError):
                websocket.recv(1.0)
            websocket.send("still here")
            assert websocket.recv(LIMIT) == "still here"

        await client(rig, "echo", answers)


async def test_a_stop_tells_websockets_to_go_elsewhere() -> None:
    app = Application()
    async with serving(app) as rig:

        def run(websocket: ClientConnection) -> None:
            websocket.send("hi")
            assert websocket.recv(LIMIT) == "hi"
            anyio.from_thread.run_sync(rig.stop.set)
            with pytest.raises(ConnectionClosed) as caught:
                websocket.recv(LIMIT)
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1012

        await client(rig, "echo", run)
    assert app.told[0]["code"] == 1012
