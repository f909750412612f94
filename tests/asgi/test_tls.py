"""HTTPS and wss: answers arrive whole, and no end of a connection waits for a limit."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from websockets.exceptions import ConnectionClosed

import zc_anyio
from tests.asgi.applications import LARGE, Application
from tests.asgi.rig import CLOSE, GET, Rig, body, receive_all, receive_answer, serving, status
from tests.support.secure_websocket import connect_secure
from tests.support.waiting import LIMIT
from tests.tls.sessions import (
    CERTIFICATE,
    check_kernel,
    client_context,
    counted_by_kernel,
    kernel_encrypts,
    openssl_at,
    server_context,
)
from zc_anyio.asgi import Limits, _peer

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.fixture(autouse=True)
def far_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that lingers until the limit fails its test."""
    monkeypatch.setattr(_peer, "LINGER_SECONDS", 1000.0)


@dataclass(frozen=True)
class Session:
    """Where OpenSSL runs, and what it is to negotiate."""

    place: str
    name: str

    @property
    def by_kernel(self) -> bool:
        return kernel_encrypts(self.place, self.name)


@pytest.fixture(
    params=[
        pytest.param(Session(place, name), id=f"{place}-{name}")
        for place, name in (
            ("memory", "tls13"),
            ("socket", "tls13"),
            ("socket", "tls12"),
            ("socket", "tls12-cbc"),
        )
    ]
)
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    check_kernel()
    with openssl_at(request.param.place):
        yield request.param


@pytest.fixture
def server_tls(session: Session) -> ssl.SSLContext:
    return server_context(session.name)


@pytest.fixture
def client_tls() -> ssl.SSLContext:
    return client_context()


async def exchange(
    rig: Rig, trusting: ssl.SSLContext, talk: Callable[[ssl.SSLSocket], bytes]
) -> bytes:
    def run() -> bytes:
        with (
            rig.connect() as plain,
            # An end without TLS's farewell is an error.
            trusting.wrap_socket(
                plain, server_hostname="localhost", suppress_ragged_eofs=False
            ) as sock,
        ):
            return talk(sock)

    with anyio.fail_after(LIMIT):
        return await anyio.to_thread.run_sync(run)


async def test_answers_and_what_the_application_is_told(
    session: Session, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, tmp_path: Path
) -> None:
    pem = CERTIFICATE.cert_chain_pems[0].bytes().decode()
    path = tmp_path / "file"
    path.write_bytes(LARGE)
    seen: list[dict[str, Any]] = []

    async def file(scope: dict[str, Any], receive: Any, send: Any) -> None:
        seen.append(scope)
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.pathsend", "path": str(path)})

    app = Application(file=file)
    async with serving(app, tls=server_tls, certificate=pem) as rig:
        assert rig.url.startswith("https://")

        def talk(sock: ssl.SSLSocket) -> bytes:
            for target in (b"/large", b"/file"):
                sock.sendall(GET % (target, b""))
                assert receive_answer(sock, len(LARGE)) == LARGE
            sock.sendall(GET % (b"/stream", CLOSE))
            return receive_all(sock)

        with counted_by_kernel(growing=session.by_kernel):
            answer = await exchange(rig, client_tls, talk)
        assert answer.endswith(b"3\r\nend\r\n0\r\n\r\n")
        # OpenSSL on the socket writes what it encrypts by itself.
        counters = rig.ring.statistics()
        through_ring = session.by_kernel or session.place == "memory"
        assert (counters.bytes_sent > 2 * len(LARGE)) == through_ring
        assert (counters.kernel_tls > 0) == session.by_kernel
        # A client that speaks no TLS harms nobody.
        with suppress(ConnectionResetError):
            assert not (await rig.ask(GET % (b"/hello", b""))).startswith(b"HTTP")
    scope = seen[0]
    assert scope["scheme"] == "https"
    # Send groups take what the kernel encrypts.
    assert ("zc_anyio" in scope["extensions"]) == session.by_kernel
    told = scope["extensions"]["tls"]
    assert told["server_cert"] == pem
    version = 0x0304 if session.name == "tls13" else 0x0303
    assert (told["tls_version"], told["client_cert_chain"]) == (version, [])
    assert (0x1301 <= told["cipher_suite"] <= 0x1303) == (session.name == "tls13")


