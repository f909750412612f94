"""What arrives is what was sent, whatever the sizes and the pauses."""

from __future__ import annotations

import hashlib
import random
from functools import partial
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.streams.pairs import connected
from tests.support.backends import one_backend
from tests.support.peers import receive_exactly, tcp_pair
from tests.support.waiting import LIMIT, until

MIB = 1 << 20
# Sends are slices of it, so that making them takes no time.
POOL = random.Random(1).randbytes(6 * MIB)


async def send(stream: zc_anyio.ZeroCopySocketStream, total: int, most: int, seed: int) -> str:
    """Send pieces of random sizes, some in buffers that are overwritten after it."""
    rng = random.Random(seed)
    digest = hashlib.sha256()
    while total:
        size = min(rng.choice((0, 1, rng.randint(1, 2000), rng.randint(0, most))), total)
        at = rng.randrange(len(POOL) - size + 1)
        data = memoryview(POOL)[at : at + size]
        digest.update(data)
        kind = rng.randrange(3)
        if kind == 0:
            changeable = bytearray(data)
            await stream.send(changeable)
            changeable[:] = bytes(size)
        else:
            await stream.send(bytes(data) if kind == 1 else data)
        total -= size
        if rng.random() < 0.02:
            await anyio.sleep(rng.random() * 0.01)
    await stream.send_eof()
    return digest.hexdigest()


async def receive(stream: zc_anyio.ZeroCopySocketStream, seed: int) -> str:
    """Receive pieces of random sizes to the end, in both ways."""
    rng = random.Random(seed)
    digest = hashlib.sha256()
    buffer = bytearray(MIB)
    try:
        while True:
            size = rng.choice((rng.randint(1, 2000), rng.randint(1, MIB)))
            if rng.random() < 0.5:
                with memoryview(buffer)[:size] as view:
                    digest.update(view[: await stream.receive_into(view)])
            else:
                chunk = await stream.receive(size)
                assert 0 < len(chunk) <= size
                digest.update(chunk)
            if rng.random() < 0.02:
                await anyio.sleep(rng.random() * 0.01)
    except anyio.EndOfStream:
        return digest.hexdigest()


async def both_ways(driver: Any, zero_copy: Any, kind: str, total: int, most: int) -> None:
    digests: dict[str, str] = {}

    async def note(name: str, made: Any) -> None:
        digests[name] = await made

    async with zc_anyio.open_ring(driver=driver, zero_copy=zero_copy) as ring:
        async with connected(kind) as (one, other):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(note, "to", send(one, total, most, 1))
                tasks.start_soon(note, "back", send(other, total, most, 2))
                tasks.start_soon(note, "at other", receive(other, 3))
                tasks.start_soon(note, "at one", receive(one, 4))
        counters = ring.statistics()
        assert counters.bytes_sent == 2 * total
        if zero_copy == "always" and kind == "tcp" and driver == "io_uring":
            # Loopback copies in the end, and reports that; what counts is that zero copy was asked
            # for.
            assert counters.requests > 0
    assert digests["to"] == digests["at other"]
    assert digests["back"] == digests["at one"]


@pytest.mark.anyio
@one_backend
async def test_64_mib_each_way_at_once(driver: Any) -> None:
    await both_ways(driver, "auto", "tcp", 64 * MIB, 3 * MIB)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("kind", "zero_copy"), [("tcp", "auto"), ("tcp", "always"), ("tcp", "never"), ("unix", "auto")]
)
async def test_6_mib_each_way_at_once(driver: Any, kind: str, zero_copy: str) -> None:
    await both_ways(driver, zero_copy, kind, 6 * MIB, MIB)


@pytest.mark.anyio
async def test_held_sends_do_not_fill_the_window(holding_driver: Any) -> None:
    with tcp_pair(stalled=True) as (client, peer):
        async with zc_anyio.open_ring(driver=holding_driver, zero_copy="always") as ring:
            async with await zc_anyio.ZeroCopySocketStream.from_socket(client.dup()) as stream:
                client.close()
                with anyio.fail_after(LIMIT):
                    for _ in range(3):
                        await stream.send(bytes(1 << 20))
                await until(lambda: ring.statistics().held == 3)
                receive = partial(receive_exactly, peer, 3 << 20)
                assert await anyio.to_thread.run_sync(receive) == bytes(3 << 20)
