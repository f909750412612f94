"""trio's own streams and sockets in a group."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import trio
import trio.testing

import zc_anyio
from tests.support.peers import Reader, at_end, listener, parked_pair, receive_exactly, tcp_pair
from tests.support.waiting import until, until_held, until_parked
from zc_anyio.testing import reset

MIB = 1 << 20


@asynccontextmanager
async def connected(kind: str) -> AsyncIterator[tuple[Any, socket.socket]]:
    """Connect something of trio's, and give it with the socket at the other end."""
    with listener() as server:
        host, port = server.getsockname()
        if kind == "open_tcp_stream":
            stream: Any = await trio.open_tcp_stream(host, port)
            async with stream:
                peer, _ = server.accept()
                with peer:
                    yield stream, peer
        elif kind == "SocketStream":
            sock = trio.socket.socket()
            await sock.connect((host, port))
            async with trio.SocketStream(sock) as stream:
                peer, _ = server.accept()
                with peer:
                    yield stream, peer
        elif kind == "socket":
            with trio.socket.socket() as sock:
                await sock.connect((host, port))
                peer, _ = server.accept()
                with peer:
                    yield sock, peer
        elif kind == "from_stdlib_socket":
            with tcp_pair() as (client, peer):
                yield trio.socket.from_stdlib_socket(client), peer


KINDS = ["open_tcp_stream", "SocketStream", "socket", "from_stdlib_socket"]


@pytest.mark.trio
@pytest.mark.parametrize("kind", KINDS)
async def test_streams_and_sockets(driver: Any, kind: str) -> None:
    data = os.urandom(2 * MIB)
    async with connected(kind) as (stream, peer):
        with Reader(peer) as reader:
            async with zc_anyio.open_ring(driver=driver) as ring:
                async with zc_anyio.send_group() as group:
                    for start in range(0, len(data), 100_000):
                        await group.send(stream, bytearray(data[start : start + 100_000]))
                    await group.broadcast([stream], b"to all")
                assert ring.statistics().bytes_sent == len(data) + 6
            if isinstance(stream, trio.SocketStream):
                await stream.send_all(b"by trio")
                await stream.send_eof()
            else:
                assert await stream.send(b"by trio") == 7
                stream.shutdown(socket.SHUT_WR)
            assert await reader.all() == data + b"to all" + b"by trio"


@pytest.mark.trio
async def test_udp_sockets(driver: Any) -> None:
    with trio.socket.socket(type=socket.SOCK_DGRAM) as peer:
        await peer.bind(("127.0.0.1", 0))
        with trio.socket.socket(type=socket.SOCK_DGRAM) as sock:
            async with zc_anyio.open_ring(driver=driver) as ring:
                async with zc_anyio.send_group() as group:
                    with pytest.raises(OSError, match="no peer"):
                        await group.send(sock, b"data")
                await sock.connect(peer.getsockname())
                async with zc_anyio.send_group() as group:
                    for size in (1, 20_000, 50_000):
                        await group.send(sock, bytearray(size))
                        group.flush()
                        assert await peer.recv(65536) == bytes(size)
                assert ring.statistics().sends == 3


@pytest.mark.trio
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("known", [True, False])
async def test_closed_ones(driver: Any, kind: str, known: bool) -> None:
    async with connected(kind) as (stream, peer):
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            if known:
                await group.send(stream, b"while it was open")
            if isinstance(stream, trio.SocketStream):
                await stream.aclose()
            else:
                stream.close()
            for _ in range(2):
                with pytest.raises(anyio.ClosedResourceError):
                    await group.send(stream, b"data")
            if known:
                await group.flush().wait_released()
                assert receive_exactly(peer, 17) == b"while it was open"
            await until(lambda: at_end(peer))


@pytest.mark.trio
async def test_closing_with_sends_waiting(driver: Any) -> None:
    data = os.urandom(4 * MIB)
    with parked_pair() as (client, peer):
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(stream, data)
                await until_parked(ring)
                await stream.aclose()
                with Reader(peer) as reader:
                    await group.flush().wait_released()
                    assert await reader.all() == data


@pytest.mark.trio
async def test_a_stream_its_socket_and_a_duplicate_are_one_queue(driver: Any) -> None:
    expected = b""
    with parked_pair() as (client, peer):
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
        with client.dup() as alias:
            names = (stream, stream.socket, alias, client)
            async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
                for number in range(80):
                    data = os.urandom(40_000)
                    expected += data
                    group.send_nowait(names[number % 4], data)
                with Reader(peer) as reader:
                    await group.flush().wait_released()
                    client.shutdown(socket.SHUT_WR)
                    assert await reader.all() == expected


@pytest.mark.trio
async def test_a_broken_stream_fails_for_trio_as_well(driver: Any) -> None:
    with parked_pair() as (client, _peer):
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
        async with zc_anyio.open_ring(driver=driver) as ring:
            with trio.CancelScope() as scope:
                async with zc_anyio.send_group() as group:
                    await group.send(stream, bytearray(4 * MIB))
                    await until_parked(ring)
                    scope.cancel()
                    await trio.sleep_forever()
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"after the hole")
            async with zc_anyio.send_group() as group:
                with pytest.raises(anyio.BrokenResourceError):
                    await group.send(stream, b"after the hole")


@pytest.mark.trio
async def test_the_failed_stream_is_the_one_that_was_given(driver: Any) -> None:
    with parked_pair() as (client, peer):
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group(on_error="collect") as group:
                await group.send(stream, bytearray(4 * MIB))
                await until_parked(ring)
                reset(peer)
            assert [failure.stream for failure in group.failures] == [stream]


@pytest.mark.trio
async def test_tls_and_listeners_are_refused(driver: Any) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
        with pytest.raises(TypeError):
            await group.send(listeners[0], b"data")
        one, _ = trio.testing.memory_stream_pair()
        with pytest.raises(TypeError):
            await group.send(one, b"data")
    for served in listeners:
        await served.aclose()


@pytest.mark.trio
async def test_held_for_a_trio_stream_that_was_closed(holding_driver: Any) -> None:
    data = bytearray(MIB)
    with tcp_pair(stalled=True) as (client, peer):
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
        # trio sets this low, so that a socket takes little more than its peer has room for.
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 2**31 - 1)
        async with zc_anyio.open_ring(driver=holding_driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(stream, data)
                await until_held(ring, 1)
                await stream.aclose()
                generation = group.flush()
                await trio.testing.wait_all_tasks_blocked()
                assert not generation.is_released
                assert receive_exactly(peer, MIB) == bytes(MIB)
            data.append(1)
