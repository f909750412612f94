"""What goes wrong becomes httpcore's exceptions, in bounded time, and leaves nothing open."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any

import anyio
import httpcore
import httpx
import pytest
import trustme

import zc_anyio
from tests.streams.pairs import connected
from tests.streams.web_servers import own_server
from tests.support.peers import SMALL_BUFFER, listener, receive_exactly
from tests.support.waiting import LIMIT, until, until_held
from zc_anyio.httpcore import RingBackend, httpx_transport
from zc_anyio.testing import reset

SOON = 0.05
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
MORE_THAN_FITS = bytes(24 << 20)
# So many tasks that the ring receives for all of them.
WAITING = 8
# On trio httpx leaves the generator of a body that was not sent whole to the garbage collector.
body_left = pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")


@asynccontextmanager
async def peer_of(
    stream: httpcore.AsyncNetworkStream, server: socket.socket
) -> AsyncIterator[socket.socket]:
    """The other end of a connection that was just made."""
    peer, _ = server.accept()
    peer.settimeout(LIMIT)
    try:
        with peer:
            yield peer
    finally:
        await stream.aclose()


async def connect(server: socket.socket, **options: Any) -> httpcore.AsyncNetworkStream:
    return await RingBackend().connect_tcp("127.0.0.1", server.getsockname()[1], **options)


def received(peer: socket.socket) -> int:
    """Receive to the end, or a reset; return how many bytes."""
    size = 0
    with suppress(ConnectionResetError):
        while chunk := peer.recv(1 << 20):
            size += len(chunk)
    return size


@contextmanager
def full() -> Iterator[socket.socket]:
    """A listener that answers no further connection."""
    with socket.socket() as server, socket.socket() as one, socket.socket() as other:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for client in (one, other):
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server


@pytest.mark.anyio
async def test_connecting(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver):
        with listener() as server:
            refusing = server.getsockname()[1]
        with pytest.raises(httpcore.ConnectError):
            await RingBackend().connect_tcp("127.0.0.1", refusing)
        with pytest.raises(httpcore.ConnectError):
            await RingBackend().connect_unix_socket("/nowhere/socket")
        with full() as server:
            with pytest.raises(httpcore.ConnectTimeout):
                await connect(server, timeout=SOON)


@pytest.mark.anyio
async def test_reading(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver):
        with listener() as server:
            stream = await connect(server)
            async with peer_of(stream, server) as peer:
                with pytest.raises(httpcore.ReadTimeout):
                    await stream.read(100, timeout=SOON)
                # A read that took too long has lost nothing.
                peer.sendall(b"late")
                assert await stream.read(100, timeout=LIMIT) == b"late"
                peer.shutdown(socket.SHUT_WR)
                assert await stream.read(100) == b""
            stream = await connect(server)
            async with peer_of(stream, server) as peer:
                reset(peer)
                with pytest.raises(httpcore.ReadError) as caught:
                    await stream.read(100)
                assert isinstance(caught.value.__cause__, anyio.BrokenResourceError)
            with pytest.raises(httpcore.ReadError):
                await stream.read(100)


@pytest.mark.anyio
async def test_writing(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver) as ring:
        with listener(receive_buffer=SMALL_BUFFER) as server:
            stream = await connect(server)
            async with peer_of(stream, server):
                with pytest.raises(httpcore.WriteTimeout):
                    await stream.write(MORE_THAN_FITS, timeout=SOON)
                # What the kernel has not taken is bounded, whatever the peer does.
                sent = ring.statistics()
                assert sent.queued + sent.in_flight <= 8
            stream = await connect(server)
            async with peer_of(stream, server) as peer:
                reset(peer)
                with pytest.raises(httpcore.WriteError):
                    await stream.write(MORE_THAN_FITS)
            with pytest.raises(httpcore.WriteError):
                await stream.write(b"closed")
            await stream.write(b"")


@pytest.mark.anyio
async def test_handshakes(driver: Any) -> None:
    context = ssl.create_default_context()
    async with zc_anyio.open_ring(driver=driver):
        with listener() as server:
            # Nobody answers, the connection ends, and an answer is not TLS.
            for answer, timeout, expected in (
                (None, SOON, httpcore.ConnectTimeout),
                (b"", LIMIT, httpcore.ConnectError),
                (ANSWER, LIMIT, httpcore.ConnectError),
            ):
                stream = await connect(server)
                async with peer_of(stream, server) as peer:
                    if answer is not None:
                        peer.sendall(answer)
                        peer.shutdown(socket.SHUT_WR)
                    with pytest.raises(expected):
                        await stream.start_tls(context, "localhost", timeout=timeout)
                    assert stream.get_extra_info("socket").fileno() < 0


@pytest.mark.anyio
async def test_a_certificate_that_is_not_trusted(driver: Any) -> None:
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("localhost").configure_cert(serving)
    async with zc_anyio.open_ring(driver=driver):
        transport = httpx_transport(trust_env=False)
        async with httpx.AsyncClient(transport=transport) as client:
            async with own_server(b"", serving) as url:
                with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                    await client.get(url)


@pytest.mark.anyio
async def test_the_extra_info_of_a_stream(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver):
        with listener() as server:
            option = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            stream = await connect(server, local_address="127.0.0.1", socket_options=[option])
            async with peer_of(stream, server) as peer:
                tell = stream.get_extra_info
                assert tell("socket").getsockopt(*option[:2])
                assert tell("client_addr") == peer.getpeername()
                assert tell("server_addr") == server.getsockname()
                assert tell("ssl_object") is None
                assert tell("anything else") is None
                assert not tell("is_readable")
                peer.sendall(b"x")
                await until(lambda: tell("is_readable"))
                assert await stream.read(1) == b"x"
                assert not tell("is_readable")
                peer.close()
                await until(lambda: tell("is_readable"))
            assert tell("is_readable")
            with pytest.raises(httpcore.ConnectError):
                await connect(server, socket_options=[(socket.SOL_SOCKET, -1, 1)])
            server.accept()[0].close()


@pytest.mark.anyio
async def test_notifications_of_sends_do_not_make_a_stream_readable(holding_driver: Any) -> None:
    async with zc_anyio.open_ring(driver=holding_driver, zero_copy="always") as ring:
        with listener() as server:
            stream = await connect(server)
            async with peer_of(stream, server) as peer:
                await stream.write(bytes(100_000))
                await until_held(ring, 1)
                # Without a turn of the event loop, so that the report is still there.
                receive_exactly(peer, 100_000)
                assert not stream.get_extra_info("is_readable")


@pytest.mark.anyio
async def test_what_arrives_unasked_ends_an_idle_connection(driver: Any) -> None:
    connections: list[socket.socket] = []

    async def answer(server: socket.socket) -> None:
        connection, _ = await anyio.to_thread.run_sync(server.accept)
        connections.append(stack.enter_context(connection))
        assert await anyio.to_thread.run_sync(connection.recv, 1000)
        # The client waits for the answer, through the ring where that is possible.
        await until(lambda: driver != "io_uring" or ring._receiving > WAITING)
        connection.sendall(ANSWER)

    def received_more(before: int) -> bool:
        return ring.statistics().receives > before

    async def wait(stream: zc_anyio.ZeroCopySocketStream) -> None:
        with suppress(anyio.EndOfStream, anyio.ClosedResourceError):
            await stream.receive()

    async with zc_anyio.open_ring(driver=driver) as ring, AsyncExitStack() as stack:
        server = stack.enter_context(listener())
        tasks = await stack.enter_async_context(anyio.create_task_group())
        for _ in range(WAITING):
            one, _ = await stack.enter_async_context(connected())
            tasks.start_soon(wait, one)
        transport = httpx_transport(trust_env=False)
        client = await stack.enter_async_context(
            httpx.AsyncClient(transport=transport, timeout=LIMIT)
        )
        for _ in range(2):
            async with anyio.create_task_group() as answering:
                answering.start_soon(answer, server)
                got = await client.get(f"http://127.0.0.1:{server.getsockname()[1]}/")
            assert got.text == "ok"
            before = ring.statistics().receives
            connections[-1].sendall(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
            if driver == "io_uring":
                # No client may take it for the answer to what it asks next.
                await until(partial(received_more, before))
        assert len(connections) == 2


@body_left
@pytest.mark.anyio
async def test_an_answer_of_a_peer_that_closes_without_having_read(driver: Any) -> None:
    def refuse() -> None:
        peer, _ = server.accept()
        with peer:
            assert peer.recv(1000)
            peer.sendall(ANSWER)
        # It resets the connection, since there is more to read; the answer had arrived before.

    async with zc_anyio.open_ring(driver=driver), anyio.create_task_group() as tasks:
        with listener() as server:
            tasks.start_soon(anyio.to_thread.run_sync, refuse)
            transport = httpx_transport(trust_env=False)
            async with httpx.AsyncClient(transport=transport, timeout=LIMIT) as client:
                url = f"http://127.0.0.1:{server.getsockname()[1]}/"
                assert (await client.put(url, content=MORE_THAN_FITS)).text == "ok"


@body_left
@pytest.mark.anyio
async def test_a_request_that_is_cancelled_closes_its_connection(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver):
        with listener(receive_buffer=SMALL_BUFFER) as server:
            transport = httpx_transport(trust_env=False)
            async with httpx.AsyncClient(transport=transport, timeout=LIMIT) as client:
                url = f"http://127.0.0.1:{server.getsockname()[1]}/"
                with anyio.move_on_after(SOON) as scope:
                    await client.put(url, content=MORE_THAN_FITS)
                assert scope.cancelled_caught
                peer, _ = server.accept()
                with peer:
                    peer.settimeout(LIMIT)
                    # The end comes behind what was accepted, or a reset.
                    assert await anyio.to_thread.run_sync(received, peer) < len(MORE_THAN_FITS)


@pytest.mark.anyio
async def test_without_a_ring(driver: Any) -> None:
    transport = httpx_transport(trust_env=False)
    async with httpx.AsyncClient(transport=transport, timeout=LIMIT) as client:
        with pytest.raises(RuntimeError, match="no ring is open"):
            await client.get("http://127.0.0.1:1/")
        async with zc_anyio.open_ring(driver=driver):
            async with own_server(b"contents") as url:
                assert (await client.get(url)).text == "contents"
        # The connection is still in the client's pool.
        with pytest.raises((RuntimeError, httpx.HTTPError)):
            await client.get(url)


@pytest.mark.anyio
async def test_a_ring_given_by_argument(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver) as given, zc_anyio.open_ring(driver="copy"):
        backend = RingBackend(ring=given)
        async with httpcore.AsyncConnectionPool(network_backend=backend) as pool:
            async with own_server(b"contents") as url:
                assert (await pool.request("GET", url)).content == b"contents"
        assert given.statistics().sends == 1


def test_without_httpcore() -> None:
    script = "import sys; sys.modules['httpcore'] = None; import zc_anyio.httpcore"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pip install 'zc_anyio[httpcore]'" in done.stderr


def test_an_httpx_that_connects_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpcore.AsyncConnectionPool, "__init__", lambda self, **options: None)
    with pytest.raises(RuntimeError, match="no place for a network backend"):
        httpx_transport(trust_env=False)
