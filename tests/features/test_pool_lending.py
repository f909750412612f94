"""Buffers of a pool: who gets one, when it comes back, growing and closing."""

from __future__ import annotations

import gc
import os
import socket
import weakref
from typing import Any

import anyio
import numpy as np
import pytest

import zc_anyio
from tests.features.memory import address_of, mapping_flags
from tests.support.peers import parked_pair, receive_exactly, tcp_pair
from tests.support.waiting import LIMIT, until
from zc_anyio import BufferPool, lowlevel, open_buffer_pool

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

SIZE = 64 << 10


async def receive(peer: socket.socket, size: int) -> bytes:
    """Receive so many bytes while the event loop goes on sending them."""
    return await anyio.to_thread.run_sync(receive_exactly, peer, size)


async def test_acquiring_is_first_come_first_served(driver: str) -> None:
    order: list[int] = []

    async def take(number: int) -> None:
        view = await pool.acquire()
        order.append(number)
        await anyio.sleep(0)
        pool.release(view)

    async with zc_anyio.open_ring(driver=driver):
        async with open_buffer_pool(buffer_size=SIZE, count=1) as pool:
            view = await pool.acquire()
            async with anyio.create_task_group() as tg:
                for number in range(10):
                    tg.start_soon(take, number)
                    for _ in range(5):
                        await anyio.sleep(0)
                pool.release(view)
                # Whoever comes last waits, although a buffer was just given back.
                await take(10)
            assert order == list(range(11))
            assert pool.free == 1


async def test_a_cancelled_acquire_takes_nothing(driver: str) -> None:
    async with zc_anyio.open_ring(driver=driver):
        async with open_buffer_pool(buffer_size=SIZE, count=1) as pool:
            view = await pool.acquire()
            async with anyio.create_task_group() as tg:
                tg.start_soon(pool.acquire)
                await anyio.wait_all_tasks_blocked()
                tg.cancel_scope.cancel()
                pool.release(view)
            assert pool.free == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_that_is_cancelled_as_it_gets_a_buffer_takes_none() -> None:
    import asyncio

    async with zc_anyio.open_ring():
        async with open_buffer_pool(buffer_size=SIZE, count=1) as pool:
            view = await pool.acquire()
            task = asyncio.create_task(pool.acquire())
            await anyio.wait_all_tasks_blocked()
            pool.release(view)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            del task
            gc.collect()
            assert pool.free == 1


async def test_what_was_released_cannot_be_used(driver: str) -> None:
    with tcp_pair() as (client, _):
        async with (
            zc_anyio.open_ring(driver=driver),
            open_buffer_pool(buffer_size=SIZE, count=1) as pool,
            zc_anyio.send_group() as group,
        ):
            view = await pool.acquire()
            part = view[:10]
            array = np.frombuffer(view, np.uint8)
            pool.release(view)
            assert pool.free == 1
            with pytest.raises(ValueError):
                pool.release(view)
            for taken_again in (False, True):
                if taken_again:
                    again = await pool.acquire()
                with pytest.raises(ValueError):
                    view[0] = 1
                # A part cannot be revoked, but it can be recognised.
                for stale in (view, part) if taken_again else (view, part, array):
                    with pytest.raises((ValueError, BufferError)):
                        await group.send(client, stale)
            assert group.statistics().sends == 0
            pool.release(again)


async def test_only_an_acquired_buffer_can_be_released(driver: str) -> None:
    async with (
        zc_anyio.open_ring(driver=driver),
        open_buffer_pool(buffer_size=SIZE, count=1) as pool,
        open_buffer_pool(buffer_size=SIZE, count=1) as other,
    ):
        foreign = await other.acquire()
        view = await pool.acquire()
        for wrong in (foreign, memoryview(bytearray(10)), view[:10]):
            with pytest.raises(ValueError):
                pool.release(wrong)
        assert (pool.free, other.free) == (0, 0)


async def test_a_buffer_dropped_unsent_goes_back(driver: str) -> None:
    async with zc_anyio.open_ring(driver=driver):
        async with open_buffer_pool(buffer_size=SIZE, count=1) as pool:
            for _ in range(3):
                with anyio.fail_after(LIMIT):
                    view = await pool.acquire()
                del view
                gc.collect()
                assert pool.free == 1


