"""Which sockets a program has closed, and that a ring gets back what they held."""

from __future__ import annotations

import errno
import os
import socket

import anyio
import pytest

import zc_anyio
from tests.features.closing import (
    DATA,
    has_learned,
    hold,
    ring_of,
    until_ended,
    until_nothing_is_left,
)
from tests.support.backends import one_backend
from tests.support.peers import at_end, parked_pair, receive_exactly, receive_to_end, tcp_pair
from tests.support.waiting import LIMIT, until, until_held, until_parked
from zc_anyio.testing import open_descriptors

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

# After this many ticks each socket was looked at, whatever was sent meanwhile.
TICKS = 10


async def let_it_look(ring: zc_anyio.Ring) -> None:
    """Wait until the ring has looked at each of its sockets."""
    start = ring._native._ticks
    await until(lambda: ring._native._ticks > start + TICKS)


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
                    # An empty message is not sent.
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
                    received = await anyio.to_thread.run_sync(receive_exactly, peer, len(DATA) + 10)
                assert received == DATA + b"directions"
                assert not at_end(peer)
                await hold(ring, twin)
            await until(lambda: has_learned(peer) or at_end(peer) or driver == "copy")


async def test_its_number_is_another_connection_at_once(holding_driver: str) -> None:
    with tcp_pair(stalled=True) as (client, peer), tcp_pair() as (spare, other_peer):
        async with ring_of(holding_driver) as ring:
            await hold(ring, client)
            # Python's object does not notice: from now on it is the other connection.
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
async def test_held_sends_are_given_up_after_a_while(
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
async def test_waiting_sends_are_given_up_after_a_while(
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
            # One call is told that the time is over, later ones that the connection is gone.
            assert [failure.stream for failure in group.failures] == [client]
            assert group.failures[0].error.errno in (errno.ETIMEDOUT, errno.EPIPE)
            await until_ended(ring)


# --- what is held can be had back ---


@pytest.mark.usefixtures("io_uring_runs")
async def test_io_uring_needs_no_descriptor_for_it() -> None:
    with tcp_pair(stalled=True) as (client, peer):
        async with ring_of("io_uring") as ring:
            before = len(open_descriptors())
            await hold(ring, client)
            client.close()
            await until(lambda: len(open_descriptors()) == before - 1)
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


async def test_the_end_of_the_ring_gets_the_buffers_back(holding_driver: str) -> None:
    with tcp_pair(stalled=True) as (client, _):
        async with ring_of(holding_driver, drain_timeout=0.3) as ring:
            await hold(ring, client)
            client.close()
        assert ring.statistics().held == 0
        assert ring._native._ticks > 0
