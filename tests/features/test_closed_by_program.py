"""A program closes a stream that is not this library's while sends of it are held.

Its connection ends then as it would without a ring: what was accepted goes out before the end, and
the peer learns of it without having to read.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.support.backends import one_backend
from tests.support.peers import (
    LARGE_BUFFER,
    Reader,
    at_end,
    parked_pair,
    receive_exactly,
    receive_to_end,
    tcp_pair,
    wrap,
)
from tests.support.waiting import LIMIT, until, until_held, until_idle, until_parked
from tests.support.watch import descriptors
from zc_anyio._ring.ring import Ring

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

TCP_NOTSENT_LOWAT = 25
MIB = 1 << 20
DATA = os.urandom(MIB)
# In so many ticks each socket was looked at, whatever was sent meanwhile.
TICKS = 10


@pytest.fixture(params=["socket", "anyio stream", "trio stream"])
def kind(request: pytest.FixtureRequest, anyio_backend: tuple[str, Any]) -> str:
    if (request.param, anyio_backend[0]) == ("trio stream", "asyncio"):
        pytest.skip("trio's streams are trio's")
    return str(request.param)


async def stream_of(kind: str, sock: socket.socket) -> Any:
    """Make a stream of a connected socket, which belongs to the stream from now on."""
    if kind == "trio stream":
        trio: Any = sys.modules["trio"]
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        # trio lets the kernel take little at a time; these sends are to be taken whole.
        sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, LARGE_BUFFER)
        return stream
    return sock if kind == "socket" else await wrap(sock)


async def close(stream: Any) -> None:
    if isinstance(stream, socket.socket):
        stream.close()
    else:
        await stream.aclose()


@asynccontextmanager
async def ring_of(driver: str, **options: Any) -> AsyncIterator[Ring]:
    """Open a ring that zero-copies everything it can."""
    async with zc_anyio.open_ring(
        driver=driver, zero_copy="always", threshold=0, **options
    ) as ring:
        yield ring


async def hold(ring: Ring, stream: Any, data: Any = DATA) -> None:
    """Have a send held by the kernel, whose group was cancelled."""
    with anyio.CancelScope() as scope:
        async with zc_anyio.send_group() as group:
            await group.send(stream, data)
            group.flush()
            if ring.capabilities.driver != "copy":
                await until_held(ring, 1)
            scope.cancel()


async def until_ended(ring: Ring) -> None:
    """Wait until the ring has ended all connections, or has nothing to do with them any more."""
    table = ring._sockets
    await until(lambda: len(table._by_inode) == len(table._suspended), "ended connections")


async def let_it_look(ring: Ring) -> None:
    """Wait until the ring has looked at each of its sockets."""
    start = ring._native._ticks
    await until(lambda: ring._native._ticks > start + TICKS)


def has_learned(peer: socket.socket) -> bool:
    """Whether the peer's sends are refused."""
    peer.setblocking(False)
    try:
        peer.send(b"?")
    except BlockingIOError:
        return False
    except (ConnectionResetError, BrokenPipeError):
        return True
    finally:
        peer.settimeout(LIMIT)
    return False


async def until_nothing_is_left(ring: Ring) -> None:
    await until_idle(ring)
    table = ring._sockets
    await until(lambda: not (table._by_ident or table.by_stream))
    assert not table._by_inode
    counters: Any = ring._native.statistics()
    assert (counters.sockets, counters.contexts, counters.allocations) == (0, 0, 0)
    assert ring._reaper.contexts == []


# --- how the connection ends ---


async def test_what_was_taken_arrives_and_then_the_end(driver: str, kind: str) -> None:
    with tcp_pair(stalled=True) as (client, peer):
        async with ring_of(driver) as ring:
            stream = await stream_of(kind, client)
            await hold(ring, stream)
            await close(stream)
            await until_ended(ring)
            received = await anyio.to_thread.run_sync(receive_to_end, peer)
            assert received == DATA
            await until_nothing_is_left(ring)
            assert ring.statistics().failed == 0


@pytest.mark.parametrize("group_is", ["left", "open"])
async def test_a_peer_that_reads_nothing_learns_of_it(
    holding_driver: str, kind: str, group_is: str
) -> None:
    with tcp_pair(stalled=True) as (client, peer):
        async with (
            ring_of(holding_driver) as ring,
            zc_anyio.send_group(on_error="collect") as group,
        ):
            stream = await stream_of(kind, client)
            if group_is == "left":
                await hold(ring, stream)
            else:
                await group.send(stream, DATA)
                await until_held(ring, 1)
            await close(stream)
            await until_ended(ring)
            # The kernel has a reader no more, and answers what it gets by a reset.
            await until(lambda: has_learned(peer))
            await group.flush().wait_released()
            if group_is == "open":
                with pytest.raises(anyio.ClosedResourceError):
                    await group.send(stream, b"late")


