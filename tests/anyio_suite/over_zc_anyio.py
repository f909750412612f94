"""Runs anyio's own tests of sockets over this library: anyio's backends make its streams.

``make test-anyio`` fetches anyio's sources and runs them with this plugin.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any
from unittest import mock

import pytest
from anyio._backends._asyncio import AsyncIOBackend
from anyio._backends._trio import TrioBackend

import zc_anyio
import zc_anyio.tls
from zc_anyio._base.takeover import take_socket
from zc_anyio._connecting.wrap import take_over
from zc_anyio._seqpacket import make_unix_stream
from zc_anyio.datagrams import ZeroCopyConnectedUDPSocket, ZeroCopyUDPSocket
from zc_anyio.listeners import ZeroCopySocketListener
from zc_anyio.streams import ZeroCopySocketStream

# Classes or tests that cannot pass, without their parameters, with the reason.
NOT_OURS = {
    "TestTLSStream::test_default_context_ignore_unexpected_eof_flag_off": "it looks at anyio's own "
    "handshake, and wrap_tls() makes no context",
    "TestUNIXStream::test_send_large_buffer": "it keeps the event loop waiting for a peer that is "
    "to get what was accepted and had no room; see docs/streams.md",
    "TestTCPStream::test_cancelled_receive_pauses_reading": "it looks at anyio's own transport",
    "TestUDPSocketBackpressure": "its UDP sockets are UNIX ones; and here a send waits when a "
    "window is full, not when the kernel's buffer is",
}
# The same where OpenSSL runs on the socket.
OVER_SOCKET = {
    f"{name}::test_extra_attributes": "it wants an SSLObject, where there is an SSLSocket"
    for name in ("TestTLSStream", "TestTLSListener")
}


class Place:
    """Where the backends find the ring of the present test."""

    ring: zc_anyio.Ring
    made = tls_made = 0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--driver", default="io_uring", help="of the ring that each test has")
    parser.addoption(
        "--tls", choices=["memory", "socket"], default="memory", help="where OpenSSL runs"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    over_socket = OVER_SOCKET if config.getoption("--tls") == "socket" else {}
    for item in items:
        name = item.nodeid.partition("::")[2].partition("[")[0]
        reason = (
            over_socket.get(name) or NOT_OURS.get(name) or NOT_OURS.get(name.partition("::")[0])
        )
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have anyio's tests of TLS make this library's streams and listeners."""
    if session.config.getoption("--tls") == "socket":
        mock.patch("zc_anyio.tls.why_no_kernel_tls", return_value=None).start()
    for module in {item.module for item in session.items if isinstance(item, pytest.Function)}:
        if module.__name__.endswith("test_tls"):
            module.TLSStream = TLSHere
            module.TLSListener = zc_anyio.tls.TLSListener


class TLSHere:
    """Stands for anyio's TLSStream in its tests."""

    @staticmethod
    async def wrap(
        stream: Any,
        *,
        server_side: bool | None = None,
        hostname: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
        standard_compatible: bool = True,
    ) -> Any:
        Place.tls_made += 1
        server_side = not hostname if server_side is None else server_side
        if ssl_context is None:
            purpose = ssl.Purpose.CLIENT_AUTH if server_side else ssl.Purpose.SERVER_AUTH
            ssl_context = ssl.create_default_context(purpose)
        return await zc_anyio.tls.wrap_tls(
            stream,
            ssl_context,
            server_side=server_side,
            server_hostname=hostname,
            standard_compatible=standard_compatible,
        )


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Fail if no object of this library was used: then anyio makes its objects in another place."""
    is_worker = hasattr(session.config, "workerinput")
    alone = not is_worker and not session.config.getoption("numprocesses", None)
    if (is_worker or alone) and exitstatus == 0 and not Place.made:
        raise pytest.UsageError("no stream, socket or listener was this library's")


@pytest.fixture(autouse=True)
async def ring(anyio_backend: Any, request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """A ring for each test, in its own event loop."""
    async with zc_anyio.open_ring(driver=request.config.getoption("--driver")) as opened:
        Place.ring = opened
        yield


def of_ring(kind: Any, *arguments: Any) -> Any:
    Place.made += 1
    return kind(Place.ring, *arguments)


def replace(backend: Any) -> None:
    """Have a backend of anyio make this library's streams, listeners and UDP sockets."""
    connect_tcp, connect_unix = backend.connect_tcp, backend.connect_unix
    create_udp_socket = backend.create_udp_socket

    async def connect_tcp_here(*arguments: Any, **more: Any) -> Any:
        Place.made += 1
        return await take_over(await connect_tcp(*arguments, **more), Place.ring)

    async def connect_unix_here(*arguments: Any, **more: Any) -> Any:
        Place.made += 1
        return await take_over(await connect_unix(*arguments, **more), Place.ring)

    async def create_udp_socket_here(*arguments: Any, **more: Any) -> Any:
        made = await create_udp_socket(*arguments, **more)
        sock, received = await take_socket(made)
        kind = ZeroCopyUDPSocket
        try:
            sock.getpeername()
        except OSError:
            return of_ring(kind, sock, received)
        return of_ring(ZeroCopyConnectedUDPSocket, sock, received)

    async def listen(sock: socket.socket) -> Any:
        return of_ring(ZeroCopySocketListener, sock)

    async def stream(sock: socket.socket) -> Any:
        sock.setblocking(False)
        return of_ring(ZeroCopySocketStream, sock, b"")

    async def unix_stream(sock: socket.socket) -> Any:
        sock.setblocking(False)
        return of_ring(make_unix_stream, sock)

    async def udp(sock: socket.socket) -> Any:
        return of_ring(ZeroCopyUDPSocket, sock, [])

    async def connected_udp(sock: socket.socket) -> Any:
        return of_ring(ZeroCopyConnectedUDPSocket, sock, [])

    for name, function in {
        "connect_tcp": connect_tcp_here,
        "connect_unix": connect_unix_here,
        "create_udp_socket": create_udp_socket_here,
        "create_tcp_listener": lambda sock: of_ring(ZeroCopySocketListener, sock),
        "create_unix_listener": lambda sock: of_ring(ZeroCopySocketListener, sock),
        "wrap_listener_socket": listen,
        "wrap_stream_socket": stream,
        "wrap_unix_stream_socket": unix_stream,
        "wrap_udp_socket": udp,
        "wrap_connected_udp_socket": connected_udp,
    }.items():
        setattr(backend, name, staticmethod(function))


for each in (AsyncIOBackend, TrioBackend):
    replace(each)
