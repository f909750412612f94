"""``connect_tcp`` with TLS, and httpcore's connections: where OpenSSL runs, and what they raise."""

from __future__ import annotations

import math
import socket
import ssl
from pathlib import Path
from typing import Any

import anyio
import httpcore
import pytest
from anyio.streams.tls import TLSAttribute, TLSStream

import zc_anyio
from tests.support.waiting import until
from tests.tls.sessions import (
    AUTHORITY,
    DATA,
    SESSIONS,
    EchoServer,
    check_place,
    client_context,
    counted_by_kernel,
    echo,
    kernel_encrypts,
    server_context,
)
from zc_anyio.httpcore import RingBackend

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("session", list(SESSIONS))
async def test_what_is_sent_and_received(driver: Any, place: str, session: str) -> None:
    by_kernel = kernel_encrypts(place, session)
    with EchoServer(server_context(session)) as server, counted_by_kernel(growing=by_kernel):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with await zc_anyio.connect_tcp(
                "127.0.0.1", server.port, ssl_context=client_context()
            ) as stream:
                check_place(stream, place, session)
                await echo(stream, DATA)
                assert stream.extra(TLSAttribute.tls_version) == server.handshakes[0]["version"]
            assert (ring.statistics().kernel_tls > 0) == by_kernel
    assert server.ends == [None]


@pytest.mark.parametrize(
    "options",
    [
        {"tls": True},
        {"tls_hostname": "localhost"},
        {"tls": True, "tls_hostname": "localhost", "tls_standard_compatible": False},
    ],
    ids=["tls", "hostname", "not-standard"],
)
async def test_anyio_s_parameters(
    driver: Any,
    place: str,
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Without a context it makes one, which trusts what the system trusts."""
    root = tmp_path / "root.pem"
    AUTHORITY.cert_pem.write_to_path(str(root))
    monkeypatch.setenv("SSL_CERT_FILE", str(root))
    standard = options.get("tls_standard_compatible", True)
    with EchoServer(server_context()) as server:
        async with zc_anyio.open_ring(driver=driver):
            stream = await zc_anyio.connect_tcp("127.0.0.1", server.port, **options)
            assert isinstance(stream, TLSStream)
            check_place(stream, place, "tls13")
            assert stream.extra(TLSAttribute.standard_compatible) is standard
            context = stream.extra(TLSAttribute.ssl_object).context
            assert not context.options & ssl.OP_IGNORE_UNEXPECTED_EOF
            await echo(stream, b"hello")
            await stream.aclose()
            await until(lambda: server.ends)
    # The server's end of the connection tells whether there was a close_notify.
    assert (server.ends == [None]) is standard


async def test_a_certificate_for_another_name(driver: Any, place: str) -> None:
    with EchoServer(server_context()) as server:
        async with zc_anyio.open_ring(driver=driver):
            with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
                await zc_anyio.connect_tcp(
                    "127.0.0.1",
                    server.port,
                    ssl_context=client_context(),
                    tls_hostname="other.example",
                )
    assert len(server.ends) == 1
    assert isinstance(server.ends[0], ssl.SSLError)


async def test_cancelled_in_the_handshake(driver: Any, place: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with zc_anyio.open_ring(driver=driver):
            with anyio.move_on_after(0.05) as scope:
                await zc_anyio.connect_tcp("127.0.0.1", server.getsockname()[1], tls=True)
            assert scope.cancelled_caught


async def test_a_handshake_has_no_limit_of_its_own(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float | None] = []

    async def wrap(*arguments: Any, handshake_timeout: float, **more: Any) -> Any:
        limits.append(handshake_timeout)
        raise ssl.SSLError("enough")

    for module in "zc_anyio._connecting.connect", "zc_anyio.httpcore":
        monkeypatch.setattr(f"{module}.wrap_tls", wrap)
    with socket.create_server(("127.0.0.1", 0)) as server:
        async with zc_anyio.open_ring(driver=driver):
            port = server.getsockname()[1]
            with pytest.raises(ssl.SSLError, match="enough"):
                await zc_anyio.connect_tcp("127.0.0.1", port, tls=True)
            stream = await RingBackend().connect_tcp("127.0.0.1", port)
            with pytest.raises(httpcore.ConnectError, match="enough"):
                await stream.start_tls(client_context(), "localhost")
    assert limits == [math.inf, math.inf]


async def test_httpcore_s_connections(driver: Any, place: str) -> None:
    with EchoServer(server_context()) as server, counted_by_kernel(growing=kernel_encrypts(place)):
        async with zc_anyio.open_ring(driver=driver):
            plain = await RingBackend().connect_tcp("127.0.0.1", server.port)
            stream = await plain.start_tls(client_context(), "localhost")
            in_memory = isinstance(stream.get_extra_info("ssl_object"), ssl.SSLObject)
            assert in_memory == (place == "memory")
            got = bytearray()

            async def read() -> None:
                while len(got) < len(DATA):
                    got.extend(await stream.read(65536))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read)
                await stream.write(DATA)
            assert got == DATA
            assert not stream.get_extra_info("is_readable")
            await stream.aclose()
            assert plain.get_extra_info("socket").fileno() < 0


async def test_tls_inside_of_tls(driver: Any, place: str) -> None:
    """As to a server behind a proxy that is reached by HTTPS: OpenSSL runs in memory there."""
    with EchoServer(server_context()) as server:
        async with zc_anyio.open_ring(driver=driver):
            stream = await RingBackend().connect_tcp("127.0.0.1", server.port)
            outer = await stream.start_tls(client_context(), "localhost")
            # The echo of a hello is no answer to it.
            with pytest.raises(httpcore.ConnectError):
                await outer.start_tls(client_context(), "localhost")
            assert stream.get_extra_info("socket").fileno() < 0