@pytest.mark.parametrize("why", ["unread", "SO_LINGER"])
async def test_it_is_reset_where_the_kernel_would(holding_driver: str, kind: str, why: str) -> None:
    with tcp_pair(stalled=True) as (client, peer):
        async with ring_of(holding_driver) as ring:
            stream = await stream_of(kind, client)
            if why == "unread":
                peer.sendall(b"an answer that nobody reads" * 10_000)
            else:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await hold(ring, stream)
            if kind == "anyio stream" and why == "unread":
                # It reads ahead; what it does not read is the kernel's.
                await until(lambda: unread(client.fileno()))
            await close(stream)
            with pytest.raises(ConnectionResetError):
                await anyio.to_thread.run_sync(receive_to_end, peer)
            await until_nothing_is_left(ring)


def unread(fd: int) -> bool:
    with socket.socket(fileno=os.dup(fd)) as sock:
        sock.setblocking(False)
        try:
            return bool(sock.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False


async def test_what_an_open_group_has_queued_goes_out_first(driver: str, kind: str) -> None:
    with parked_pair() as (client, peer):
        async with ring_of(driver) as ring:
            async with zc_anyio.send_group(on_error="collect") as group:
                stream = await stream_of(kind, client)
                for _ in range(3):
                    await group.send(stream, DATA)
                group.flush()
                await until_parked(ring)
                await close(stream)
                with Reader(peer) as reader:
                    received = await reader.all()
                # asyncio shuts the connection down, for whatever sends on it.
                assert received == (3 * DATA)[: len(received)]
                assert (received == 3 * DATA) == (not group.failures)
                if kind != "anyio stream":
                    assert not group.failures
                await until_ended(ring)
            await until_nothing_is_left(ring)


async def test_a_unix_socket(driver: str) -> None:
    client, peer = socket.socketpair()
    client.setblocking(False)
    with client, peer:
        async with ring_of(driver) as ring:
            with anyio.CancelScope() as scope:
                async with zc_anyio.send_group() as group:
                    await group.send(client, 4 * DATA)
                    group.flush()
                    await until_parked(ring)
                    scope.cancel()
            client.close()
            await until_nothing_is_left(ring)
            received = receive_to_end(peer)
            assert received
            assert received == (4 * DATA)[: len(received)]


async def test_a_udp_socket(driver: str) -> None:
    with (
        socket.socket(type=socket.SOCK_DGRAM) as peer,
        socket.socket(type=socket.SOCK_DGRAM) as own,
    ):
        peer.bind(("127.0.0.1", 0))
        own.connect(peer.getsockname())
        async with ring_of(driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(own, b"datagram")
                own.close()
                await group.flush().wait_released()
                assert peer.recv(100) == b"datagram"
                await until_ended(ring)


async def test_a_time_to_linger_does_not_stop_the_event_loop(holding_driver: str) -> None:
    with tcp_pair(stalled=True) as (client, peer):
        async with ring_of(holding_driver) as ring:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 50))
            await hold(ring, client)
            start = time.monotonic()
            client.close()
            await until_ended(ring)
            assert time.monotonic() - start < LIMIT
            assert receive_exactly(peer, MIB) == DATA
            await until(lambda: at_end(peer))
            await until_nothing_is_left(ring)


# --- whether it is closed ---


@pytest.mark.parametrize("other", ["sent to as well", "not known to the ring", "detached"])
async def test_it_lives_on_while_the_program_has_a_descriptor(driver: str, other: str) -> None:
    with tcp_pair(stalled=True) as (client, peer):
        async with ring_of(driver) as ring:
            if other == "detached":
                await hold(ring, client)
                twin = socket.socket(fileno=client.detach())
            else:
                twin = client.dup()
                if other == "sent to as well":
                    # What is empty is not sent.
                    async with zc_anyio.send_group() as group:
                        await group.send(twin, b"")
                await hold(ring, client)
                client.close()
            twin.setblocking(False)
            with twin:
                if driver != "copy":  # it has nothing to look at any more
                    await let_it_look(ring)
                peer.sendall(b"both")
                await anyio.wait_readable(twin)
                assert twin.recv(100) == b"both"
                async with zc_anyio.send_group() as group:
                    await group.send(twin, b"directions")
                    received = await anyio.to_thread.run_sync(receive_exactly, peer, MIB + 10)
                assert received == DATA + b"directions"
                assert not at_end(peer)
                await hold(ring, twin)
            await until(lambda: has_learned(peer) or at_end(peer) or driver == "copy")


