"""Requests and their answers: framing, keeping alive, back-pressure, clients that go away."""

from __future__ import annotations

import contextvars
import select
import socket
import struct
from contextlib import ExitStack
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest
from starlette.requests import Request

from tests.asgi.applications import LARGE, Application, read_body, respond
from tests.asgi.rig import (
    CLOSE,
    GET,
    body,
    chunks,
    failures,
    header,
    receive_all,
    receive_answer,
    serving,
    status,
)
from tests.support.backends import one_backend
from tests.support.waiting import LIMIT, until
from zc_anyio.asgi import Limits

pytestmark = pytest.mark.anyio

POST = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%s\r\n"


# --- on every event loop and driver ---


async def test_answers_of_all_kinds_on_one_connection(driver: str) -> None:
    async with serving(Application(), driver=driver) as rig:
        answer = await rig.ask(
            GET % (b"/hello", b"")
            + b"HEAD /hello HTTP/1.1\r\nHost: a\r\n\r\n"
            + POST % (b"/echo", 5, b"")
            + b"abcde"
            + GET % (b"/large", b"")
            + GET % (b"/stream", b"")
            + GET % (b"/empty", b"")
            + GET % (b"/unsized", b"")
            + GET % (b"/nothing", CLOSE)
        )
        sent = rig.ring.statistics()
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 6
    assert answer.count(b"\r\n\r\nhelloHTTP/1.1 200") == 1
    assert b"\r\n\r\nabcdeHTTP/1.1 200 OK" in answer
    assert b"\r\n\r\n" + LARGE + b"HTTP/1.1 200" in answer
    assert b"\r\n\r\nHTTP/1.1 200 OK\r\n" in answer  # HEAD's
    assert b"0\r\n\r\nHTTP/1.1 204 No Content\r\n" in answer
    assert b"\r\n\r\nwholeHTTP/1.1 404 Not Found\r\n" in answer
    # All of it has left through the ring, the large part in place.
    assert sent.bytes_sent == len(answer)
    assert sent.driver == driver
    if driver == "copy":
        assert sent.zero_copied == 0
    else:
        # Loopback copies what was asked to be zero-copied, and reports that.
        assert sent.zero_copied + sent.copied > 0


async def test_a_stream_is_chunked_as_it_is_sent() -> None:
    async with serving(Application()) as rig:
        answer = await rig.get("/stream")
        assert header(answer, "transfer-encoding") == "chunked"
        expected = [LARGE[:size] for size in (1, 10, 70_000, 300_000)]
        assert chunks(answer) == [*expected, b"end", b""]


async def test_a_buffer_that_changes_is_sent_as_it_was() -> None:
    async with serving(Application()) as rig:
        expected = [bytes([number]) * 100_000 for number in range(10)]
        assert chunks(await rig.get("/changing")) == [*expected, b""]


async def test_an_upload_is_taken_as_the_application_asks(driver: str) -> None:
    taken: list[int] = []

    async def counts(scope: dict[str, Any], receive: Any, send: Any) -> None:
        more = True
        await app.done.wait()
        while more:
            message = await receive()
            taken.append(len(message["body"]))
            more = message["more_body"]
        await respond(send, b"%d" % sum(taken))

    app = Application(counts=counts)
    size = 32 << 20
    async with serving(app, driver=driver) as rig:

        def run(sock: socket.socket) -> bytes:
            sock.sendall(POST % (b"/counts", size, CLOSE))
            sock.setblocking(False)
            left = size
            # Until the buffers are full: the server takes nothing more.
            while select.select([], [sock], [], 0.3)[1]:
                left -= sock.send(bytes(min(left, 1 << 20)))
            sock.settimeout(LIMIT)
            assert left > 0
            anyio.from_thread.run_sync(app.done.set)
            sock.sendall(bytes(left))
            return receive_all(sock)

        assert body(await rig.client(run)) == b"%d" % size
    assert max(taken) <= 64 << 10


