"""The window: back-pressure by bytes that are not released."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.support.peers import Reader, parked_pair, receive_exactly, tcp_pair
from tests.support.waiting import until, until_parked

KIB = 1 << 10
MIB = 1 << 20


@pytest.mark.anyio
async def test_a_full_window_refuses_and_queues_nothing(driver: Any) -> None:
    data = bytearray(os.urandom(MIB))
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group(window=2 * MIB) as group:
                group.send_nowait(client, data)
                group.send_nowait(client, data)
                for _ in range(3):
                    with pytest.raises(anyio.WouldBlock):
                        group.send_nowait(client, b"x")
                assert ring.statistics().sends == 2
                assert group.statistics().unreleased_bytes == 2 * MIB
                received = await anyio.to_thread.run_sync(receive_exactly, peer, 2 * MIB)
                await until(lambda: group.statistics().unreleased_bytes == 0)
                group.send_nowait(client, b"x")
            assert receive_exactly(peer, 1) == b"x"
    assert received == bytes(data) * 2


@pytest.mark.anyio
async def test_send_waits_until_it_fits(driver: Any) -> None:
    data = os.urandom(20 * MIB)
    sent = 0

    async def send() -> None:
        nonlocal sent
        async with zc_anyio.send_group(window=MIB) as group:
            for start in range(0, len(data), 100_000):
                await group.send(client, data[start : start + 100_000])
                assert group.statistics().unreleased_bytes <= MIB
                sent += 1

    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring, anyio.create_task_group() as tg:
            tg.start_soon(send)
            await until(lambda: sent >= 10)
            await until_parked(ring)
            await anyio.sleep(0.05)
            # The window, and what the two sockets take.
            assert sent < 100
            with Reader(peer) as reader:
                await until(lambda: sent == 210)
                await until(lambda: ring.statistics().generations_open == 0)
                client.shutdown(socket.SHUT_WR)
                assert await reader.all() == data


@pytest.mark.anyio
async def test_a_send_larger_than_the_window_goes_alone(driver: Any) -> None:
    data = os.urandom(3 * MIB)
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group(window=64 * KIB) as group:
                group.send_nowait(client, data)
                with pytest.raises(anyio.WouldBlock):
                    group.send_nowait(client, b"x")
                with Reader(peer) as reader:
                    await group.send(client, data)
                    assert group.statistics().unreleased_bytes in (0, len(data))
                    await group.send(client, b"x")
                    await group.flush().wait_released()
                    client.shutdown(socket.SHUT_WR)
                    assert await reader.all() == data + data + b"x"
            assert ring.statistics().sends == 3


@pytest.mark.anyio
async def test_a_broadcast_is_counted_once(driver: Any) -> None:
    with ExitStack() as stack:
        pairs = [stack.enter_context(parked_pair()) for _ in range(10)]
        clients = [client for client, _ in pairs]
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group(window=5 * MIB) as group:
                # Each socket takes less than 2 MiB, so what is queued stays.
                for _ in range(4):
                    await group.broadcast(clients, bytearray(MIB))
                assert 4 * MIB <= group.statistics().unreleased_bytes <= 4 * MIB + 40
                assert ring.statistics().sends == 40
                readers = [stack.enter_context(Reader(peer)) for _, peer in pairs]
                # This one waits for room.
                await group.broadcast(clients, bytearray(2 * MIB))
            assert ring.statistics().sends == 50
        for client, reader in zip(clients, readers, strict=True):
            client.shutdown(socket.SHUT_WR)
            assert len(await reader.all()) == 6 * MIB


@pytest.mark.anyio
async def test_several_tasks_wait_for_one_window(driver: Any) -> None:
    sizes = [300_000, 10, 65_536, 900_000, 1, 500_000, 40_000]

    async def send(size: int) -> None:
        for _ in range(5):
            await group.send(client, bytes(size))

    with parked_pair() as (client, peer), Reader(peer, chunk=64 * KIB) as reader:
        peer.settimeout(None)
        async with zc_anyio.open_ring(driver=driver):
            async with zc_anyio.send_group(window=MIB) as group:
                async with anyio.create_task_group() as tg:
                    for size in sizes:
                        tg.start_soon(send, size)
        client.shutdown(socket.SHUT_WR)
        assert len(await reader.all()) == 5 * sum(sizes)


@pytest.mark.anyio
async def test_a_cancelled_wait_has_queued_nothing(driver: Any) -> None:
    waiting = bytearray(MIB)
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group(window=MIB) as group:
                await group.send(client, bytes(MIB))
                with anyio.move_on_after(0.05) as scope:
                    await group.send(client, waiting)
                assert scope.cancelled_caught
                waiting.append(1)
                assert ring.statistics().sends == 1
                assert await anyio.to_thread.run_sync(receive_exactly, peer, MIB) == bytes(MIB)
                # The window also opens when nobody waits any more.
                await until(lambda: group.statistics().unreleased_bytes == 0)
                group.send_nowait(client, b"x")
            assert receive_exactly(peer, 1) == b"x"


@pytest.mark.anyio
async def test_windows_of_two_groups_are_apart(driver: Any) -> None:
    with parked_pair() as (client, peer), tcp_pair() as (other, other_peer):
        async with zc_anyio.open_ring(driver=driver):
            async with zc_anyio.send_group(window=MIB) as full, zc_anyio.send_group() as free:
                full.send_nowait(client, bytes(MIB))
                with pytest.raises(anyio.WouldBlock):
                    full.send_nowait(other, b"x")
                await free.send(other, b"y")
                assert await anyio.to_thread.run_sync(receive_exactly, other_peer, 1) == b"y"
                await anyio.to_thread.run_sync(receive_exactly, peer, MIB)


@pytest.mark.anyio
async def test_other_tasks_run_while_a_group_sends_without_waiting(driver: Any) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await anyio.sleep(0)

    with tcp_pair() as (client, peer), Reader(peer):
        async with zc_anyio.open_ring(driver=driver), anyio.create_task_group() as tg:
            tg.start_soon(tick)
            async with zc_anyio.send_group() as group:
                for _ in range(20_000):
                    await group.send(client, b"x")
            tg.cancel_scope.cancel()
        client.close()
    assert ticks > 5
