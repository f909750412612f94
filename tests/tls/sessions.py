"""TLS sessions under test: certificates, contexts, where OpenSSL runs, and a peer of ssl."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from unittest import mock

import anyio
import trustme

from tests.support.waiting import LIMIT
from zc_anyio import tls
from zc_anyio._base.kernel_tls import why_no_kernel_tls

KERNEL_HAS_TLS = why_no_kernel_tls() is None
DATA = random.Random(5).randbytes(3 << 20)
AUTHORITY = trustme.CA()
CERTIFICATE = AUTHORITY.issue_cert("localhost", "127.0.0.1")
# TLS 1.2's last one is none that a kernel knows.
SESSIONS = {
    "tls13": (ssl.TLSVersion.TLSv1_3, None),
    "tls12": (ssl.TLSVersion.TLSv1_2, "ECDHE+AESGCM"),
    "tls12-cbc": (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA256"),
}


def check_kernel() -> None:
    """Fail where the kernel's TLS is required and missing (``ZC_ANYIO_REQUIRE_KERNEL_TLS=1``)."""
    if os.environ.get("ZC_ANYIO_REQUIRE_KERNEL_TLS") == "1":
        assert KERNEL_HAS_TLS, why_no_kernel_tls()


@contextmanager
def openssl_at(place: str) -> Iterator[None]:
    """Decide where OpenSSL runs; on the socket, it gives the kernel its keys if that has TLS.

    If the kernel has none, it goes on by itself, as with a cipher that the kernel does not know.
    """
    reason = "this test has OpenSSL in memory" if place == "memory" else None
    with mock.patch.object(tls, "why_no_kernel_tls", return_value=reason):
        yield


def kernel_encrypts(place: str, session: str = "tls13") -> bool:
    """Whether the kernel has to encrypt what a stream sends."""
    return KERNEL_HAS_TLS and place == "socket" and session != "tls12-cbc"


def server_context(session: str = "tls13") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = SESSIONS[session][0]
    if (ciphers := SESSIONS[session][1]) is not None:
        context.set_ciphers(ciphers)
    CERTIFICATE.configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    AUTHORITY.configure_trust(context)
    return context


async def wrap(stream: Any, place: str, **more: Any) -> Any:
    more.setdefault("server_side", True)
    if more["server_side"]:
        context = more.pop("context", None) or server_context()
    else:
        context = more.pop("context", None) or client_context()
        more.setdefault("server_hostname", "localhost")
    made = await tls.wrap_tls(stream, context, **more)
    check_place(made, place)
    return made


def check_place(stream: Any, place: str, session: str | None = None) -> None:
    """Assert that OpenSSL runs where the test wants it, and that the kernel encrypts if it can."""
    assert isinstance(stream, tls.SocketTLSStream) == (place == "socket")
    if session is not None:
        by_kernel = kernel_encrypts(place, session)
        assert stream.extra(tls.KernelTLSAttribute.kernel_sends) is by_kernel
        assert (stream.extra(tls.KernelTLSAttribute.why_not_kernel) is None) == by_kernel


class EchoServer:
    """A server of Python's ssl on loopback, which sends back what it gets until it is closed.

    :param handshakes: what of each session the test looks at, once its handshake is done.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.handshakes: list[dict[str, Any]] = []
        self.ends: list[BaseException | None] = []
        self._threads: list[threading.Thread] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *exc: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(LIMIT)
            assert not thread.is_alive()
        self._listening.close()

    def _start(self, function: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listening.accept()
                sock.settimeout(LIMIT)
                self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        try:
            with self.context.wrap_socket(
                sock,
                server_side=True,
                suppress_ragged_eofs=False,
                do_handshake_on_connect=False,
            ) as session:
                try:
                    session.do_handshake()
                except OSError:
                    # Closed with bytes unread it would reset the connection: its alert is lost.
                    with suppress(OSError):
                        while socket.socket.recv(session, 16384):
                            pass
                    raise
                self.handshakes.append(
                    {
                        "alpn": session.selected_alpn_protocol(),
                        "certificate": session.getpeercert(),
                        "version": session.version(),
                    }
                )
                while data := session.recv(16384):
                    session.sendall(data)
                session.unwrap()
        except OSError as exc:
            self.ends.append(exc)
        else:
            self.ends.append(None)


async def echo(stream: Any, data: bytes) -> None:
    """Send bytes to an echo server while they come back, and compare them."""
    got = bytearray()

    async def receive() -> None:
        while len(got) < len(data):
            got.extend(await stream.receive())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receive)
        await stream.send(data)
    assert got == data


class Peer(threading.Thread):
    """A client of Python's ssl, which reads to the end and then closes."""

    def __init__(self, sock: socket.socket, *, say: bytes = b"", **more: Any) -> None:
        super().__init__(daemon=True)
        self.sock, self.say, self.more = sock, say, more
        self.context = more.pop("context", None) or client_context()
        self.size, self.digest = 0, hashlib.sha256()
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            with self.context.wrap_socket(
                self.sock, server_hostname="localhost", suppress_ragged_eofs=False
            ) as session:
                session.sendall(self.say)
                while data := session.recv(65536):
                    self.size += len(data)
                    self.digest.update(data)
                with suppress(OSError):
                    session.unwrap()
        except (OSError, ValueError) as exc:
            self.error = exc

    async def end(self) -> None:
        await anyio.to_thread.run_sync(self.join, LIMIT)
        assert not self.is_alive()


@contextmanager
def counted_by_kernel(*, growing: bool) -> Iterator[None]:
    """Assert that the kernel has encrypted another connection, if it should have."""

    def count() -> int:
        path = Path("/proc/net/tls_stat")
        if not path.exists():
            return 0
        return int(path.read_text().split("TlsTxSw", 1)[1].split()[0])

    before = count()
    yield
    # Other processes may have such connections at any time.
    assert not growing or count() > before
