"""The HTTP server core: what a peer may do, and what happens to one that does more."""

from __future__ import annotations

import os
import select
import socket
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
import pytest
from anyio.abc import SocketAttribute

import zc_anyio
from examples.web import (
    Exchange,
    HTTPError,
    Limits,
    Metrics,
    Part,
    Request,
    Routes,
    Server,
)
from tests.support.backends import one_backend
from tests.support.waiting import LIMIT, until

pytestmark = pytest.mark.anyio

T = TypeVar("T")
SIZE = 20 << 20
GET = b"GET %s HTTP/1.1\r\nHost: a\r\n%s\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def large() -> Path:  # type: ignore[misc]
    """More than a connection can have under way."""
    with tempfile.NamedTemporaryFile() as file:
        block = os.urandom(1 << 20)
        for number in range(SIZE >> 20):
            file.write(block[number:] + block[:number])
        file.flush()
        yield Path(file.name)


class Rig:
    """A server in this process, and blocking clients in threads."""

    def __init__(self, server: Server, port: int, stop: anyio.Event) -> None:
        self.server = server
        self.port = port
        self.stop = stop

    async def client(self, function: Callable[[socket.socket], T], **options: int) -> T:
        """Run a client in a thread, with a connection."""

        def run() -> T:
            with self.connect(**options) as sock:
                return function(sock)

        return await anyio.to_thread.run_sync(run)

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
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

    def metric(self, name: str, **labels: str) -> float | None:
        return self.server.metrics.registry.get_sample_value(name, labels)

    def connections(self) -> float | None:
        return self.metric("http_connections")

    async def ask(self, data: bytes) -> bytes:
        """Send bytes, and return all that comes until the server closes."""

        def run(sock: socket.socket) -> bytes:
            sock.sendall(data)
            return receive_all(sock)

        return await self.client(run)


def receive_all(sock: socket.socket) -> bytes:
    received = bytearray()
    while chunk := sock.recv(1 << 18):
        received += chunk
    return bytes(received)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@asynccontextmanager
async def serving(
    ring: zc_anyio.Ring | None, *, large: Path | None = None, **limits: float
) -> AsyncIterator[Rig]:
    async def file(request: Request, exchange: Exchange) -> None:
        assert large is not None
        with large.open("rb") as opened:
            await exchange.respond(200, Part(opened.fileno(), 0, SIZE))

    async def hello(request: Request, exchange: Exchange) -> None:
        request.allow("GET")
        await exchange.respond(200, b"hello")

    async def echo(request: Request, exchange: Exchange) -> None:
        request.allow("POST")
        await exchange.respond(200, await exchange.body(1000))

    async def chunks(request: Request, exchange: Exchange) -> None:
        await exchange.start(200, [])
        for number in range(5000):
            await exchange.send(b"%d\n" % number)

    async def block(request: Request, exchange: Exchange) -> None:
        await exchange.respond(200, bytearray(10 << 20))

    async def fails(request: Request, exchange: Exchange) -> None:
        raise ZeroDivisionError

    async def fails_late(request: Request, exchange: Exchange) -> None:
        await exchange.start(200, [("content-length", "10")])
        await exchange.send(b"12345")
        raise ZeroDivisionError

    async def refuses(request: Request, exchange: Exchange) -> None:
        raise HTTPError(418)

    async def takes_over(request: Request, exchange: Exchange) -> None:
        stream, rest = await exchange.take_over()
        await stream.send(b"over:" + rest)
        await stream.send(await stream.receive())

    async def lasts(request: Request, exchange: Exchange) -> None:
        await exchange.start_endless([])
        await exchange.stopping.wait()
        await anyio.sleep_forever()

    routes = Routes(
        {
            "/hello": hello,
            "/file": file,
            "/echo": echo,
            "/chunks": chunks,
            "/block": block,
            "/fails": fails,
            "/fails-late": fails_late,
            "/refuses": refuses,
            "/takes-over": takes_over,
            "/lasts": lasts,
        }
    )
    metrics = Metrics()
    server = Server(routes, ring=ring, limits=Limits(**limits), metrics=metrics)  # type: ignore[arg-type]
    create = zc_anyio.create_tcp_listener if ring is not None else anyio.create_tcp_listener
    listener = await create(local_host="127.0.0.1")
    rig = Rig(server, listener.extra(SocketAttribute.local_port), anyio.Event())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, listener, rig.stop)
        yield rig
        rig.stop.set()


@asynccontextmanager
async def driven(driver: str) -> AsyncIterator[zc_anyio.Ring]:
    async with zc_anyio.open_ring(driver=driver) as ring:
        yield ring


# --- what works, on every event loop and driver ---