@pytest.mark.parametrize("kind", ["slice", "array"])
async def test_a_buffer_is_out_while_any_part_of_it_is_used(driver: str, kind: str) -> None:
    async with zc_anyio.open_ring(driver=driver):
        async with open_buffer_pool(buffer_size=SIZE, count=1) as pool:
            if kind == "slice":
                part: Any = (await pool.acquire())[10:20]
            else:
                part = np.frombuffer(await pool.acquire(), np.uint8)[10:20]
            gc.collect()
            assert pool.free == 0
            part[0] = 1
            del part
            gc.collect()
            assert pool.free == 1


async def test_a_view_that_only_the_pool_has_is_handed_out_again(driver: str) -> None:
    data = [os.urandom(SIZE) for _ in range(3)]
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver):
            async with open_buffer_pool(buffer_size=SIZE, count=1) as pool:
                views: list[weakref.ref[memoryview]] = []
                for part in data:
                    async with zc_anyio.send_group() as group:
                        # This attaches the socket, so that the next send takes the short path.
                        await group.send(client, b"")
                        view = await pool.acquire()
                        views.append(weakref.ref(view))
                        view[:] = part
                        await group.send(client, view)
                        del view
                        assert await receive(peer, SIZE) == part
                    assert pool.free == 1
                assert views[0] is views[1] is views[2]
                # Handed out anew, it still goes back when it is dropped unsent.
                await pool.acquire()
                gc.collect()
                assert pool.free == 1
                del views


@pytest.mark.parametrize("kind", ["slice", "array", "view"])
async def test_a_view_that_somebody_else_has_is_not_handed_out_again(
    driver: str, kind: str
) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver):
            async with open_buffer_pool(buffer_size=SIZE, count=1) as pool:
                async with zc_anyio.send_group() as group:
                    await group.send(client, b"")
                    view = await pool.acquire()
                    view[:] = bytes(SIZE)
                    await group.send(client, view)
                    kept: Any = (
                        view[:10]
                        if kind == "slice"
                        else np.frombuffer(view, np.uint8)
                        if kind == "array"
                        else view
                    )
                    first = weakref.ref(view)
                    del view
                    assert await receive(peer, SIZE) == bytes(SIZE)
                assert pool.free == 1
                again = await pool.acquire()
                assert again is not first()
                async with zc_anyio.send_group() as group:
                    if kind != "array":
                        with pytest.raises((BufferError, ValueError)):
                            await group.send(client, kept)
                    await group.send(client, again)
                    assert await receive(peer, SIZE) == bytes(SIZE)
                    del kept, again


async def test_a_view_that_its_user_has_released_is_not_handed_out_again(driver: str) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver):
            async with open_buffer_pool(buffer_size=SIZE, count=1) as pool:
                for number in range(3):
                    async with zc_anyio.send_group() as group:
                        await group.send(client, b"")
                        with await pool.acquire() as view:
                            view[:] = bytes([number]) * SIZE
                            await group.send(client, view)
                        del view
                        assert await receive(peer, SIZE) == bytes([number]) * SIZE


# --- growing and closing ---


async def test_growing_serves_those_who_wait(driver: str) -> None:
    taken: list[memoryview] = []

    async def take(pool: BufferPool) -> None:
        taken.append(await pool.acquire())

    async with zc_anyio.open_ring(driver=driver):
        async with open_buffer_pool(buffer_size=SIZE, count=1) as pool:
            async with anyio.create_task_group() as tg:
                for _ in range(4):
                    tg.start_soon(take, pool)
                await anyio.wait_all_tasks_blocked()
                assert len(taken) == 1
                pool.grow(5)
            assert (len(taken), pool.count, pool.free) == (4, 6, 2)
            assert (pool.unregistered is None) == (driver == "io_uring")
            assert len({address_of(view) for view in taken}) == 4
            taken.clear()
            assert pool.free == 6


