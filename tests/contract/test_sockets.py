"""What can be sent to: every kind of stream and socket."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.support.peers import Reader, listener, parked_pair, receive_exactly, tcp_pair, wrap
from tests.support.waiting import LIMIT, until

MIB = 1 << 20


@asynccontextmanager
async def connected(kind: str) -> AsyncIterator[tuple[Any, socket.socket]]:
    """Connect a stream of this kind; give it and the socket at the other end."""
    if kind == "socket":
        with tcp_pair() as pair:
            yield pair
    elif kind == "blocking socket":
        with tcp_pair() as (client, peer):
            client.setblocking(True)
            yield client, peer
    elif kind == "IPv6 socket":
        with listener(family=socket.AF_INET6) as server:
            with socket.create_connection(server.getsockname()[:2]) as client:
                peer, _ = server.accept()
                with peer:
                    yield client, peer
    elif kind == "anyio stream":
        with listener() as server:
            async with await anyio.connect_tcp(*server.getsockname()) as stream:
                peer, _ = server.accept()
                with peer:
                    yield stream, peer
    elif kind == "wrapped socket":
        with tcp_pair() as (client, peer):
            async with await wrap(client) as stream:
                yield stream, peer
    elif kind == "UNIX socket":
        client, peer = socket.socketpair()
        with client, peer:
            client.setblocking(False)
            yield client, peer
    elif kind == "anyio UNIX stream":
        with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as server:
            path = Path(directory) / "socket"
            server.bind(str(path))
            server.listen()
            async with await anyio.connect_unix(path) as stream:
                peer, _ = server.accept()
                with peer:
                    yield stream, peer


STREAMS = [
    "socket",
    "blocking socket",
    "IPv6 socket",
    "anyio stream",
    "wrapped socket",
    "UNIX socket",
    "anyio UNIX stream",
]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", STREAMS)
async def test_streams(driver: Any, kind: str) -> None:
    data = os.urandom(3 * MIB)
    async with connected(kind) as (stream, peer):
        peer.settimeout(LIMIT)
        with Reader(peer) as reader:
            async with zc_anyio.open_ring(driver=driver, zero_copy="always", threshold=0) as ring:
                async with zc_anyio.send_group() as group:
                    for start in range(0, len(data), 100_000):
                        await group.send(stream, bytearray(data[start : start + 100_000]))
                    group.send_nowait(stream, [b"a", bytearray(b"b")])
                counters = ring.statistics()
                assert counters.sends == counters.zero_copied + counters.copied + counters.staged
                assert counters.bytes_sent == len(data) + 2
                if "UNIX" in kind:
                    assert counters.zero_copied == 0
                await until(lambda: reader.size == len(data) + 2)
            # The ring does not hinder an ordinary send.
            if isinstance(stream, socket.socket):
                assert stream.send(b"after") == 5
                stream.shutdown(socket.SHUT_WR)
            else:
                await stream.send(b"after")
                await stream.send_eof()
            assert await reader.all() == data + b"ab" + b"after"


@asynccontextmanager
async def connected_datagrams(kind: str) -> AsyncIterator[tuple[Any, socket.socket]]:
    """Connect a datagram socket of this kind."""
    if kind == "UNIX":
        client, peer = socket.socketpair(type=socket.SOCK_DGRAM)
        with client, peer:
            peer.settimeout(LIMIT)
            yield client, peer
        return
    with socket.socket(type=socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        peer.settimeout(LIMIT)
        if kind == "anyio":
            host, port = peer.getsockname()
            async with await anyio.create_connected_udp_socket(host, port) as udp:
                yield udp, peer
        else:
            with socket.socket(type=socket.SOCK_DGRAM) as client:
                client.connect(peer.getsockname())
                client.setblocking(False)
                yield client, peer


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["anyio", "socket", "UNIX"])
async def test_datagrams(driver: Any, kind: str) -> None:
    sizes = [1, 1000, 60_000, 0, 20_000, 17]
    async with connected_datagrams(kind) as (stream, peer):
        async with zc_anyio.open_ring(driver=driver, zero_copy="always", threshold=0) as ring:
            async with zc_anyio.send_group() as group:
                for index, size in enumerate(sizes):
                    await group.send(stream, bytearray([index]) * size)
                await group.send(stream, [b"one ", bytearray(b"data"), b"gram"])
                generation = group.flush()
                # Each is one message; loopback keeps their order.
                for index, size in enumerate(sizes):
                    received = await anyio.to_thread.run_sync(peer.recv, 65536)
                    assert received == bytes([index]) * size
                assert await anyio.to_thread.run_sync(peer.recv, 65536) == b"one datagram"
                await generation.wait_released()
            assert ring.statistics().sends == len(sizes) + 1
            assert ring.statistics().failed == 0


@pytest.mark.anyio
async def test_many_datagrams_at_once(driver: Any) -> None:
    async with connected_datagrams("UNIX") as (stream, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                # A UNIX socket takes a few datagrams, and more when its peer has read some.
                for number in range(300):
                    await group.send(stream, b"%d" % number)
                generation = group.flush()

                def receive() -> set[int]:
                    return {int(peer.recv(100)) for _ in range(300)}

                assert await anyio.to_thread.run_sync(receive) == set(range(300))
                await generation.wait_released()
            assert ring.statistics().failed == 0


@pytest.mark.anyio
async def test_a_datagram_that_is_too_large_breaks_nothing(driver: Any) -> None:
    async with connected_datagrams("socket") as (stream, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                with pytest.raises(OSError, match="too long"):
                    await group.send(stream, bytes(70_000))
                assert ring.statistics().sends == 0
                await group.send(stream, b"fits")
            assert peer.recv(100) == b"fits"


@pytest.mark.anyio
async def test_a_datagram_that_the_network_refuses_is_reported_and_breaks_nothing(
    driver: Any,
) -> None:
    async with connected_datagrams("socket") as (stream, peer):
        async with zc_anyio.open_ring(driver=driver):
            # Accepted by the library, and too large with its header.
            group = zc_anyio.send_group(on_error="collect")
            async with group:
                await group.send(stream, bytes(65_530))
                await group.flush().wait_released()
                await group.send(stream, b"fits")
            assert [failure.stream for failure in group.failures] == [stream]
            assert peer.recv(100) == b"fits"


@pytest.mark.anyio
async def test_a_stream_of_a_listener(driver: Any) -> None:
    data = os.urandom(MIB)

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            async with zc_anyio.send_group() as group:
                await group.send(stream, data)

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as server:
        port = server.extra(anyio.abc.SocketAttribute.local_port)
        async with zc_anyio.open_ring(driver=driver), anyio.create_task_group() as tg:
            tg.start_soon(server.serve, serve)
            for _ in range(3):
                async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                    received = bytearray()
                    async for chunk in stream:
                        received += chunk
                assert received == data
            tg.cancel_scope.cancel()


@pytest.mark.anyio
async def test_receiving_goes_on_while_sends_wait(driver: Any) -> None:
    with parked_pair() as (client, peer):
        async with await wrap(client) as stream, zc_anyio.open_ring(driver=driver):
            async with zc_anyio.send_group() as group:
                await group.send(stream, bytes(2 * MIB))
                for word in (b"one", b"two"):
                    peer.send(word)
                    assert await stream.receive(3) == word
                await anyio.to_thread.run_sync(receive_exactly, peer, 2 * MIB)
