"""What one turn does at most, so that other tasks of the event loop run soon."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.support.peers import Reader, receive_exactly, tcp_pair
from tests.support.waiting import until
from zc_anyio.testing import reset

MIB = 1 << 20
# The bounds of ring.c and accounting.h, and the room for events of a turn.
REQUESTS, REAPS, EVENTS, BYTES = 128, 2048, 512, 4 * MIB


class Turns:
    """What each turn of a ring did, and in which turn of the event loop it was taken."""

    def __init__(self, ring: zc_anyio.Ring, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests: list[int] = []
        self.completions: list[int] = []
        self.bytes: list[int] = []
        self.events: list[int] = []
        self.passes: list[int] = []
        self.number = 0
        native: Any = ring._native
        turn = native.turn

        def counted() -> list[int]:
            before = native.statistics()
            requests, completions = before.requests, before.completions
            sent = before.bytes_sent
            told: list[int] = turn()
            after = native.statistics()
            self.requests.append(after.requests - requests)
            self.completions.append(after.completions - completions)
            self.bytes.append(after.bytes_sent - sent)
            self.events.append(len(told) // 4)
            self.passes.append(self.number)
            return told

        monkeypatch.setattr(native, "turn", counted)

    async def count_passes(self) -> None:
        while True:
            self.number += 1
            await anyio.lowlevel.checkpoint()


@contextmanager
def unix_pairs(count: int) -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    with ExitStack() as stack:
        pairs = [socket.socketpair() for _ in range(count)]
        for client, peer in pairs:
            client.setblocking(False)
            stack.enter_context(client)
            stack.enter_context(peer)
        yield pairs


@pytest.mark.anyio
async def test_a_broadcast_to_many_is_submitted_in_shares(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with unix_pairs(6 * REQUESTS) as pairs:
        async with zc_anyio.open_ring(driver=driver) as ring, anyio.create_task_group() as tasks:
            turns = Turns(ring, monkeypatch)
            tasks.start_soon(turns.count_passes)
            async with zc_anyio.send_group() as group:
                await group.broadcast([client for client, _ in pairs], b"to all of you")
            tasks.cancel_scope.cancel()
            assert ring.statistics().requests == len(pairs)
        assert max(turns.requests) <= REQUESTS
        # Other tasks have run in between; flushing may take an extra turn of the ring.
        busy = {number for number, n in zip(turns.passes, turns.requests, strict=True) if n}
        assert len(busy) > 1
        for _, peer in pairs:
            assert receive_exactly(peer, 13) == b"to all of you"


@pytest.mark.anyio
async def test_a_large_send_is_submitted_in_shares(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * (32 * MIB // 256)
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver, zero_copy="always") as ring:
            turns = Turns(ring, monkeypatch)
            async with zc_anyio.send_group() as group:
                await group.send(client, data)
            # What one request covers is pinned as a whole.
            assert ring.statistics().requests >= len(data) // BYTES
        # A turn also tells of one request that an earlier one submitted.
        assert max(turns.bytes) <= 2 * BYTES
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == data


@pytest.mark.anyio
async def test_many_releases_at_once_are_reaped_and_told_in_shares_by_io_uring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The notifications of MSG_ZEROCOPY are ranges, so that one event tells of all of them."""
    each, peers = 400, 8
    count = each * peers
    assert count > REAPS
    with ExitStack() as stack:
        pairs = [stack.enter_context(tcp_pair(stalled=True)) for _ in range(peers)]
        async with (
            zc_anyio.open_ring(driver="io_uring", zero_copy="always", staging=0) as ring,
            anyio.create_task_group() as tasks,
        ):
            async with zc_anyio.send_group(on_error="collect") as group:
                for client, _ in pairs:
                    # What comes behind it is held until the peer reads, or resets.
                    await group.send(client, bytes(MIB))
                for _ in range(each):
                    for client, _ in pairs:
                        await group.send(client, b"x" * 100)
                    group.flush()
                await until(lambda: ring.statistics().held == count + peers)
                turns = Turns(ring, monkeypatch)
                tasks.start_soon(turns.count_passes)
                for _, peer in pairs:
                    reset(peer)
            tasks.cancel_scope.cancel()
        assert sum(turns.completions) >= count
        assert max(turns.completions) <= REAPS
        assert max(turns.events) <= EVENTS
        # Other tasks have run in between; flushing may take an extra turn of the ring.
        told = {number for number, n in zip(turns.passes, turns.events, strict=True) if n > 1}
        assert len(told) > 1


@pytest.mark.anyio
async def test_the_end_of_a_ring_detaches_more_sockets_than_one_turn_tells_of(driver: Any) -> None:
    with unix_pairs(EVENTS + 100) as pairs:
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.broadcast([client for client, _ in pairs], b"farewell")
        assert not ring._sockets._by_ident
        for client, peer in pairs:
            client.close()
            # Nothing keeps the connection.
            assert receive_exactly(peer, 8) == b"farewell"
            assert peer.recv(1) == b""
