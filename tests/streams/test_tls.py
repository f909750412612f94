"""TLS over streams of a ring: by the kernel where it can, else in this process."""

from __future__ import annotations

import hashlib
import random
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import anyio
import pytest
import trustme
from anyio.abc import SocketAttribute

import zc_anyio
from tests.streams.pairs import facing
from tests.support.backends import one_backend
from tests.support.needs import need_command
from tests.support.waiting import LIMIT
from zc_anyio import tls
from zc_anyio._base.kernel_tls import why_no_kernel_tls

pytestmark = pytest.mark.anyio

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


@pytest.fixture(params=["memory", "socket"])
def place(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where OpenSSL runs; on the socket, it gives the kernel its keys if the kernel has TLS."""
    if request.param == "socket" and not KERNEL_HAS_TLS:
        # Then it goes on by itself, as with a cipher that the kernel does not know.
        with mock.patch.object(tls, "why_no_kernel_tls", return_value=None):
            yield request.param
    else:
        yield request.param


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
    kernel: Any = "never" if place == "memory" else "auto"
    return await tls.wrap_tls(stream, context, kernel=kernel, **more)


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
    def count() -> int:
        path = Path("/proc/net/tls_stat")
        if not path.exists():
            return 0
        return int(path.read_text().split("TlsTxSw", 1)[1].split()[0])

    before = count()
    yield
    assert (count() > before) == growing


# --- what arrives ---


@pytest.mark.parametrize("session", list(SESSIONS))
async def test_sends_of_every_kind_arrive_in_order(
    driver: Any, place: str, session: str, tmp_path: Path
) -> None:
    by_kernel = KERNEL_HAS_TLS and place == "socket" and session != "tls12-cbc"
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with counted_by_kernel(growing=by_kernel):
        async with zc_anyio.open_ring(driver=driver) as ring, facing() as (plain, sock):
            peer = Peer(sock, say=b"hello")
            async with await wrap(plain, place, context=server_context(session)) as stream:
                assert stream.extra(tls.KernelTLSAttribute.kernel_sends) is by_kernel
                why = stream.extra(tls.KernelTLSAttribute.why_not_kernel)
                assert (why is None) == by_kernel
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
                        await stream.send(b"end")
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


# --- other peers ---


@one_backend
async def test_openssl_asks_for_new_keys(driver: Any, place: str) -> None:
    """``K`` asks this end for new keys too, which OpenSSL cannot give to the kernel."""
    both = b"k\n" if KERNEL_HAS_TLS and place == "socket" else b"K\n"
    openssl = need_command("openssl", "openssl")
    async with zc_anyio.open_ring(driver=driver):
        listener = await zc_anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(SocketAttribute.local_port)
        command = [openssl, "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3"]
        async with await anyio.open_process(command, stderr=subprocess.STDOUT) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            (accepted,) = [await listener.listeners[0].accept()]  # type: ignore[attr-defined]
            stream = await wrap(accepted, place, standard_compatible=False)
            for letter, word in ((b"k\n", b"one\n"), (both, b"two\n"), (b"k\n", b"three\n")):
                await process.stdin.send(letter)
                await anyio.sleep(0.2)  # s_client takes a letter only if it is alone
                await process.stdin.send(word)
                assert await stream.receive() == word
                await stream.send(b"answer to " + word)
            said = b""
            with anyio.fail_after(LIMIT):
                while b"answer to three" not in said:
                    said += await process.stdout.receive()
            assert b"answer to two" in said
            await stream.aclose()
            process.kill()
        await listener.aclose()


@one_backend
async def test_curl_downloads_a_file(driver: Any, place: str, tmp_path: Path) -> None:
    curl = need_command("curl", "curl")
    path, root = tmp_path / "file", tmp_path / "root.pem"
    path.write_bytes(DATA)
    AUTHORITY.cert_pem.write_to_path(str(root))

    async def serve(stream: Any) -> None:
        async with stream:
            assert (await stream.receive()).startswith(b"GET ")
            head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            await stream.send(head % len(DATA))
            if stream.extra(tls.KernelTLSAttribute.kernel_sends):
                async with zc_anyio.send_group() as group:
                    await group.send_file(stream, path)
            else:
                await stream.send(DATA)

    async with zc_anyio.open_ring(driver=driver):
        below = await zc_anyio.create_tcp_listener(local_host="127.0.0.1")
        listener = tls.TLSListener(
            below,
            server_context(),
            standard_compatible=False,
            kernel="never" if place == "memory" else "auto",
        )
        url = f"https://localhost:{below.extra(SocketAttribute.local_port)}/"
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, serve)
            done = await anyio.run_process(
                [curl, "-sS4", "--noproxy", "*", "--cacert", str(root), url]
            )
            assert done.stdout == DATA
            tasks.cancel_scope.cancel()