async def test_a_slow_client_holds_only_its_own_task(driver: str) -> None:
    async with serving(Application(), driver=driver) as rig:
        with ExitStack() as stack:
            for _ in range(5):
                sock = stack.enter_context(
                    await anyio.to_thread.run_sync(partial(rig.connect, receive_buffer=4096))
                )
                sock.sendall(GET % (b"/large", b""))
            for _ in range(10):
                assert status(await rig.get("/hello")) == 200


async def test_a_client_that_takes_nothing_is_reset(driver: str) -> None:
    app = Application()
    async with serving(app, driver=driver, limits=Limits(stall_seconds=0.5)) as rig:
        sock = await anyio.to_thread.run_sync(partial(rig.connect, receive_buffer=4096))
        with sock:
            sock.sendall(GET % (b"/floods", b""))
            await until(lambda: app.told == ["ClientDisconnectedError"])
            with pytest.raises(ConnectionResetError):
                await anyio.to_thread.run_sync(receive_all, sock)
        await until(lambda: rig.ring.statistics().held == 0)
        assert status(await rig.get("/hello")) == 200


async def test_sending_to_a_client_that_went_away_is_an_oserror(
    driver: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = Application()
    async with serving(app, driver=driver) as rig:

        def run(sock: socket.socket) -> None:
            sock.sendall(GET % (b"/floods", b""))
            sock.recv(1000)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        await rig.client(run)
        await until(lambda: app.told == ["ClientDisconnectedError"])
    assert not failures(caplog)


async def test_a_client_that_goes_away_is_told_as_disconnect() -> None:
    app = Application()
    async with serving(app) as rig:

        def run(sock: socket.socket) -> None:
            sock.sendall(GET % (b"/waits", b""))
            anyio.from_thread.run(app.began.wait)

        await rig.client(run)
        await until(lambda: app.told == ["http.disconnect"])


async def test_starlette_can_ask_whether_a_client_is_there(driver: str) -> None:
    seen: list[bool] = []

    async def asks(scope: dict[str, Any], receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        assert await request.body() == b"abc"
        seen.append(await request.is_disconnected())
        app.began.set()
        with anyio.fail_after(LIMIT):
            while not await request.is_disconnected():
                await anyio.sleep(0.01)
        seen.append(await request.is_disconnected())

    app = Application(asks=asks)
    async with serving(app, driver=driver) as rig:

        def run(sock: socket.socket) -> None:
            sock.sendall(POST % (b"/asks", 3, b"") + b"abc")
            anyio.from_thread.run(app.began.wait)

        await rig.client(run)
        await until(lambda: len(seen) == 2)
    assert seen == [False, True]


async def test_a_cancelled_receive_has_taken_nothing() -> None:
    async def looks(scope: dict[str, Any], receive: Any, send: Any) -> None:
        for _ in range(3):
            with anyio.CancelScope() as scope_:
                scope_.cancel()
                await receive()
        await respond(send, await read_body(receive))

    async with serving(Application(looks=looks)) as rig:
        answer = await rig.ask(POST % (b"/looks", 3, CLOSE) + b"abc")
        assert body(answer) == b"abc"


async def test_receive_tells_the_end_of_the_answer_as_well() -> None:
    told = []

    async def listens(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.request"
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                told.append((await receive())["type"])

            tasks.start_soon(listen)
            await anyio.wait_all_tasks_blocked()
            await respond(send, b"answered")
        told.append((await receive())["type"])

    async with serving(Application(listens=listens)) as rig:
        answer = await rig.ask(GET % (b"/listens", b"") + GET % (b"/hello", CLOSE))
        assert answer.count(b"HTTP/1.1 200") == 2
        answer = await rig.ask(GET % (b"/listens", CLOSE))
        assert status(answer) == 200
    assert told == ["http.disconnect"] * 4


async def test_work_after_the_answer_does_not_hold_up_the_connection() -> None:
    app = Application()
    async with serving(app) as rig:

        def run(sock: socket.socket) -> None:
            sock.sendall(GET % (b"/goes_on", b""))
            assert receive_answer(sock, 8) == b"answered"
            for _ in range(3):
                sock.sendall(GET % (b"/hello", b""))
                assert receive_answer(sock, 5) == b"hello"

        await rig.client(run)
        assert app.began.is_set()
        app.done.set()


async def test_context_variables_of_a_request_are_not_for_the_next() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

    async def marks(scope: dict[str, Any], receive: Any, send: Any) -> None:
        seen = variable.get()
        variable.set("set")
        await respond(send, seen.encode())

    async with serving(Application(marks=marks)) as rig:
        answer = await rig.ask(GET % (b"/marks", b"") * 3 + GET % (b"/marks", CLOSE))
        assert answer.count(b"\r\n\r\nunset") == 4


# --- framing ---


@one_backend
async def test_http_1_0() -> None:
    async with serving(Application()) as rig:
        answer = await rig.ask(b"GET /stream HTTP/1.0\r\n\r\n")
        assert header(answer, "transfer-encoding") is None
        assert body(answer).endswith(LARGE[:300_000] + b"end")
        answer = await rig.ask(
            b"GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
            + b"GET /hello HTTP/1.0\r\n\r\n"
        )
        assert answer.count(b"HTTP/1.1 200") == 2
        assert answer.count(b"connection: keep-alive") == 1
        # The connection cannot be kept if only its end tells where the body ends.
        answer = await rig.ask(b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert header(answer, "connection") == "close"


@one_backend
async def test_an_answer_of_one_part_has_a_length() -> None:
    async with serving(Application()) as rig:
        answer = await rig.get("/unsized")
        assert (header(answer, "content-length"), body(answer)) == ("5", b"whole")
        answer = await rig.get("/empty")
        assert header(answer, "content-length") is None
        assert header(answer, "transfer-encoding") is None
        assert body(answer) == b""


@one_backend
async def test_head_has_no_body_and_the_same_head() -> None:
    async with serving(Application()) as rig:
        for target in (b"/hello", b"/large", b"/stream"):
            answer = await rig.ask(b"HEAD %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (target, CLOSE))
            assert (status(answer), body(answer)) == (200, b"")


@one_backend
async def test_100_continue_is_sent_when_the_body_is_asked_for() -> None:
    expect = POST % (b"%s", 3, b"Expect: 100-continue\r\n" + CLOSE)
    async with serving(Application()) as rig:

        def run(sock: socket.socket) -> bytes:
            sock.sendall(expect % b"/echo")
            assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(b"abc")
            return receive_all(sock)

        assert body(await rig.client(run)) == b"abc"
        # One that is not asked for is not waited for either.
        answer = await rig.ask(expect % b"/lazy")
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


@one_backend
async def test_a_body_that_is_never_read() -> None:
    async with serving(Application()) as rig:
        # A body that has come completely is dropped.
        answer = await rig.ask(POST % (b"/lazy", 3, b"") + b"abc" + GET % (b"/hello", CLOSE))
        assert answer.count(b"HTTP/1.1 200") == 2
        # One that is still to come is not waited for; when it comes, it does not reset the answer.
        answer = await rig.ask(POST % (b"/lazy", 1 << 30, b""), bytes(1 << 20))
        assert (status(answer), body(answer)) == (200, b"lazy")


@one_backend
async def test_trailers_are_for_those_who_take_them() -> None:
    async with serving(Application()) as rig:
        answer = await rig.get("/trailers", b"TE: trailers\r\n")
        assert body(answer) == b"3\r\nabc\r\n0\r\nx-sum: 6\r\nx-end: yes\r\n\r\n"
        answer = await rig.ask(GET % (b"/trailers", b"") + GET % (b"/hello", CLOSE))
        assert b"\r\n\r\n3\r\nabc\r\n0\r\n\r\nHTTP/1.1 200" in answer
        answer = await rig.ask(b"GET /trailers HTTP/1.0\r\n\r\n")
        assert body(answer) == b"abc"


@one_backend
async def test_a_half_closed_client_gets_its_answer() -> None:
    async with serving(Application()) as rig:

        def run(sock: socket.socket) -> bytes:
            sock.sendall(GET % (b"/large", b""))
            sock.shutdown(socket.SHUT_WR)
            return receive_all(sock)

        assert body(await rig.client(run)) == LARGE
