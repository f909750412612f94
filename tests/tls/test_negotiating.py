"""What a handshake settles: certificates of both ends, protocols, ciphers, resumed sessions."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSAttribute

import zc_anyio
from tests.streams.pairs import facing
from tests.support.backends import one_backend
from tests.support.needs import need_command
from tests.support.waiting import LIMIT, until
from tests.tls.sessions import (
    AUTHORITY,
    DATA,
    KERNEL_HAS_TLS,
    EchoServer,
    check_place,
    client_context,
    echo,
    server_context,
    wrap,
)
from zc_anyio.tls import KernelTLSAttribute

pytestmark = pytest.mark.anyio

MINE = AUTHORITY.issue_cert("client@example.org", common_name="client")


@pytest.fixture(params=["tls12", "tls13"])
def version(request: pytest.FixtureRequest) -> str:
    return request.param


def names_of(certificate: dict[str, Any] | None) -> list[str]:
    assert certificate is not None
    return [value for _, value in certificate["subjectAltName"]]


async def served(
    context: ssl.SSLContext,
    place: str,
    version: str,
    client: Callable[[socket.socket], Any],
    check: Callable[[Any], Awaitable[None]] | None = None,
) -> Any:
    """Run a client in a thread against a stream that sends DATA and ends; return what it returns.

    :param check: what is awaited with the stream, before it sends.
    """
    results = []
    async with zc_anyio.open_ring(), facing() as (plain, sock), anyio.create_task_group() as tasks:

        async def run() -> None:
            results.append(await anyio.to_thread.run_sync(client, sock))

        tasks.start_soon(run)
        try:
            wrapped = await wrap(plain, place, context=context)
        except BaseException:
            # The client waits for the end.
            await anyio.aclose_forcefully(plain)
            raise
        async with wrapped as stream:
            check_place(stream, place, version)
            if check is not None:
                await check(stream)
            await stream.send(DATA)
    return results[0]


def read_all(session: ssl.SSLSocket, wanted: bytes = DATA) -> None:
    """Assert what the rest of a session is, and end it."""
    got = bytearray()
    while data := session.recv(65536):
        got += data
    assert got == wanted
    session.unwrap()


# --- several certificates ---


def by_name(version: str) -> ssl.SSLContext:
    """A context with a certificate for each of two names, which refuses other names."""
    contexts = {}
    for name in ("one.example", "two.example"):
        contexts[name] = server_context(version)
        AUTHORITY.issue_cert(name).configure_cert(contexts[name])

    def choose(session: Any, name: str | None, _context: ssl.SSLContext) -> int | None:
        if name not in contexts:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        session.context = contexts[name]
        return None

    context = server_context(version)
    context.sni_callback = choose
    return context


@pytest.mark.parametrize("name", ["one.example", "two.example"])
async def test_a_certificate_for_each_name(place: str, version: str, name: str) -> None:
    def client(sock: socket.socket) -> list[str]:
        with client_context().wrap_socket(sock, server_hostname=name) as session:
            read_all(session)
            return [name]

    assert await served(by_name(version), place, version, client) == [name]


async def test_a_name_that_is_not_served(place: str, version: str) -> None:
    def client(sock: socket.socket) -> None:
        with pytest.raises(OSError):
            client_context().wrap_socket(sock, server_hostname="other.example")

    with pytest.raises(ExceptionGroup) as caught:
        await served(by_name(version), place, version, client)
    assert caught.group_contains(ssl.SSLError, match="(?i)callback.failed")


# --- certificates of clients ---


def asking(version: str) -> ssl.SSLContext:
    context = server_context(version)
    context.verify_mode = ssl.CERT_REQUIRED
    AUTHORITY.configure_trust(context)
    return context


def with_certificate() -> ssl.SSLContext:
    context = client_context()
    MINE.configure_cert(context)
    return context


async def test_a_client_with_a_certificate(place: str, version: str) -> None:
    def client(sock: socket.socket) -> None:
        with with_certificate().wrap_socket(sock, server_hostname="localhost") as session:
            read_all(session)

    async def check(stream: Any) -> None:
        assert names_of(stream.extra(TLSAttribute.peer_certificate)) == ["client@example.org"]
        der: bytes = stream.extra(TLSAttribute.peer_certificate_binary)
        assert ssl.DER_cert_to_PEM_cert(der).encode() == MINE.cert_chain_pems[0].bytes()

    await served(asking(version), place, version, client, check)


async def test_a_client_without_a_certificate(place: str, version: str) -> None:
    def client(sock: socket.socket) -> None:
        with suppress(OSError):
            with client_context().wrap_socket(sock, server_hostname="localhost") as session:
                # In TLS 1.3 a client learns only now that it is refused.
                session.recv(1)
                raise AssertionError("it was served")

    with pytest.raises(ExceptionGroup) as caught:
        await served(asking(version), place, version, client)
    assert caught.group_contains(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE")


async def test_this_client_s_certificate(place: str, version: str) -> None:
    with EchoServer(asking(version)) as server:
        async with zc_anyio.open_ring():
            context = with_certificate()
            async with await zc_anyio.connect_tcp(
                "127.0.0.1", server.port, ssl_context=context
            ) as stream:
                check_place(stream, place, version)
                await echo(stream, DATA)
    assert names_of(server.handshakes[0]["certificate"]) == ["client@example.org"]
    assert server.ends == [None]


async def test_this_client_has_no_certificate(place: str, version: str) -> None:
    """It gets the alert as an ``SSLError``, in TLS 1.3 when it receives."""
    with EchoServer(asking(version)) as server:
        async with zc_anyio.open_ring():
            with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
                stream = await zc_anyio.connect_tcp(
                    "127.0.0.1", server.port, ssl_context=client_context()
                )
                try:
                    await stream.receive()
                finally:
                    await anyio.aclose_forcefully(stream)
            await until(lambda: server.ends)
    assert isinstance(server.ends[0], ssl.SSLError)


# --- protocols ---


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(["http/1.1"], "http/1.1"), (["http/1.1", "h2"], "h2"), (["spdy/1"], None), ([], None)],
    ids=str,
)
async def test_protocols(place: str, version: str, offered: list[str], chosen: str | None) -> None:
    serving, asking_for = server_context(version), client_context()
    serving.set_alpn_protocols(["h2", "http/1.1"])
    asking_for.set_alpn_protocols(offered)

    def client(sock: socket.socket) -> str | None:
        with asking_for.wrap_socket(sock, server_hostname="localhost") as session:
            protocol = session.selected_alpn_protocol()
            read_all(session)
            return protocol

    async def check(stream: Any) -> None:
        assert stream.extra(TLSAttribute.alpn_protocol) == chosen

    assert await served(serving, place, version, client, check) == chosen
    with EchoServer(serving) as server:
        async with zc_anyio.open_ring():
            async with await zc_anyio.connect_tcp(
                "127.0.0.1", server.port, ssl_context=asking_for
            ) as stream:
                await check(stream)
                await echo(stream, b"hello")
    assert server.handshakes[0]["alpn"] == chosen


# --- sessions ---


async def test_a_session_is_resumed(place: str, version: str) -> None:
    serving, asking_for = server_context(version), client_context()
    sessions: list[Any] = [None]

    def client(sock: socket.socket) -> bool | None:
        with asking_for.wrap_socket(
            sock, server_hostname="localhost", session=sessions[-1]
        ) as session:
            reused = session.session_reused
            assert session.recv(1) == DATA[:1]  # in TLS 1.3 tickets come before the data
            sessions.append(session.session)
            read_all(session, DATA[1:])
            return reused

    assert await served(serving, place, version, client) is False
    assert await served(serving, place, version, client) is True


# --- ciphers ---

KERNEL = tuple(map(int, os.uname().release.split(".")[:2]))
# OpenSSL's names, and whether OpenSSL 3.0 gives the kernel the keys and the kernel takes them.
CIPHERS = {
    "TLS_AES_128_GCM_SHA256": True,
    "TLS_AES_256_GCM_SHA384": True,
    "TLS_CHACHA20_POLY1305_SHA256": KERNEL >= (5, 11),
    "ECDHE-ECDSA-AES128-GCM-SHA256": True,
    "ECDHE-ECDSA-AES256-GCM-SHA384": True,
    "ECDHE-ECDSA-CHACHA20-POLY1305": KERNEL >= (5, 11),
    "ECDHE-ECDSA-AES128-CCM": True,
    "ECDHE-ECDSA-AES128-CCM8": False,
    "ECDHE-ECDSA-AES256-SHA384": False,
    "ECDHE-ECDSA-CAMELLIA128-SHA256": False,
}


@one_backend
@pytest.mark.parametrize("cipher", list(CIPHERS))
async def test_ciphers(driver: Any, place: str, cipher: str, tmp_path: Path) -> None:
    openssl = need_command("openssl", "openssl")
    is_13 = cipher.startswith("TLS_")
    context = server_context("tls13" if is_13 else "tls12")
    context.set_ciphers("ALL:@SECLEVEL=0")
    command = [openssl, "s_client", "-quiet", "-verify_quiet"]
    command += ["-tls1_3", "-ciphersuites"] if is_13 else ["-tls1_2", "-cipher"]
    command.append(cipher if is_13 else f"{cipher}:@SECLEVEL=0")
    async with zc_anyio.open_ring(driver=driver) as ring:
        listener = await zc_anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(SocketAttribute.local_port)
        command += ["-connect", f"127.0.0.1:{port}"]
        got = bytearray()
        async with listener, await anyio.open_process(command, stderr=None) as process:
            output: Any = process.stdout
            accepted: Any = await listener.listeners[0].accept()  # type: ignore[attr-defined]
            async with anyio.create_task_group() as tasks:

                async def send() -> None:
                    async with await wrap(accepted, place, context=context) as stream:
                        assert stream.extra(TLSAttribute.cipher)[0] == cipher
                        by_kernel = KERNEL_HAS_TLS and place == "socket" and CIPHERS[cipher]
                        assert stream.extra(KernelTLSAttribute.kernel_sends) is by_kernel
                        await stream.send(DATA)
                    assert (ring.statistics().kernel_tls > 0) is by_kernel

                tasks.start_soon(send)
                with anyio.fail_after(LIMIT):
                    async for data in output:
                        got.extend(data)
        assert got == DATA