async def test_closing_wakes_waiting_tasks_and_revokes_acquired_buffers(driver: str) -> None:
    async def refused() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await pool.acquire()

    async with zc_anyio.open_ring(driver=driver), anyio.create_task_group() as tg:
        async with open_buffer_pool(buffer_size=SIZE, count=1) as pool:
            view = await pool.acquire()
            tg.start_soon(refused)
            await anyio.wait_all_tasks_blocked()
        await refused()
        with pytest.raises(anyio.ClosedResourceError):
            pool.grow(1)
        with pytest.raises(ValueError):
            view[0] = 1


async def test_closing_unmaps_what_is_not_being_sent(driver: str) -> None:
    gc.disable()  # the memory must not wait for it
    try:
        async with zc_anyio.open_ring(driver=driver):
            async with open_buffer_pool(buffer_size=SIZE, count=1, huge_pages="never") as pool:
                address = address_of(await pool.acquire())
                assert "nh" in mapping_flags(address)
            del pool
            with pytest.raises(LookupError):
                mapping_flags(address)
    finally:
        gc.enable()


async def test_closing_with_sends_queued_and_held_lets_them_arrive(driver: str) -> None:
    data = [os.urandom(1 << 20) for _ in range(3)]
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            async with open_buffer_pool(buffer_size=1 << 20, count=3) as pool:
                for part in data:
                    view = await pool.acquire()
                    view[:] = part
                    await group.send(client, view)
                group.flush()
            del view, pool
            gc.collect()
            for part in data:
                assert await receive(peer, 1 << 20) == part


async def test_a_pool_smaller_than_a_generation_goes_round(driver: str) -> None:
    data = os.urandom(50 * SIZE)
    with tcp_pair() as (client, peer):
        async with (
            zc_anyio.open_ring(driver=driver) as ring,
            open_buffer_pool(buffer_size=SIZE, count=3) as pool,
            anyio.create_task_group() as tg,
        ):
            received: list[bytes] = []

            async def take() -> None:
                received.append(await receive(peer, len(data)))

            tg.start_soon(take)
            # The program ends no generation, and the window has room for everything.
            async with zc_anyio.send_group() as group:
                for at in range(0, len(data), SIZE):
                    view = await pool.acquire()
                    view[:] = data[at : at + SIZE]
                    await group.send(client, view)
                assert group.statistics().generations_released > 10
            assert ring.statistics().sends == 50
        assert received == [data]


async def test_what_is_sent_while_somebody_waits_comes_back_too(driver: str) -> None:
    with tcp_pair() as (client, peer):
        async with (
            zc_anyio.open_ring(driver=driver),
            open_buffer_pool(buffer_size=SIZE, count=1) as pool,
            zc_anyio.send_group() as group,
            anyio.create_task_group() as tg,
        ):
            view = await pool.acquire()
            handed = anyio.Event()

            async def wait() -> None:
                pool.release(await pool.acquire())
                handed.set()

            tg.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await group.send(client, view)
            del view
            assert len(await receive(peer, SIZE)) == SIZE
            with anyio.fail_after(LIMIT):
                await handed.wait()


async def test_a_pool_that_runs_dry_ends_no_generation_of_a_context_by_hand(driver: str) -> None:
    """A group's is ended, so that its buffers come back; here only the program may do that."""
    taken = anyio.Event()
    with tcp_pair() as (client, peer):
        async with (
            zc_anyio.open_ring(driver=driver) as ring,
            zc_anyio.open_buffer_pool(ring=ring, buffer_size=1000, count=1) as pool,
            anyio.create_task_group() as tasks,
        ):
            [context] = lowlevel.register_tx_contexts(ring, [7])

            async def take() -> None:
                pool.release(await pool.acquire())
                taken.set()

            await context.send(client, await pool.acquire())
            tasks.start_soon(take)
            assert len(await anyio.to_thread.run_sync(receive_exactly, peer, 1000)) == 1000
            await until(lambda: not ring.statistics().held)
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            with pytest.raises(anyio.WouldBlock):
                context.notifications.receive_nowait()
            assert not taken.is_set()
            context.flush()
            await taken.wait()
            assert (await context.notifications.receive()).generation == 0
            context.notifications.close()
            await lowlevel.unregister_tx_contexts(ring)
