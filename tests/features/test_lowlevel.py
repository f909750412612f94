"""Tx contexts by hand: tags, numbers, FLUSH, errnos, notifications."""

from __future__ import annotations

import errno
import gc
import os
import socket
import weakref
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

import anyio
import pytest

import zc_anyio
from tests.support.peers import Reader, parked_pair, receive_exactly, tcp_pair
from tests.support.waiting import LIMIT, until, until_held
from zc_anyio import lowlevel
from zc_anyio.lowlevel import TxContext

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

SIZE = 64 << 10


@contextmanager
def broken_socket() -> Iterator[socket.socket]:
    """A connected socket on which every send fails with EPIPE."""
    with tcp_pair() as (client, _):
        client.shutdown(socket.SHUT_WR)
        yield client


async def numbers(context: TxContext, count: int) -> list[int]:
    """Receive so many notifications, and see that no other is there."""
    with anyio.fail_after(LIMIT):
        received = [await context.notifications.receive() for _ in range(count)]
    with pytest.raises(anyio.WouldBlock):
        context.notifications.receive_nowait()
    assert all(notification.tag == context.tag for notification in received)
    return [notification.generation for notification in received]


async def receive(peer: socket.socket, size: int) -> bytes:
    """Receive so many bytes while the event loop goes on sending them."""
    return await anyio.to_thread.run_sync(receive_exactly, peer, size)


def close_channels(contexts: list[TxContext]) -> None:
    for context in contexts:
        context.notifications.close()


# --- registration ---


async def test_tags_are_any_64_bits_and_need_not_differ(driver: str) -> None:
    tags = [0, 1, 7, 7, 1 << 63, (1 << 64) - 1]
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            contexts = lowlevel.register_tx_contexts(ring, iter(tags))
            assert [context.tag for context in contexts] == tags
            for context in contexts:
                await context.send(client, b"x" * 100, flush=True)
            for context in contexts:
                assert await numbers(context, 1) == [0]
            await lowlevel.unregister_tx_contexts(ring)
            close_channels(contexts)
        assert await receive(peer, 100 * len(tags)) == b"x" * 100 * len(tags)


@pytest.mark.parametrize(
    ("tags", "number"),
    [
        pytest.param([], errno.EINVAL, id="none"),
        pytest.param([-1], errno.EINVAL, id="negative"),
        pytest.param([1, 1 << 64], errno.EINVAL, id="65-bits"),
        pytest.param(range(1025), errno.EMFILE, id="1025"),
    ],
)
async def test_a_wrong_registration_registers_nothing(
    driver: str, tags: list[int], number: int
) -> None:
    async with zc_anyio.open_ring(driver=driver) as ring:
        with pytest.raises(lowlevel.TxContextError) as caught:
            lowlevel.register_tx_contexts(ring, tags)
        assert isinstance(caught.value, OSError)
        assert caught.value.errno == number
        with pytest.raises(lowlevel.TxContextError) as caught:
            await lowlevel.unregister_tx_contexts(ring)
        assert caught.value.errno == errno.ENXIO


async def test_a_second_registration_is_refused_until_the_first_is_ended(driver: str) -> None:
    async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.open_ring() as other:
        first = lowlevel.register_tx_contexts(ring, range(lowlevel.MAX_TX_CONTEXTS))
        assert len(first) == 1024
        with pytest.raises(lowlevel.TxContextError) as caught:
            lowlevel.register_tx_contexts(ring, [1])
        assert caught.value.errno == errno.EBUSY
        elsewhere = lowlevel.register_tx_contexts(other, [1])
        await lowlevel.unregister_tx_contexts(ring)
        again = lowlevel.register_tx_contexts(ring, [1])
        await lowlevel.unregister_tx_contexts(ring)
        await lowlevel.unregister_tx_contexts(other)
        close_channels(first + elsewhere + again)


async def test_unregistering_flushes_and_waits_for_release(holding_driver: str) -> None:
    done = False

    async def unregister() -> None:
        nonlocal done
        await lowlevel.unregister_tx_contexts(ring)
        done = True

    with tcp_pair(stalled=True) as (client, peer):
        async with (
            zc_anyio.open_ring(driver=holding_driver, zero_copy="always", threshold=0) as ring,
            anyio.create_task_group() as tg,
        ):
            contexts = lowlevel.register_tx_contexts(ring, [5, 6])
            await contexts[1].send(client, bytearray(1 << 20))
            tg.start_soon(unregister)
            await until_held(ring, 1)
            await anyio.sleep(0.05)
            assert not done
            with pytest.raises(anyio.ClosedResourceError):
                await contexts[1].send(client, b"late")
            with pytest.raises(anyio.ClosedResourceError):
                contexts[0].flush()
            assert await receive(peer, 1 << 20) == bytes(1 << 20)
            await until(lambda: done)
            # Nothing was begun on the first one, so there was nothing to end.
            for context, expected in zip(contexts, ([], [0]), strict=True):
                with context.notifications as notifications:
                    assert [told.generation async for told in notifications] == expected