async def test_its_number_is_another_connection_at_once(holding_driver: str) -> None:
    with tcp_pair(stalled=True) as (client, peer), tcp_pair() as (spare, other_peer):
        async with ring_of(holding_driver) as ring:
            await hold(ring, client)
            # Nothing tells Python's object of it: it is the other connection from now on.
            os.dup2(spare.fileno(), client.fileno(), inheritable=False)
            await until_ended(ring)
            async with zc_anyio.send_group() as group:
                await group.send(client, b"to the other")
                group.flush()
                assert receive_exactly(other_peer, 12) == b"to the other"
            await until(lambda: not ring._sockets.by_stream)
            other_peer.sendall(b"alive")
            assert client.recv(5) == b"alive"
            received = await anyio.to_thread.run_sync(receive_to_end, peer)
            assert received == DATA


# --- a peer that takes nothing ---


CLOSING_SECONDS = "zc_anyio._ring.reaper.CLOSING_SECONDS"


@pytest.mark.parametrize("limit", ["the ring's", "the program's own"])
async def test_what_is_held_is_given_up_after_a_while(
    holding_driver: str, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    with tcp_pair(stalled=True) as (client, _):
        async with ring_of(holding_driver) as ring:
            if limit == "the ring's":
                monkeypatch.setattr(CLOSING_SECONDS, 1)
            else:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000)
            await hold(ring, client)
            client.close()
            await until_nothing_is_left(ring)


@one_backend
async def test_what_waits_is_given_up_after_a_while(
    driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CLOSING_SECONDS, 1)
    with parked_pair() as (client, _):
        async with ring_of(driver) as ring, zc_anyio.send_group(on_error="collect") as group:
            await group.send(client, 4 * DATA)
            generation = group.flush()
            await until_parked(ring)
            client.close()
            await generation.wait_released()
            # One call is told of the time that is over, and those after it of what came of that.
            assert [failure.stream for failure in group.failures] == [client]
            assert group.failures[0].error.errno in (errno.ETIMEDOUT, errno.EPIPE)
            await until_ended(ring)


# --- what is held can be had back ---


async def test_io_uring_needs_no_descriptor_for_it() -> None:
    with tcp_pair(stalled=True) as (client, peer):
        async with ring_of("io_uring") as ring:
            before = len(descriptors())
            await hold(ring, client)
            client.close()
            await until(lambda: len(descriptors()) == before - 1)
            assert ring.statistics().held == 1
            assert await anyio.to_thread.run_sync(receive_to_end, peer) == DATA
            await until_nothing_is_left(ring)


@pytest.mark.parametrize("by", ["cancelling", "release_timeout"])
async def test_a_group_gets_its_buffers_back(holding_driver: str, by: str) -> None:
    limit = 0.5 if by == "release_timeout" else None
    data = bytearray(DATA) if by == "cancelling" else DATA
    with tcp_pair(stalled=True) as (client, _):
        async with ring_of(holding_driver) as ring:
            with anyio.fail_after(LIMIT), anyio.CancelScope() as scope:
                async with zc_anyio.send_group(release_timeout=limit, on_error="collect") as group:
                    await group.send(client, data)
                    await until_held(ring, 1)
                    client.close()
                    await until_ended(ring)
                    if by == "cancelling":
                        scope.cancel()
            assert ring.statistics().held == 0
            errors = [failure.error.errno for failure in group.failures]
            assert errors == ([errno.ETIMEDOUT] if by == "release_timeout" else [])


async def test_the_end_of_the_ring_gets_them_back(holding_driver: str) -> None:
    with tcp_pair(stalled=True) as (client, _):
        async with ring_of(holding_driver, drain_timeout=0.3) as ring:
            await hold(ring, client)
            client.close()
        assert ring.statistics().held == 0
        assert ring._native._ticks > 0


# --- many ---


async def test_everything_goes_back_to_where_it_was(driver: str, kind: str) -> None:
    closes = 60
    async with ring_of(driver) as ring:
        before = len(descriptors())
        for number in range(closes):
            with tcp_pair(stalled=True) as (client, peer):
                stream = await stream_of(kind, client)
                if number % 2:
                    peer.sendall(b"unread")
                await hold(ring, stream)
                await close(stream)
        await until_nothing_is_left(ring)
        await until(lambda: len(descriptors()) == before)
        counters = ring.statistics()
        assert counters.sends == closes
        assert counters.zero_copied + counters.copied + counters.failed == closes
        assert counters.failed == 0
        assert counters.generations_released == closes
