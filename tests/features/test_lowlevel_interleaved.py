"""Eight contexts, eight tasks, and peers of different speeds."""

from __future__ import annotations

import random
import socket
import struct
from collections import defaultdict
from contextlib import ExitStack

import anyio
import pytest

import zc_anyio
from tests.features.receivers import PacedReader
from tests.support.backends import one_backend
from tests.support.netns import Rig
from tests.support.peers import tcp_pair
from tests.support.waiting import until_idle
from zc_anyio import lowlevel
from zc_anyio.lowlevel import TxContext

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

SIZE = 64 << 10
HEADER = struct.Struct("<HHI")
MESSAGES = 40


def payload(context: int, sequence: int, size: int) -> bytes:
    return random.Random(context << 32 | sequence).randbytes(size)


class Station:
    """One context and its two tasks: one sends, the other overwrites what was released."""

    def __init__(self, context: TxContext, sockets: list[socket.socket]) -> None:
        self.context = context
        self.sockets = sockets
        self.random = random.Random(context.tag)
        self.told: list[int] = []
        self.buffers: defaultdict[int, list[bytearray]] = defaultdict(list)
        self.flushed = 0

    async def send(self) -> None:
        for sequence in range(MESSAGES):
            size = self.random.choice((10, 2000, 30_000, 60_000))
            buffer = bytearray(HEADER.pack(self.context.tag, sequence, size))
            buffer += payload(self.context.tag, sequence, size)
            flush = self.random.random() < 0.3 or sequence == MESSAGES - 1
            self.buffers[self.flushed].append(buffer)
            await self.context.send(self.random.choice(self.sockets), buffer, flush=flush)
            self.flushed += flush
            if self.random.random() < 0.1:
                assert self.context.flush().number == self.flushed
                self.flushed += 1
            if self.random.random() < 0.2:
                await anyio.sleep(self.random.random() / 500)

    async def overwrite(self, total: anyio.Event) -> None:
        with self.context.notifications as notifications:
            async for told in notifications:
                assert told.tag == self.context.tag
                self.told.append(told.generation)
                for buffer in self.buffers.pop(told.generation, ()):
                    buffer[:] = b"!" * len(buffer)
                    buffer.append(0)
        total.set()


def check_stream(received: bytes, seen: dict[int, set[int]]) -> None:
    """Take a stream apart: each message as it was made, those of one context in order."""
    at = 0
    latest: dict[int, int] = {}
    while at < len(received):
        context, sequence, size = HEADER.unpack_from(received, at)
        at += HEADER.size
        assert received[at : at + size] == payload(context, sequence, size), (context, sequence)
        at += size
        assert sequence > latest.get(context, -1)
        latest[context] = sequence
        assert sequence not in seen[context]
        seen[context].add(sequence)


async def eight_contexts(
    driver: str, pairs: list[tuple[socket.socket, socket.socket]]
) -> zc_anyio.RingStatistics:
    with ExitStack() as stack:
        readers = [
            stack.enter_context(
                PacedReader(peer, chunk=random.choice((3000, 20_000, 1 << 20)), pause=0.0002)
            )
            for _, peer in pairs
        ]
        async with zc_anyio.open_ring(driver=driver, zero_copy="always", threshold=0) as ring:
            contexts = lowlevel.register_tx_contexts(ring, range(8), window=300_000)
            stations = [Station(context, [client for client, _ in pairs]) for context in contexts]
            ended = [anyio.Event() for _ in stations]
            async with anyio.create_task_group() as receivers:
                for station, event in zip(stations, ended, strict=True):
                    receivers.start_soon(station.overwrite, event)
                async with anyio.create_task_group() as senders:
                    for station in stations:
                        senders.start_soon(station.send)
                await lowlevel.unregister_tx_contexts(ring)
                for event in ended:
                    await event.wait()
            await until_idle(ring)
            statistics = ring.statistics()
        seen: dict[int, set[int]] = defaultdict(set)
        for (client, _), reader in zip(pairs, readers, strict=True):
            client.shutdown(socket.SHUT_WR)
            check_stream(await reader.all(), seen)
    for station in stations:
        assert station.told == list(range(station.flushed))
        assert not station.buffers
        assert seen[station.context.tag] == set(range(MESSAGES))
    assert statistics.failed == 0
    return statistics


async def test_eight_contexts_at_once(driver: str) -> None:
    with ExitStack() as stack:
        pairs = [stack.enter_context(tcp_pair(receive_buffer=SIZE)) for _ in range(8)]
        await eight_contexts(driver, pairs)


@one_backend
async def test_eight_contexts_at_once_where_packets_wait_on_asyncio(
    namespaces: Rig, driver: str
) -> None:
    with ExitStack() as stack:
        pairs = [stack.enter_context(namespaces.connection(receive_buffer=SIZE)) for _ in range(8)]
        statistics = await eight_contexts(driver, pairs)
    # A request that is zero-copied has two completions.
    assert (statistics.completions > statistics.requests) == (driver != "copy")