async def test_unregistering_that_is_cancelled_leaves_what_is_held(holding_driver: str) -> None:
    with tcp_pair(stalled=True) as (client, peer):
        async with zc_anyio.open_ring(
            driver=holding_driver, zero_copy="always", threshold=0
        ) as ring:
            (context,) = lowlevel.register_tx_contexts(ring, [1])
            data = bytearray(1 << 20)
            await context.send(client, data)
            await until_held(ring, 1)
            with anyio.move_on_after(0.05) as scope:
                await lowlevel.unregister_tx_contexts(ring)
            assert scope.cancelled_caught
            with pytest.raises(BufferError):
                data.append(1)
            again = lowlevel.register_tx_contexts(ring, [2])
            assert await receive(peer, 1 << 20) == bytes(1 << 20)
            with context.notifications as notifications:
                assert [told.generation async for told in notifications] == [0]
            data.append(1)
            await lowlevel.unregister_tx_contexts(ring)
            close_channels(again)


# --- FLUSH ---


@pytest.mark.parametrize("size", [1, 1000, SIZE, 300_000, 2_000_000])
async def test_flush_with_a_send_ends_its_generation(driver: str, size: int) -> None:
    data = os.urandom(size)
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver) as ring:
            (context,) = lowlevel.register_tx_contexts(ring, [1])
            for _ in range(3):
                await context.send(client, b"before")
                await context.send(client, data, flush=True)
            assert await numbers(context, 3) == [0, 1, 2]
            assert context.flush().number == 3
            await lowlevel.unregister_tx_contexts(ring)
            close_channels([context])
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == (b"before" + data) * 3


async def test_flush_with_a_send_waits_for_its_result_only(holding_driver: str) -> None:
    with tcp_pair(stalled=True) as (client, peer):
        async with zc_anyio.open_ring(
            driver=holding_driver, zero_copy="always", threshold=0
        ) as ring:
            (context,) = lowlevel.register_tx_contexts(ring, [1])
            with anyio.fail_after(LIMIT):
                await context.send(client, bytes(1 << 20), flush=True)
            assert ring.statistics().held == 1
            assert context.flush().number == 1
            # Notifications come in order, so the empty generation waits for the one before it.
            assert await numbers(context, 0) == []
            await receive(peer, 1 << 20)
            assert await numbers(context, 2) == [0, 1]
            await lowlevel.unregister_tx_contexts(ring)
            close_channels([context])


@pytest.mark.parametrize("size", [100, 300_000, 5_000_000])
async def test_a_failing_flush_leaves_its_generation_open(driver: str, size: int) -> None:
    with tcp_pair() as (client, peer), broken_socket() as broken, Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver) as ring:
            (context,) = lowlevel.register_tx_contexts(ring, [1])
            await context.send(client, b"one")
            for _ in range(2):  # the second time the socket is known to be broken
                with pytest.raises(anyio.BrokenResourceError) as caught:
                    await context.send(broken, bytes(size), flush=True)
                assert isinstance(caught.value.__cause__, OSError)
                assert caught.value.__cause__.errno == errno.EPIPE
            await until(lambda: ring.statistics().bytes_sent == 3)
            assert context.statistics().generations_open == 1
            assert await numbers(context, 0) == []
            await context.send(client, b"two", flush=True)
            assert await numbers(context, 1) == [0]
            assert context.flush().number == 1
            assert context.statistics().failed == 1
            await lowlevel.unregister_tx_contexts(ring)
            close_channels([context])
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == b"onetwo"


async def test_a_generation_with_only_a_failed_send_stays_open(driver: str) -> None:
    with broken_socket() as broken:
        async with zc_anyio.open_ring(driver=driver) as ring:
            (context,) = lowlevel.register_tx_contexts(ring, [1])
            with pytest.raises(anyio.BrokenResourceError):
                await context.send(broken, b"x", flush=True)
            assert context.flush().number == 0
            assert context.flush().number == 1
            assert await numbers(context, 2) == [0, 1]
            await lowlevel.unregister_tx_contexts(ring)
            close_channels([context])