async def test_answers_of_all_kinds_on_one_connection(driver: str, large: Path) -> None:
    async with driven(driver) as ring, serving(ring, large=large) as rig:
        answer = await rig.ask(
            GET % (b"/hello", b"")
            + b"HEAD /hello HTTP/1.1\r\nHost: a\r\n\r\n"
            + b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nabcde"
            + GET % (b"/chunks", b"")
            + GET % (b"/block", b"")
            + GET % (b"/refuses", b"")
            + GET % (b"/file", b"Connection: close\r\n")
        )
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 6
    assert answer.count(b"HTTP/1.1 418 ") == 1
    assert answer.count(b"\r\n\r\nhello") == 1
    assert b"\r\n\r\nabcdeHTTP/1.1 200 OK" in answer
    assert b"\r\n4999\n\r\n0\r\n\r\nHTTP/1.1 200 OK" in answer
    assert bytes(10 << 20) + b"HTTP/1.1 418" in answer
    assert answer.endswith(b"\r\n\r\n" + large.read_bytes())


@one_backend
async def test_http_1_0_gets_a_body_that_ends_with_the_connection(driver: str) -> None:
    async with driven(driver) as ring, serving(ring) as rig:
        answer = await rig.ask(b"GET /chunks HTTP/1.0\r\n\r\n")
    assert b"chunked" not in answer.lower()
    assert answer.endswith(b"\r\n\r\n" + b"".join(b"%d\n" % number for number in range(5000)))


async def test_a_connection_that_was_taken_over_comes_with_what_followed() -> None:
    async with zc_anyio.open_ring() as ring, serving(ring) as rig:

        def run(sock: socket.socket) -> bytes:
            sock.sendall(
                GET % (b"/takes-over", b"Connection: Upgrade\r\nUpgrade: other\r\n") + b"first"
            )
            assert sock.recv(10, socket.MSG_WAITALL) == b"over:first"
            sock.sendall(b"second")
            return receive_all(sock)

        assert await rig.client(run) == b"second"


async def test_plain_streams_give_the_same_answers(large: Path) -> None:
    async with serving(None, large=large) as rig:
        answer = await rig.ask(GET % (b"/block", b"") + GET % (b"/file", b"Connection: close\r\n"))
    assert bytes(10 << 20) + b"HTTP/1.1 200" in answer
    assert answer.endswith(b"\r\n\r\n" + large.read_bytes())


# --- malformed, too much, too slow ---


