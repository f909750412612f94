"""Starting and stopping: the lifespan, ``serve`` within a program, UNIX sockets."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import httpx
import pytest

import zc_anyio
from tests.asgi.applications import LARGE, Application, respond
from tests.asgi.rig import CLOSE, GET, body, failures, receive_all, receive_answer, serving, status
from tests.support.backends import one_backend
from tests.support.waiting import LIMIT, until
from zc_anyio.asgi import LifespanError, Limits, serve

pytestmark = pytest.mark.anyio


class Lifespan:
    """An application whose lifespan is a list of what it sends, or raises."""

    def __init__(self, *script: str | Exception) -> None:
        self.script = list(script)
        self.received: list[str] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope["state"]["seen"] = scope["state"].get("seen", 0) + 1
            await respond(send, repr(sorted(scope["state"].items())).encode())
            return
        scope["state"].update(number=1)
        for step in self.script:
            self.received.append((await receive())["type"])
            if isinstance(step, Exception):
                raise step
            await send({"type": step, "message": "because"})


COMPLETE = "lifespan.startup.complete"
SHUTDOWN = "lifespan.shutdown.complete"


# --- lifespan ---


async def test_the_state_of_the_lifespan_is_each_requests_own_copy() -> None:
    app = Lifespan(COMPLETE, SHUTDOWN)
    async with serving(app) as rig:
        for _ in range(2):
            assert body(await rig.get("/")) == b"[('number', 1), ('seen', 1)]"
    assert app.received == ["lifespan.startup", "lifespan.shutdown"]


async def test_an_application_that_fails_to_start_is_not_served() -> None:
    app = Lifespan("lifespan.startup.failed")
    with pytest.raises(LifespanError, match="because"):
        await serve(app, port=0)


@one_backend
async def test_an_application_without_lifespan_is_served_unless_it_is_required(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Lifespan(ValueError("unknown scope"))
    with pytest.raises(LifespanError):
        await serve(app, port=0, lifespan="on")

    async def plain(scope: dict[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        assert "state" not in scope
        await respond(send, b"plain")

    for lifespan in ("auto", "off"):
        async with serving(plain, lifespan=lifespan) as rig:
            assert body(await rig.get("/")) == b"plain"
    assert not failures(caplog)


@one_backend
async def test_a_lifespan_that_ends_too_soon_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Lifespan(COMPLETE, ValueError("late"))) as rig:
        assert status(await rig.get("/")) == 200
    assert failures(caplog) == ["Exception in 'lifespan' protocol"]
    caplog.clear()
    async with serving(Lifespan(COMPLETE, "lifespan.shutdown.failed")):
        pass
    assert failures(caplog) == ["Application shutdown failed: because"]


# --- within a program ---


async def test_the_ring_is_ambient_in_handlers_and_the_lifespan() -> None:
    rings = []

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        rings.append(zc_anyio.current_ring())
        if scope["type"] == "http":
            await respond(send, b"")
        else:
            await receive()
            await send({"type": COMPLETE})
            await receive()
            await send({"type": SHUTDOWN})

    async with serving(app) as rig:
        await rig.get("/")
        await rig.ask(GET % (b"/", b"") + GET % (b"/", CLOSE))
        assert rings == [rig.ring] * 4


async def test_without_a_ring_one_is_opened() -> None:
    async with anyio.create_task_group() as tasks:
        stop = anyio.Event()

        async def run(*, task_status: Any) -> None:
            await serve(Application(), port=0, stop=stop, driver="copy", task_status=task_status)

        (url,) = await tasks.start(run)
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{url}/hello")).text == "hello"
        stop.set()


async def test_cancelling_ends_everything_at_once() -> None:
    app = Application()
    async with zc_anyio.open_ring(), anyio.create_task_group() as tasks:

        async def run(*, task_status: Any) -> None:
            await serve(app, port=0, task_status=task_status)

        (url,) = await tasks.start(run)
        port = int(url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), LIMIT) as sock:
            sock.sendall(GET % (b"/lasts", b""))
            await app.began.wait()
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True), pytest.raises(ConnectionResetError):
                await anyio.to_thread.run_sync(receive_all, sock)


@one_backend
async def test_what_cannot_be_listened_on_is_raised() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        app = Lifespan(COMPLETE, SHUTDOWN)
        with pytest.raises(OSError, match="in use"):
            await serve(app, port=taken.getsockname()[1])
        # It is told that it stops, as it was told that it starts.
        assert app.received == ["lifespan.startup", "lifespan.shutdown"]
    with pytest.raises(ValueError, match="nonsense"):
        await serve(Application(), port=0, forwarded_allow_ips="nonsense")


# --- stopping ---


async def test_a_stop_lets_answers_end_and_closes_the_rest(driver: str) -> None:
    app = Application()
    async with serving(app, driver=driver) as rig:
        idle, busy = [await anyio.to_thread.run_sync(rig.connect) for _ in range(2)]
        with idle, busy:

            def begin() -> None:
                idle.sendall(GET % (b"/hello", b""))
                receive_answer(idle, 5)
                busy.sendall(GET % (b"/lasts", b""))
                assert b"first" in busy.recv(1000)

            await anyio.to_thread.run_sync(begin)
            rig.stop.set()
            assert await anyio.to_thread.run_sync(idle.recv, 1) == b""
            with pytest.raises(ConnectionRefusedError):
                rig.connect()
            assert not rig.stopped.is_set()
            app.done.set()
            assert b"last" in await anyio.to_thread.run_sync(receive_all, busy)
            with anyio.fail_after(LIMIT):
                await rig.stopped.wait()


async def test_a_stop_waits_no_longer_than_its_limit(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Application(), limits=Limits(stop_seconds=0.2)) as rig:
        with await anyio.to_thread.run_sync(rig.connect) as sock:
            sock.sendall(GET % (b"/lasts", b""))
            assert await anyio.to_thread.run_sync(sock.recv, 1000)
            rig.stop.set()
            with anyio.fail_after(LIMIT):
                await rig.stopped.wait()
    assert failures(caplog) == ["Cancelled what was under way after 0.2 s."]


async def test_a_stop_under_load_loses_no_request(driver: str) -> None:
    """Every request on a connection that the kernel has accepted is answered."""
    answered = [0] * 8
    refused = threading.Event()

    async with serving(Application(), driver=driver) as rig:

        def load(number: int) -> None:
            # Each request has a connection of its own, so no client has to guess whether it is
            # kept.
            while True:
                try:
                    sock = rig.connect()
                except ConnectionRefusedError:
                    refused.set()
                    return
                with sock:
                    sock.sendall(GET % (b"/hello", CLOSE))
                    answer = receive_all(sock)
                    assert body(answer) == b"hello", answer
                    answered[number] += 1

        async with anyio.create_task_group() as clients:
            for number in range(len(answered)):
                clients.start_soon(anyio.to_thread.run_sync, load, number)
            await until(lambda: min(answered) > 5)
            rig.stop.set()
        assert refused.is_set()


@one_backend
async def test_the_server_stops_after_a_number_of_requests() -> None:
    async with serving(Application(), limits=Limits(requests=3)) as rig:
        for _ in range(3):
            assert status(await rig.get("/hello")) == 200
        with anyio.fail_after(LIMIT):
            await rig.stopped.wait()


# --- other ways to be reached ---


async def test_a_unix_socket(tmp_path: Path, driver: str) -> None:
    path = str(tmp_path / "socket")
    async with zc_anyio.open_ring(driver=driver) as ring:  # type: ignore[arg-type]
        async with anyio.create_task_group() as tasks:
            stop = anyio.Event()

            async def run(*, task_status: Any) -> None:
                await serve(Application(), uds=path, stop=stop, task_status=task_status)

            assert await tasks.start(run) == [f"unix:{path}"]
            transport = httpx.AsyncHTTPTransport(uds=path)
            async with httpx.AsyncClient(transport=transport) as client:
                assert (await client.get("http://a/large")).content == LARGE
                assert "'client': None" in (await client.get("http://a/describe")).text
            stop.set()
        assert ring.statistics().bytes_sent > len(LARGE)


async def test_a_descriptor() -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    async with zc_anyio.open_ring(), anyio.create_task_group() as tasks:
        stop = anyio.Event()

        async def run(*, task_status: Any) -> None:
            await serve(Application(), fd=listening.detach(), stop=stop, task_status=task_status)

        assert await tasks.start(run) == [url]
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{url}/hello")).text == "hello"
        stop.set()