@pytest.mark.parametrize("by", ["client", "server"])
async def test_a_websocket_is_closed(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, by: str
) -> None:
    async def app(_scope: dict[str, Any], receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        if by == "server":
            await send({"type": "websocket.close", "code": 4000})
        while (await receive())["type"] != "websocket.disconnect":
            pass

    async with serving(app, tls=server_tls) as rig:

        def talk() -> int | None:
            port = rig.url.rpartition(":")[2]
            with connect_secure(f"wss://localhost:{port}", client_tls) as websocket:
                if by == "client":
                    websocket.close(4000)
                else:
                    with pytest.raises(ConnectionClosed):
                        websocket.recv()
            # Only now has the connection ended.
            return websocket.close_code

        with anyio.fail_after(LIMIT):
            assert await anyio.to_thread.run_sync(talk) == 4000


async def test_a_body_that_ends_with_the_connection(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with serving(Application(), tls=server_tls) as rig:

        def talk(sock: ssl.SSLSocket) -> bytes:
            sock.sendall(b"GET /unsized HTTP/1.0\r\n\r\n")
            return receive_all(sock)

        assert body(await exchange(rig, client_tls, talk)) == b"whole"


async def test_an_answer_to_what_is_refused_arrives_while_the_client_sends(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    async with serving(Application(), tls=server_tls, limits=Limits(body_bytes=1000)) as rig:

        def talk(sock: ssl.SSLSocket) -> bytes:
            sock.sendall(b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 200000\r\n\r\n")
            sock.sendall(bytes(100_000))
            answer = sock.recv(1000)
            sock.sendall(bytes(100_000))
            sock.shutdown(socket.SHUT_WR)
            return answer

        assert status(await exchange(rig, client_tls, talk)) == 413
        assert status(await exchange(rig, client_tls, ask)) == 200


def ask(sock: ssl.SSLSocket) -> bytes:
    sock.sendall(GET % (b"/hello", b""))
    return sock.recv(1000)


async def test_an_application_broadcasts_in_order_with_the_server(
    session: Session, server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    pieces = [LARGE[:1000], LARGE[:1_000_000], LARGE[1:], LARGE[2:1000]]

    async def mixed(scope: dict[str, Any], receive: Any, send: Any) -> None:
        extension = scope["extensions"].get("zc_anyio")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number, piece in enumerate(pieces):
            if number % 2 and extension is not None:
                async with zc_anyio.send_group(ring=extension["ring"]) as group:
                    await group.broadcast([extension["stream"]], piece)
            else:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    async with serving(Application(mixed=mixed), tls=server_tls) as rig:

        def talk(sock: ssl.SSLSocket) -> bytes:
            # The body of HTTP/1.0 is not framed.
            sock.sendall(b"GET /mixed HTTP/1.0\r\n\r\n")
            return receive_all(sock)

        assert body(await exchange(rig, client_tls, talk)) == b"".join(pieces)
        assert (rig.ring.statistics().kernel_tls > 0) == session.by_kernel


async def test_connections_that_are_idle_or_too_slow_are_ended(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    limits = Limits(keep_alive_seconds=0.1, head_seconds=0.1)
    async with serving(Application(), tls=server_tls, limits=limits) as rig:

        def idle(sock: ssl.SSLSocket) -> bytes:
            sock.sendall(GET % (b"/hello", b""))
            return receive_all(sock)

        def slow(sock: ssl.SSLSocket) -> bytes:
            sock.sendall(b"GET /hel")
            return receive_all(sock)

        assert body(await exchange(rig, client_tls, idle)) == b"hello"
        assert status(await exchange(rig, client_tls, slow)) == 408


async def test_a_stop_lets_an_answer_end(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext
) -> None:
    begun = anyio.Event()

    async def slow(scope: dict[str, Any], receive: Any, send: Any) -> None:
        begun.set()
        await rig.stop.wait()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": LARGE})

    async with serving(Application(slow=slow), tls=server_tls) as rig:

        def talk(sock: ssl.SSLSocket) -> bytes:
            sock.sendall(GET % (b"/slow", b""))
            return receive_all(sock)

        async def stop() -> None:
            await begun.wait()
            rig.stop.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop)
            assert body(await exchange(rig, client_tls, talk)) == LARGE
