"""Generations: what is held and for how long, and how the program is told."""

from __future__ import annotations

import gc
import os
import weakref
from functools import partial
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.support.peers import Reader, receive_exactly, tcp_pair, wrap
from tests.support.waiting import until, until_held

MIB = 1 << 20


class Buffer(bytearray):
    """A buffer that can be referred to weakly."""


@pytest.mark.anyio
async def test_a_long_group_drops_references_along_the_way(driver: Any) -> None:
    identities = []
    most = 0
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group(window=4 * MIB) as group:
                for number in range(400):
                    data = Buffer(bytes([number % 256]) * (64 << 10))
                    identities.append(weakref.ref(data))
                    await group.send(client, data)
                    del data
                    most = max(most, sum(ref() is not None for ref in identities[-200:]))
                assert group.statistics().generations_released > 4
                # A window, and the generation that is being filled.
                assert most * (64 << 10) <= 4 * MIB + 2 * MIB
            assert all(ref() is None for ref in identities)
            assert ring.statistics().generations_open == 0
        client.close()
        received = await reader.all()
    assert received == b"".join(bytes([number % 256]) * (64 << 10) for number in range(400))


@pytest.mark.anyio
async def test_held_means_referenced(holding_driver: Any) -> None:
    data = Buffer(os.urandom(MIB))
    expected = bytes(data)
    watched = weakref.ref(data)
    with tcp_pair(stalled=True) as (client, peer):
        stream = await wrap(client)
        async with zc_anyio.open_ring(driver=holding_driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(stream, data)
                # Only the ring refers to it: the caller, the stream and a waiter have let go.
                del data
                await until_held(ring, 1)
                await stream.aclose()
                with anyio.move_on_after(0.01):
                    await group.flush().wait_released()
                gc.collect()
                assert watched() is not None
                with pytest.raises(BufferError):
                    watched().append(1)  # type: ignore[union-attr]
                assert receive_exactly(peer, MIB) == expected
            assert watched() is None


@pytest.mark.anyio
async def test_every_part_of_a_sequence_is_referenced(holding_driver: Any) -> None:
    data = memoryview(numbered := Buffer(MIB)).toreadonly()
    watched = weakref.ref(numbered)
    with tcp_pair(stalled=True) as (client, peer):
        async with zc_anyio.open_ring(driver=holding_driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, [b"head", data, b"tail"])
                del data, numbered
                await until_held(ring, 1)
                gc.collect()
                assert watched() is not None
                receive_exactly(peer, MIB + 8)
                await group.flush().wait_released()
                assert watched() is None


@pytest.mark.anyio
async def test_generations_are_numbered_and_tagged(driver: Any) -> None:
    with tcp_pair() as (client, peer), Reader(peer):
        async with zc_anyio.open_ring(driver=driver):
            async with zc_anyio.send_group(tag=7) as group:
                assert group.tag == 7
                for number in range(5):
                    await group.send(client, bytearray(1000))
                    generation = group.flush()
                    assert (generation.tag, generation.number) == (7, number)
                await generation.wait_released()
                assert generation.is_released
                assert "Generation 4" in repr(generation)
            async with zc_anyio.send_group() as one, zc_anyio.send_group() as two:
                assert one.tag != two.tag
                assert one.flush().number == two.flush().number == 0
        client.close()


@pytest.mark.anyio
async def test_an_empty_generation_is_released_at_once(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
        for number in range(3):
            generation = group.flush()
            assert generation.number == number
            assert generation.is_released
            await generation.wait_released()


@pytest.mark.anyio
async def test_generations_are_released_in_any_order_and_told_in_order(
    holding_driver: Any,
) -> None:
    told: list[int] = []

    async def listen() -> None:
        async with notifications:
            async for notification in notifications:
                assert notification.tag == group.tag
                told.append(notification.generation)

    with tcp_pair(stalled=True) as (slow, slow_peer), tcp_pair() as (fast, fast_peer):
        async with (
            zc_anyio.open_ring(driver=holding_driver) as ring,
            anyio.create_task_group() as tg,
        ):
            async with zc_anyio.send_group() as group:
                notifications = group.notifications
                assert notifications is group.notifications
                tg.start_soon(listen)
                await group.send(slow, bytearray(MIB))
                first = group.flush()
                await until_held(ring, 1)
                await group.send(fast, bytearray(1000))
                second = group.flush()
                receive_exactly(fast_peer, 1000)
                await second.wait_released()
                assert second.is_released
                assert not first.is_released
                third = group.flush()
                assert third.is_released
                assert told == []
                receive_exactly(slow_peer, MIB)
                await first.wait_released()
                await until(lambda: told == [0, 1, 2])
                await group.send(fast, bytearray(1000))
                tg.start_soon(anyio.to_thread.run_sync, receive_exactly, fast_peer, 1000)
        # Leaving flushed the last one; the channel ends after it, or the task would not end.
        assert told == [0, 1, 2, 3]


@pytest.mark.anyio
async def test_notifications_that_nobody_takes_hold_nothing_up(driver: Any) -> None:
    with tcp_pair() as (client, peer), Reader(peer):
        async with zc_anyio.open_ring(driver=driver):
            async with zc_anyio.send_group() as group:
                with group.notifications as notifications:
                    for _ in range(2000):
                        group.send_nowait(client, b"x")
                        group.flush()
                    await group.flush().wait_released()
                    assert notifications.statistics().current_buffer_used == 2001
        client.close()


@pytest.mark.anyio
async def test_several_tasks_wait_for_one_generation(holding_driver: Any) -> None:
    released = 0

    async def wait(generation: zc_anyio.Generation) -> None:
        nonlocal released
        await generation.wait_released()
        released += 1

    with tcp_pair(stalled=True) as (client, peer):
        async with zc_anyio.open_ring(driver=holding_driver) as ring:
            async with zc_anyio.send_group() as group, anyio.create_task_group() as tg:
                await group.send(client, bytearray(MIB))
                generation = group.flush()
                for _ in range(5):
                    tg.start_soon(wait, generation)
                await until_held(ring, 1)
                assert released == 0
                receive_exactly(peer, MIB)
            assert released == 5
            # A generation outlives its group.
            assert generation.is_released
            await generation.wait_released()


@pytest.mark.anyio
async def test_a_group_counts_its_own(driver: Any) -> None:
    with tcp_pair() as (client, peer), Reader(peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as one, zc_anyio.send_group() as two:
                for _ in range(3):
                    await one.send(client, bytearray(1000))
                await two.send(client, bytearray(5))
                one.flush()
                await two.flush().wait_released()
                await until(lambda: one.statistics().unreleased_sends == 0)
                counters = one.statistics()
                assert (counters.sends, counters.bytes_sent) == (3, 3000)
                assert (counters.generations_open, counters.generations_released) == (0, 1)
                assert counters.zero_copied + counters.copied + counters.staged == 3
                assert two.statistics().bytes_sent == 5
            assert ring.statistics().sends == 4
            assert ring.statistics().bytes_sent == 3005
            assert ring.statistics().generations_released == 2
        client.close()


@pytest.mark.anyio
async def test_a_flush_stands_for_what_a_full_window_flushed_before(holding_driver: Any) -> None:
    size = 300_000
    with tcp_pair(stalled=True) as (client, peer):
        async with zc_anyio.open_ring(
            driver=holding_driver, zero_copy="always", threshold=0
        ) as ring:
            async with zc_anyio.send_group(window=4 * size) as group:
                for _ in range(4):
                    await group.send(client, bytearray(size))
                generation = group.flush()
                assert generation.number == 4  # empty: each send had filled its share
                await until_held(ring, 4)
                assert not generation.is_released
                later = group.flush()
                assert later.is_released
                receive = partial(receive_exactly, peer, 4 * size)
                assert await anyio.to_thread.run_sync(receive) == bytes(4 * size)
                await generation.wait_released()
                assert ring.statistics().held == 0
