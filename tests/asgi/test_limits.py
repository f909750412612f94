"""Applications that fail, messages out of place, and the limits of what peers may do."""

from __future__ import annotations

import socket
import time
from typing import Any

import anyio
import anyio.to_thread
import pytest

from tests.asgi.applications import Application
from tests.asgi.rig import (
    GET,
    Rig,
    body,
    failures,
    header,
    receive_answer,
    serving,
    status,
)
from tests.support.backends import one_backend
from tests.support.waiting import LIMIT, until
from zc_anyio.asgi import Limits

pytestmark = pytest.mark.anyio

POST = b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%s\r\n"


# --- when it goes wrong ---


@one_backend
@pytest.mark.parametrize(
    "target", ["/fails", "/fails_with_head", "/silent", "/splits", "/short", "/long"]
)
async def test_an_application_that_fails_before_it_sends_is_500(
    target: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Application()) as rig:
        answer = await rig.get(target)
        assert (status(answer), header(answer, "connection")) == (500, "close")
        assert b"Set-Cookie" not in answer
        assert status(await rig.get("/hello")) == 200
    assert len(failures(caplog)) == 1


@one_backend
async def test_an_application_that_fails_in_the_middle_resets_the_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(Application()) as rig:
        with pytest.raises(ConnectionResetError):
            await rig.get("/fails_late")
        assert status(await rig.get("/hello")) == 200
    assert len(failures(caplog)) == 1


@one_backend
async def test_messages_out_of_place_are_refused() -> None:
    wrong: list[tuple[list[dict[str, Any]], type[Exception]]] = [
        ([{"type": "http.response.body"}], RuntimeError),
        ([{"type": "http.response.start", "status": 200}] * 2, RuntimeError),
        ([{"type": "http.response.start", "status": 99}], ValueError),
        ([{"type": "http.response.start", "status": 200}, {"type": "nonsense"}], RuntimeError),
        (
            [
                {"type": "http.response.start", "status": 200},
                {"type": "http.response.trailers", "headers": []},
            ],
            RuntimeError,
        ),
        (
            [{"type": "http.response.start", "status": 200, "headers": [(b"a b", b"")]}],
            ValueError,
        ),
    ]
    raised = []

    async def misbehaves(scope: dict[str, Any], receive: Any, send: Any) -> None:
        messages, expected = wrong[int(scope["query_string"])]
        try:
            for message in messages:
                await send(message)
        except expected as exc:
            raised.append(exc)

    async with serving(Application(misbehaves=misbehaves)) as rig:
        for number in range(len(wrong)):
            assert status(await rig.get(f"/misbehaves?{number}")) == 500
    assert len(raised) == len(wrong)


# --- limits ---


@one_backend
async def test_what_comes_too_slowly_is_answered_408() -> None:
    async with serving(Application(), limits=Limits(head_seconds=0.2)) as rig:
        assert status(await rig.ask(b"GET /hello HTTP/1.1\r\nHos")) == 408

        def run(sock: socket.socket) -> bytes:
            # A byte now and then does not postpone the limit.
            sock.settimeout(0.05)
            sock.sendall(b"GET /")
            while True:
                sock.sendall(b"a")
                try:
                    return sock.recv(1000)
                except TimeoutError:
                    pass

        assert status(await rig.client(run)) == 408


@one_backend
async def test_idle_connections_are_closed_without_an_answer() -> None:
    limits = Limits(head_seconds=0.2, keep_alive_seconds=0.2)
    async with serving(Application(), limits=limits) as rig:
        assert await rig.ask(b"") == b""
        answer = await rig.ask(GET % (b"/hello", b""))
        assert (status(answer), answer.count(b"HTTP/1.1")) == (200, 1)


@one_backend
async def test_a_body_that_does_not_come_ends_the_connection() -> None:
    async with serving(Application(), limits=Limits(body_seconds=0.2)) as rig:
        answer = await rig.ask(POST % (b"/echo", 5, b"") + b"ab")
        # The application answers what it has.
        assert body(answer) == b"ab"


@one_backend
async def test_more_connections_than_allowed_are_answered_503() -> None:
    async with serving(Application(), limits=Limits(concurrency=2)) as rig:
        kept = [await anyio.to_thread.run_sync(rig.connect) for _ in range(2)]
        try:
            for sock in kept:
                sock.sendall(GET % (b"/hello", b""))
                await anyio.to_thread.run_sync(receive_answer, sock, 5)
            assert status(await rig.get("/hello")) == 503
        finally:
            for sock in kept:
                sock.close()
        await until_answered(rig)


async def until_answered(rig: Rig) -> None:
    with anyio.fail_after(LIMIT):
        while status(await rig.get("/hello")) != 200:
            await anyio.sleep(0.01)


async def endless(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})
    while True:
        await send({"type": "http.response.body", "body": bytes(1 << 20), "more_body": True})


async def test_who_takes_too_little_is_reset_and_holds_nothing(driver: str) -> None:
    limits = Limits(stall_seconds=0.3, least_rate=100_000)
    async with serving(Application(endless=endless), driver=driver, limits=limits) as rig:

        def trickle(sock: socket.socket) -> bool:
            sock.sendall(GET % (b"/endless", b""))
            end = time.monotonic() + LIMIT
            try:
                while time.monotonic() < end:
                    assert sock.recv(500)
                    # A reset that comes while the buffer here is full can be lost; this asks again.
                    sock.send(b" ")
                    time.sleep(0.05)
            except ConnectionError:
                return True
            return False

        assert await rig.client(trickle, receive_buffer=4096)
        await until(lambda: rig.ring.statistics().held == 0)


@one_backend
async def test_a_rate_is_asked_only_of_those_for_whom_something_waits() -> None:
    limits = Limits(stall_seconds=0.1, least_rate=1e9, keep_alive_seconds=60)
    async with serving(Application(), limits=limits) as rig:

        def ask_slowly(sock: socket.socket) -> list[bytes]:
            got = []
            for _ in range(4):
                sock.sendall(GET % (b"/hello", b""))
                got.append(receive_answer(sock, 5))
                time.sleep(0.3)
            return got

        assert await rig.client(ask_slowly) == [b"hello"] * 4
