"""HTTPS and wss: answers arrive whole, and no end of a connection waits for a limit."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trustme
from websockets.exceptions import ConnectionClosed

from tests.asgi.applications import LARGE, Application
from tests.asgi.rig import CLOSE, GET, Rig, body, receive_all, receive_answer, serving, status
from tests.support.secure_websocket import connect_secure
from tests.support.waiting import LIMIT
from zc_anyio.asgi import Limits, _peer

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.fixture(autouse=True)
def far_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that lingers until the limit fails its test."""
    monkeypatch.setattr(_peer, "LINGER_SECONDS", 1000.0)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(tls)
    return tls


@pytest.fixture
def client_tls(authority: trustme.CA) -> ssl.SSLContext:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return trusting


async def exchange(
    rig: Rig, trusting: ssl.SSLContext, talk: Callable[[ssl.SSLSocket], bytes]
) -> bytes:
    def run() -> bytes:
        with (
            rig.connect() as plain,
            trusting.wrap_socket(plain, server_hostname="localhost") as sock,
        ):
            return talk(sock)

    with anyio.fail_after(LIMIT):
        return await anyio.to_thread.run_sync(run)


async def test_answers_and_what_the_application_is_told(
    authority: trustme.CA, tmp_path: Path
) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate = authority.issue_cert("localhost")
    certificate.configure_cert(tls)
    pem = certificate.cert_chain_pems[0].bytes().decode()
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    path = tmp_path / "file"
    path.write_bytes(LARGE)
    seen: list[dict[str, Any]] = []

    async def file(scope: dict[str, Any], receive: Any, send: Any) -> None:
        seen.append(scope)
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.pathsend", "path": str(path)})

    app = Application(file=file)
    async with serving(app, tls=tls, certificate=pem) as rig:
        assert rig.url.startswith("https://")

        def run(exchange: Callable[[ssl.SSLSocket], None]) -> None:
            with (
                rig.connect() as plain,
                trusting.wrap_socket(plain, server_hostname="localhost") as sock,
            ):
                exchange(sock)

        def ask(sock: ssl.SSLSocket) -> None:
            for target in (b"/large", b"/file"):
                sock.sendall(GET % (target, b""))
                assert receive_answer(sock, len(LARGE)) == LARGE
            sock.sendall(GET % (b"/stream", CLOSE))
            assert receive_all(sock).endswith(b"3\r\nend\r\n0\r\n\r\n")

        await anyio.to_thread.run_sync(run, ask)
        assert rig.ring.statistics().bytes_sent > 2 * len(LARGE)
        # A client that speaks no TLS harms nobody.
        assert not (await rig.ask(GET % (b"/hello", b""))).startswith(b"HTTP")
    scope = seen[0]
    assert scope["scheme"] == "https"
    # A TLS stream cannot be given to a send group.
    assert "zc_anyio" not in scope["extensions"]
    told = scope["extensions"]["tls"]
    assert told["server_cert"] == pem
    assert (told["tls_version"], told["client_cert_chain"]) == (0x0304, [])
    assert told["cipher_suite"] in (0x1301, 0x1302, 0x1303)


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
            # A truncated answer would raise: an end without TLS's farewell is an error here.
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
