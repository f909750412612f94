"""A program closes a stream that is not this library's while sends of it are held.

Its connection ends then as it would without a ring: what was accepted goes out before the end, and
the peer learns of it without having to read.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.features.closing import (
    DATA,
    close,
    has_learned,
    hold,
    ring_of,
    stream_of,
    until_ended,
    until_nothing_is_left,
)
from tests.support.peers import (
    Reader,
    at_end,
    parked_pair,
    receive_exactly,
    receive_to_end,
    tcp_pair,
)
from tests.support.waiting import LIMIT, until, until_held, until_parked
from zc_anyio.testing import open_descriptors

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.fixture(params=["socket", "anyio stream", "trio stream"])
def kind(request: pytest.FixtureRequest, anyio_backend: tuple[str, Any]) -> str:
    if (request.param, anyio_backend[0]) == ("trio stream", "asyncio"):
        pytest.skip("trio's streams are trio's")
    return str(request.param)


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
            # The kernel has no reader any more, and answers bytes with a reset.
            await until(lambda: has_learned(peer))
            await group.flush().wait_released()
            if group_is == "open":
                with pytest.raises(anyio.ClosedResourceError):
                    await group.send(stream, b"late")


@pytest.mark.parametrize("why", ["unread", "SO_LINGER"])
async def test_it_is_reset_where_the_kernel_would_reset_it(
    holding_driver: str, kind: str, why: str
) -> None:
    with tcp_pair(stalled=True) as (client, peer):
        async with ring_of(holding_driver) as ring:
            stream = await stream_of(kind, client)
            if why == "unread":
                peer.sendall(b"an answer that nobody reads" * 10_000)
            else:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await hold(ring, stream)
            if kind == "anyio stream" and why == "unread":
                # It reads ahead; the kernel keeps what it does not read.
                await until(lambda: unread(client.fileno()))
            await close(stream)
            # At once, and not only after it has read what it was sent before.
            await until(lambda: is_reset(peer))
            with pytest.raises(ConnectionResetError):
                receive_to_end(peer)
            await until_nothing_is_left(ring)


def is_reset(peer: socket.socket) -> bool:
    """Whether a reset has arrived, whatever came before it."""
    poll = select.poll()
    poll.register(peer, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def unread(fd: int) -> bool:
    """Whether bytes wait to be received."""
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
            assert receive_exactly(peer, len(DATA)) == DATA
            await until(lambda: at_end(peer))
            await until_nothing_is_left(ring)


async def use_and_close(ring: zc_anyio.Ring, kind: str, *, unread: bool) -> None:
    with tcp_pair(stalled=True) as (client, peer):
        stream = await stream_of(kind, client)
        if unread:
            peer.sendall(b"unread")
        await hold(ring, stream)
        await close(stream)


async def test_everything_goes_back_to_where_it_was(driver: str, kind: str) -> None:
    closes = 60
    before = 0

    async def nothing_is_left() -> None:
        if driver == "copy":
            # Nothing is held, so on a slow machine a socket is idle before it is closed, and then
            # it is known until the ring ends.
            await until_ended(ring)
            ring._sockets.detach_suspended()
        await until_nothing_is_left(ring)

    async with ring_of(driver) as ring:
        for number in range(closes):
            await use_and_close(ring, kind, unread=bool(number % 2))
            if number == 0:
                # With its first transport uvloop opens /dev/null, and keeps it.
                await nothing_is_left()
                before = len(open_descriptors())
        await nothing_is_left()
        await until(lambda: len(open_descriptors()) <= before)
        counters = ring.statistics()
        assert counters.sends == closes
        assert counters.zero_copied + counters.copied == closes
        assert counters.generations_released == closes