@one_backend
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /hello HTTP/1.1\r\n\r\n", 400),  # no Host
        (GET % (b"/%ff", b""), 400),
        (GET % (b"/a%00b", b""), 400),
        (GET % (b"*", b""), 400),
        (GET % (b"/hello", b"A: " + b"a" * 20000 + b"\r\n"), 431),
        (GET % (b"/hello", b"A: b\r\n" * 3000), 431),
        (GET % (b"/" + b"a" * 17000, b""), 431),
        (b"GET /" + b"a" * 100000, 431),
        (GET % (b"/hello", b"Transfer-Encoding: strange\r\n"), 501),
        (b"BREW /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 405),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 400),
        (POST % 1001 + b"a" * 1001, 413),
        (b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (GET % (b"/fails", b"Connection: close\r\n"), 500),
    ],
)
async def test_what_is_wrong_is_answered_and_ends_the_connection(
    data: bytes, expected: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with zc_anyio.open_ring() as ring, serving(ring) as rig:
        assert status(await rig.ask(data)) == expected
        # The server still works.
        assert status(await rig.ask(GET % (b"/hello", b"Connection: close\r\n"))) == 200
    assert (len(caplog.records) > 0) == (expected == 500)


async def test_what_comes_too_slowly_is_answered_408() -> None:
    async with zc_anyio.open_ring() as ring:
        async with serving(ring, header_seconds=0.2, body_seconds=0.2) as rig:
            for data in (
                b"GET /hello HTTP/1.1\r\nHos",
                b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab",
            ):
                assert status(await rig.ask(data)) == 408


async def test_a_byte_now_and_then_does_not_put_off_the_end_of_a_head() -> None:
    async with zc_anyio.open_ring() as ring, serving(ring, header_seconds=0.5) as rig:

        def run(sock: socket.socket) -> bytes:
            sock.settimeout(0.05)
            while True:
                sock.sendall(b"G")
                try:
                    return sock.recv(1000)
                except TimeoutError:
                    pass

        assert status(await rig.client(run)) == 408


async def test_idle_connections_are_closed_without_an_answer() -> None:
    async with zc_anyio.open_ring() as ring:
        async with serving(ring, header_seconds=0.2, idle_seconds=0.2) as rig:
            assert await rig.ask(b"") == b""
            answer = await rig.ask(GET % (b"/hello", b""))
            assert (status(answer), answer.count(b"HTTP/1.1")) == (200, 1)


async def test_more_connections_than_allowed_are_answered_503() -> None:
    async with zc_anyio.open_ring() as ring, serving(ring, connections=3) as rig:
        kept = [await anyio.to_thread.run_sync(rig.connect) for _ in range(3)]
        try:
            await until(lambda: rig.connections() == 3)
            answer = await rig.ask(GET % (b"/hello", b""))
            assert status(answer) == 503
            assert b"retry-after" in answer
            assert rig.metric("http_refused_total", reason="connections") == 1
        finally:
            for sock in kept:
                sock.close()
        await until(lambda: rig.connections() == 0)
        assert status(await rig.ask(GET % (b"/hello", b"Connection: close\r\n"))) == 200


async def test_a_peer_that_takes_nothing_is_reset_and_holds_nothing(
    driver: str, large: Path
) -> None:
    async with driven(driver) as ring, serving(ring, large=large, stall_seconds=0.2) as rig:
        with ExitStack() as stack:
            for target in (b"/file", b"/block"):
                connected = await anyio.to_thread.run_sync(
                    partial(rig.connect, receive_buffer=4096)
                )
                sock = stack.enter_context(connected)
                sock.sendall(GET % (target, b""))
            # They take as much as fits here, and nothing more; then the resets arrive.
            await until(lambda: rig.connections() == 2)
            await until(lambda: rig.connections() == 0)
            assert await anyio.to_thread.run_sync(is_reset, sock)
        counters = ring.statistics()
        assert (counters.queued, counters.in_flight, counters.held) == (0, 0, 0)
        assert status(await rig.ask(GET % (b"/hello", b"Connection: close\r\n"))) == 200


def is_reset(sock: socket.socket) -> bool:
    """Whether a connection was reset, by now or within the limit, without reading from it."""
    poll = select.poll()
    poll.register(sock, 0)  # POLLERR and POLLHUP are always told
    return bool(poll.poll(LIMIT * 1000))


@one_backend
async def test_a_slow_peer_that_makes_progress_gets_everything(large: Path) -> None:
    async with zc_anyio.open_ring() as ring:
        async with serving(ring, large=large, stall_seconds=2.0) as rig:

            def run(sock: socket.socket) -> int:
                sock.sendall(GET % (b"/file", b"Connection: close\r\n"))
                size = 0
                # Slow for longer than a stalled peer may be.
                until = time.monotonic() + 3.0
                while chunk := sock.recv(1 << 20):
                    size += len(chunk)
                    if time.monotonic() < until:
                        time.sleep(0.3)
                return size

            assert await rig.client(run) > SIZE


async def test_a_peer_that_goes_away_leaves_nothing(driver: str, large: Path) -> None:
    async with driven(driver) as ring, serving(ring, large=large) as rig:

        def run(sock: socket.socket) -> None:
            sock.sendall(GET % (b"/file", b""))
            sock.recv(1000)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        await rig.client(run, receive_buffer=4096)
        await until(lambda: rig.connections() == 0)


async def test_a_handler_that_fails_in_the_middle_resets_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with zc_anyio.open_ring() as ring, serving(ring) as rig:
        with pytest.raises(ConnectionResetError):
            await rig.ask(GET % (b"/fails-late", b""))
    assert "a connection failed" in caplog.text


# --- stopping ---


async def test_a_stop_lets_answers_end_and_closes_the_rest(driver: str, large: Path) -> None:
    sizes: list[int] = []
    async with driven(driver) as ring:
        async with serving(ring, large=large, header_seconds=60, stop_seconds=60) as rig:
            idle = await anyio.to_thread.run_sync(rig.connect)

            def run(sock: socket.socket) -> None:
                sock.sendall(GET % (b"/file", b""))
                first = sock.recv(1000)
                anyio.from_thread.run_sync(rig.stop.set)
                assert idle.recv(1) == b""
                sizes.append(len(first) + len(receive_all(sock)))

            with idle:
                await rig.client(run)
            with pytest.raises(ConnectionRefusedError):
                rig.connect()
    assert sizes[0] > SIZE


async def test_a_stop_does_not_wait_for_ever() -> None:
    async with zc_anyio.open_ring() as ring:
        with anyio.fail_after(LIMIT):
            async with serving(ring, stop_seconds=0.1) as rig:
                with await anyio.to_thread.run_sync(rig.connect) as sock:
                    sock.sendall(GET % (b"/lasts", b""))
                    await until(lambda: rig.connections() == 1)
                    rig.stop.set()
                    await rig.server.stopping.wait()
                    await until(lambda: rig.connections() == 0)