async def test_a_cancelled_flush_ends_its_generation_when_the_send_succeeds(driver: str) -> None:
    data = os.urandom(1 << 20)
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            (context,) = lowlevel.register_tx_contexts(ring, [1])
            async with anyio.create_task_group() as tg:
                tg.start_soon(lambda: context.send(client, data, flush=True))
                await until(lambda: ring.statistics().sends == 1)
                tg.cancel_scope.cancel()
            assert context.statistics().generations_released == 0
            assert await receive(peer, 1 << 20) == data
            assert await numbers(context, 1) == [0]
            assert context.flush().number == 1
            await lowlevel.unregister_tx_contexts(ring)
            close_channels([context])


async def test_nothing_to_send_with_flush_does_not_wait_for_anything(driver: str) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            (context,) = lowlevel.register_tx_contexts(ring, [1])
            with anyio.fail_after(LIMIT / 4):
                await context.send(client, b"x")
                await context.send(client, b"", flush=True)
                await context.send(client, [b"", b""], flush=True)
            assert await receive(peer, 1) == b"x"
            await lowlevel.unregister_tx_contexts(ring)
            close_channels([context])


async def test_empty_generations_are_numbered_and_released_at_once(driver: str) -> None:
    async with zc_anyio.open_ring(driver=driver) as ring:
        (context,) = lowlevel.register_tx_contexts(ring, [1])
        generations = [context.flush() for _ in range(1000)]
        assert [generation.number for generation in generations] == list(range(1000))
        assert all(generation.is_released for generation in generations)
        assert await numbers(context, 1000) == list(range(1000))
        await lowlevel.unregister_tx_contexts(ring)
        close_channels([context])


async def test_only_flush_ends_a_generation_however_much_is_in_it(driver: str) -> None:
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver) as ring:
            (context,) = lowlevel.register_tx_contexts(ring, [1])
            for _ in range(5000):
                await context.send(client, b"small")
            for _ in range(10):
                await context.send(client, bytes(1 << 20))
            assert context.flush().number == 0
            assert await numbers(context, 1) == [0]
            await lowlevel.unregister_tx_contexts(ring)
            close_channels([context])
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == b"small" * 5000 + bytes(10 << 20)


# --- many ---


async def test_a_consumer_that_went_away_changes_nothing(driver: str) -> None:
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver) as ring:
            (context,) = lowlevel.register_tx_contexts(ring, [1])
            context.notifications.close()
            for _ in range(10):
                await context.send(client, bytearray(SIZE), flush=True)
            last = context.flush()
            await last.wait_released()
            await until(lambda: context.statistics().generations_released == 11)
            await lowlevel.unregister_tx_contexts(ring)
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == bytes(SIZE * 10)


async def test_a_thousand_groups_beside_all_registered_contexts(driver: str) -> None:
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver) as ring, AsyncExitStack() as stack:
            contexts = lowlevel.register_tx_contexts(ring, range(1024))
            groups = [
                await stack.enter_async_context(zc_anyio.send_group(tag=tag)) for tag in range(1000)
            ]
            channels = [stack.enter_context(group.notifications) for group in groups]
            for number, group in enumerate(groups):
                # Some are staged and some are not.
                await group.send(client, number.to_bytes(2, "big") * (9000 if number % 50 else 5))
            for group in groups:
                assert group.flush().number == 0
            for tag, channel in enumerate(channels):
                assert await channel.receive() == zc_anyio.Notification(tag, 0)
            await lowlevel.unregister_tx_contexts(ring)
            close_channels(contexts)
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == b"".join(
            number.to_bytes(2, "big") * (9000 if number % 50 else 5) for number in range(1000)
        )


async def test_held_sends_are_released_when_the_ring_ends_before_the_contexts(driver: str) -> None:
    with tcp_pair() as (client, peer), Reader(peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            (context,) = lowlevel.register_tx_contexts(ring, [1])
            await context.send(client, bytearray(1 << 20), flush=True)
        with context.notifications as notifications:
            assert [told.generation async for told in notifications] == [0]
        with pytest.raises(RuntimeError, match="the ring is closed"):
            await context.send(client, b"late")
        with pytest.raises(RuntimeError, match="the ring is closed"):
            await lowlevel.unregister_tx_contexts(ring)


async def test_a_ring_whose_contexts_stay_registered_is_collected(
    driver: str, rings: list[zc_anyio.Ring]
) -> None:
    async def use() -> weakref.ref[zc_anyio.Ring]:
        async with zc_anyio.open_ring(driver=driver) as ring:
            for context in lowlevel.register_tx_contexts(ring, [1, 2]):
                context.notifications.close()
        return weakref.ref(ring)

    ring = await use()
    rings.clear()  # the watch that nothing is left behind
    gc.collect()
    assert ring() is None
