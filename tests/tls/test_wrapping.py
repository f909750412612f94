"""TLS over streams of a ring: by the kernel where it can, else in this process."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import anyio
import pytest

import zc_anyio
from tests.streams.pairs import facing
from tests.support.waiting import LIMIT, until
from tests.tls.sessions import (
    DATA,
    KERNEL_HAS_TLS,
    SESSIONS,
    Peer,
    check_place,
    client_context,
    counted_by_kernel,
    kernel_encrypts,
    openssl_at,
    server_context,
    wrap,
)
from zc_anyio import tls

pytestmark = pytest.mark.anyio


# --- what arrives ---


@pytest.mark.parametrize("session", list(SESSIONS))
async def test_sends_of_every_kind_arrive_in_order(
    driver: Any, place: str, session: str, tmp_path: Path
) -> None:
    by_kernel = kernel_encrypts(place, session)
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with counted_by_kernel(growing=by_kernel):
        async with zc_anyio.open_ring(driver=driver) as ring, facing() as (plain, sock):
            peer = Peer(sock, say=b"hello")
            async with await wrap(plain, place, context=server_context(session)) as stream:
                check_place(stream, place, session)
                assert await stream.receive() == b"hello"
                wanted = hashlib.sha256()
                for data in DATA[:100], DATA, bytearray(DATA):
                    await stream.send(data)
                    wanted.update(data)
                if by_kernel:
                    async with zc_anyio.send_group() as group:
                        await group.send(stream, DATA[:10])
                        await group.broadcast([stream], DATA)
                        await group.send(stream, [DATA[:70000], DATA[5:]])
                        assert await group.send_file(stream, path) == len(DATA)
                        await stream.send(b"e")
                    stream.send_nowait([b"n", b"d"])
                    for data in DATA[:10], DATA, DATA[:70000], DATA[5:], DATA, b"end":
                        wanted.update(data)
                else:
                    async with zc_anyio.send_group() as group:
                        with pytest.raises(TypeError):
                            await group.send(stream, b"plaintext")
            await peer.end()
            assert peer.error is None
            assert peer.digest.hexdigest() == wanted.hexdigest()
            counters = ring.statistics()
            assert (counters.kernel_tls > 0) == by_kernel
            if by_kernel:
                assert counters.zero_copied == 0


async def test_both_directions_at_once(driver: Any, place: str) -> None:
    def echo(sock: socket.socket) -> None:
        with server_context().wrap_socket(sock, server_side=True) as session:
            while data := session.recv(16384):
                session.sendall(data)
            session.unwrap()

    async with zc_anyio.open_ring(driver=driver), facing() as (plain, sock):
        thread = threading.Thread(target=echo, args=[sock], daemon=True)
        thread.start()
        stream = await wrap(plain, place, server_side=False)
        got = hashlib.sha256()

        async def receive() -> None:
            left = 4 * len(DATA)
            while left:
                data = await stream.receive()
                got.update(data)
                left -= len(data)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            for _ in range(4):
                await stream.send(DATA)
        assert got.digest() == hashlib.sha256(DATA * 4).digest()
        await stream.aclose()
        await anyio.to_thread.run_sync(thread.join, LIMIT)


# --- handshakes that fail ---


async def test_a_certificate_that_the_client_does_not_trust(driver: Any, place: str) -> None:
    stranger = ssl.create_default_context()
    async with zc_anyio.open_ring(driver=driver), facing() as (plain, sock):
        peer = Peer(sock, context=stranger)
        with pytest.raises(ssl.SSLError, match=r"(?i)unknown.ca"):
            await wrap(plain, place)
        await peer.end()
        assert isinstance(peer.error, ssl.SSLCertVerificationError)


async def test_a_certificate_that_this_client_does_not_trust(driver: Any, place: str) -> None:
    def serve(sock: socket.socket) -> None:
        with suppress(OSError):
            server_context().wrap_socket(sock, server_side=True).close()

    async with zc_anyio.open_ring(driver=driver), facing() as (plain, sock):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, serve, sock)
            with pytest.raises(ssl.SSLCertVerificationError):
                await wrap(plain, place, server_side=False, context=ssl.create_default_context())
            await plain.aclose()


async def test_a_peer_that_stalls_in_the_handshake(driver: Any, place: str) -> None:
    async with zc_anyio.open_ring(driver=driver), facing() as (plain, _):
        with pytest.raises(TimeoutError):
            await wrap(plain, place, handshake_timeout=0.05)


async def test_a_peer_that_sends_plaintext(driver: Any, place: str) -> None:
    async with zc_anyio.open_ring(driver=driver), facing() as (plain, sock):
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ssl.SSLError, match=r"(?i)http.request|wrong.version"):
            await wrap(plain, place)


async def test_a_connection_that_ends_in_the_handshake(driver: Any, place: str) -> None:
    async with zc_anyio.open_ring(driver=driver), facing() as (plain, sock):
        sock.shutdown(socket.SHUT_WR)
        with pytest.raises(anyio.BrokenResourceError):
            await wrap(plain, place)


# --- the end of a stream ---


@pytest.mark.parametrize("standard", [True, False], ids=["standard", "not-standard"])
async def test_an_end_without_close_notify(driver: Any, place: str, standard: bool) -> None:
    def cut(sock: socket.socket) -> None:
        session = client_context().wrap_socket(sock, server_hostname="localhost")
        session.sendall(b"part")
        session.shutdown(socket.SHUT_RDWR)
        session.close()

    async with zc_anyio.open_ring(driver=driver), facing() as (plain, sock):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, cut, sock)
            # With tickets that nobody reads, it would be a reset.
            context = server_context()
            context.num_tickets = 0
            stream = await wrap(plain, place, standard_compatible=standard, context=context)
            assert await stream.receive() == b"part"
            with pytest.raises(anyio.BrokenResourceError if standard else anyio.EndOfStream):
                await stream.receive()
            await anyio.aclose_forcefully(stream)


async def test_closing_wakes_a_task_that_receives(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver), facing() as (plain, sock):
        peer = Peer(sock)
        with mock.patch.object(tls, "why_no_kernel_tls", return_value=None):
            stream = await wrap(plain, "socket")

        async def receive() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await stream.receive()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            await stream.aclose()
        await stream.aclose()
        for call in stream.receive(), stream.send(b"x"):
            with pytest.raises(anyio.ClosedResourceError):
                await call
        await peer.end()
        assert peer.error is None


async def test_a_cancelled_receive_has_taken_nothing(driver: Any, place: str) -> None:
    async with zc_anyio.open_ring(driver=driver), facing() as (plain, sock):
        peer = Peer(sock)
        async with await wrap(plain, place) as stream:
            with anyio.move_on_after(0.02):
                await stream.receive()
            await stream.send(DATA)
        await peer.end()
        assert (peer.error, peer.size) == (None, len(DATA))


@pytest.mark.parametrize("session", ["tls13", "tls12", "tls12-cbc"])
async def test_the_stream_below_after_unwrapping(driver: Any, place: str, session: str) -> None:
    """It goes on in plaintext, except that a kernel that encrypted does so for ever."""
    plaintext = b"plain" * 10  # a kernel that decrypts waits for the head of a record

    def peer(sock: socket.socket) -> bytes:
        with client_context().wrap_socket(sock, server_hostname="localhost") as secure:
            assert secure.recv(100) == b"secret"
            assert secure.recv(100) == b""
            with secure.unwrap() as below:
                below.sendall(plaintext)
                got = b""
                with suppress(ConnectionResetError):  # closed with bytes unread
                    while data := below.recv(100):
                        got += data
                return got

    got: list[bytes] = []
    by_kernel = kernel_encrypts(place, session)
    async with zc_anyio.open_ring(driver=driver), facing() as (plain, sock):
        async with anyio.create_task_group() as tasks, zc_anyio.send_group() as group:

            async def run() -> None:
                got.append(await anyio.to_thread.run_sync(peer, sock))

            tasks.start_soon(run)
            stream = await wrap(plain, place, context=server_context(session))
            if place == "socket" and not by_kernel:
                with pytest.raises(TypeError, match="in use by TLS"):
                    await group.send(plain, b"not secret")
            await stream.send(b"secret")
            below, received = await stream.unwrap()
            assert below is plain
            if by_kernel:
                with pytest.raises(anyio.ClosedResourceError):
                    await below.send(b"no")
                with pytest.raises(TypeError, match="in use by TLS"):
                    await group.send(below, b"no")
                with pytest.raises(anyio.ClosedResourceError):
                    await group.send(stream, b"no")
            if by_kernel and stream.extra(tls.KernelTLSAttribute.kernel_receives):
                with pytest.raises(anyio.BrokenResourceError):
                    await below.receive()
            else:
                while len(received) < len(plaintext):
                    received += await below.receive()
                assert received == plaintext
            if not by_kernel:
                await below.send(b"one")
                await group.send(below, b"two")
            await below.aclose()
    assert got == [b"" if by_kernel else b"onetwo"]


@pytest.mark.parametrize("session", ["tls13", "tls12", "tls12-cbc"])
async def test_the_stream_below_a_socket_whose_peer_has_sent_meanwhile(
    driver: Any, session: str
) -> None:
    def peer(sock: socket.socket) -> bytes:
        with client_context().wrap_socket(sock, server_hostname="localhost") as secure:
            secure.sendall(DATA[:1000])
            got = b"".join(iter(lambda: secure.recv(100), b""))
            secure.sendall(DATA[:1000])
            # The end of the connection, not of TLS.
            assert socket.socket.recv(secure, 100) == b""
            return got

    async with zc_anyio.open_ring(driver=driver), facing() as (plain, sock):
        async with anyio.create_task_group() as tasks:

            async def run() -> None:
                assert await anyio.to_thread.run_sync(peer, sock) == b"secret"
                tasks.cancel_scope.cancel()

            tasks.start_soon(run)
            with openssl_at("socket"):
                stream = await wrap(plain, "socket", context=server_context(session))
            await stream.send(b"secret")
            await until(lambda: plain.is_readable(), "what the peer sends")
            with pytest.raises(ssl.SSLError, match=r"(?i)application data after close notify"):
                await stream.unwrap()
            if not kernel_encrypts("socket", session):
                await plain.send_eof()
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                while True:
                    await plain.receive()
        await plain.aclose()
    await stream.aclose()


# --- the choice ---


async def test_why_the_kernel_does_not_encrypt(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver), facing() as (plain, _):
        with pytest.raises(tls.KernelTLSError, match="no TCP stream"):
            one, other = anyio.create_memory_object_stream[bytes](1)
            with one, other:
                both = anyio.streams.stapled.StapledObjectStream(one, other)
                await tls.wrap_tls(
                    both,  # type: ignore[arg-type]
                    server_context(),
                    server_side=True,
                    kernel="require",
                )
        with pytest.raises(ValueError, match="kernel must be"):
            await tls.wrap_tls(plain, server_context(), server_side=True, kernel="yes")  # type: ignore[arg-type]
        if not KERNEL_HAS_TLS:
            with pytest.raises(tls.KernelTLSError, match="module tls"):
                await tls.wrap_tls(plain, server_context(), server_side=True, kernel="require")


async def test_a_cipher_that_the_kernel_has_not_been_given_is_refused(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver), facing() as (plain, sock):
        peer = Peer(sock)
        with (
            mock.patch.object(tls, "why_no_kernel_tls", return_value=None),
            pytest.raises(tls.KernelTLSError, match="AES128-SHA256"),
        ):
            await tls.wrap_tls(
                plain, server_context("tls12-cbc"), server_side=True, kernel="require"
            )
        await plain.aclose()
        await peer.end()


async def test_a_context_keeps_its_options(driver: Any, place: str) -> None:
    context = server_context()
    before = context.options
    async with zc_anyio.open_ring(driver=driver), facing() as (plain, sock):
        peer = Peer(sock)
        async with await wrap(plain, place, context=context):
            assert context.options == before
        await peer.end()
