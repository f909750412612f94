"""Small sends that are staged, and what each policy zero-copies."""

from __future__ import annotations

import errno
import os
import random
import socket

import anyio
import pytest
from anyio.abc import SocketStream

import zc_anyio
from tests.support.backends import TRIO, one_backend
from tests.support.netns import Rig
from tests.support.peers import Reader, parked_pair, receive_exactly, tcp_pair, wrap
from tests.support.waiting import LIMIT, until, until_held, until_idle, until_parked
from zc_anyio.testing import reset

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

THRESHOLD = 16 << 10


def zero_copied_requests(ring: zc_anyio.Ring) -> int:
    """Return how many requests were zero-copy ones: these have two completions."""
    counters = ring.statistics()
    return counters.completions - counters.requests


# --- what is staged ---


async def test_small_sends_are_staged_and_large_ones_are_not(driver: str) -> None:
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                # The first message of a group leaves alone, if it is small and cannot change.
                for size in (1, 1, 1000, THRESHOLD - 1, THRESHOLD, 100_000):
                    await group.send(client, bytes(size))
                await group.flush().wait_released()
                told = group.statistics()
                assert (told.sends, told.staged, told.zero_copied + told.copied) == (6, 3, 3)
            counters = ring.statistics()
            assert (counters.staged, counters.zero_copied + counters.copied) == (3, 3)
            assert counters.bytes_sent == 1001 + 2 * THRESHOLD + 100_000
        client.shutdown(socket.SHUT_WR)
        assert len(await reader.all()) == 1001 + 2 * THRESHOLD + 100_000


@pytest.mark.parametrize("threshold", [0, 1, 100, 1 << 20])
async def test_the_threshold_is_the_caller_s(driver: str, threshold: int) -> None:
    sizes = [1, 99, 100, 101, 65_536, 65_537, 200_000]
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver, threshold=threshold) as ring:
            async with zc_anyio.send_group() as group:
                for size in sizes:
                    await group.send(client, bytes([size % 256]) * size)
        # The first leaves alone.  A send larger than a slab is not staged, whatever the threshold.
        counters = ring.statistics()
        assert counters.staged == sum(size < threshold for size in sizes[1:] if size <= 65_537)
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == b"".join(bytes([size % 256]) * size for size in sizes)


async def test_a_staged_buffer_is_free_at_once(driver: str) -> None:
    expected = b""
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, bytes(1 << 20))
                await until_parked(ring)
                data = bytearray()
                for number in range(200):
                    data.append(number)
                    expected += data
                    await group.send(client, data)
                    data.reverse()  # overwritten while it is queued
                    expected += data
                    await group.send(client, memoryview(data))
                data[:] = b"!" * 200
                with Reader(peer) as reader:
                    await group.flush().wait_released()
                    client.shutdown(socket.SHUT_WR)
                    received = await reader.all()
            assert ring.statistics().staged == 400
    assert received == bytes(1 << 20) + expected


async def test_a_send_that_cannot_be_staged_holds_its_buffer(holding_driver: str) -> None:
    data = bytearray(b"d" * (512 << 10))
    with tcp_pair(stalled=True) as (client, peer):
        async with zc_anyio.open_ring(driver=holding_driver, threshold=1 << 20, staging=0) as ring:
            async with zc_anyio.send_group(zero_copy="always") as group:
                await group.send(client, data)
                await until_held(ring, 1)
                with pytest.raises(BufferError):
                    data.append(1)
                assert receive_exactly(peer, len(data)) == data
            data.append(1)
            assert ring.statistics().staged == 0


async def test_without_staging_memory_small_sends_are_not_staged(driver: str) -> None:
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver, staging=0) as ring:
            async with zc_anyio.send_group() as group:
                for number in range(1000):
                    await group.send(client, b"%d," % number)
            counters = ring.statistics()
            assert (counters.sends, counters.staged) == (1000, 0)
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == b"".join(b"%d," % number for number in range(1000))


# --- order and limits ---


async def test_order_across_groups_sizes_and_short_sends(driver: str) -> None:
    choose = random.Random(7)
    expected = bytearray()
    with parked_pair() as (client, peer):
        with Reader(peer, chunk=5000) as reader:
            async with zc_anyio.open_ring(driver=driver) as ring:
                async with (
                    zc_anyio.send_group() as first,
                    zc_anyio.send_group() as second,
                    zc_anyio.send_group(zero_copy="always") as third,
                ):
                    for _ in range(600):
                        data = os.urandom(choose.choice((1, 50, 3000, THRESHOLD, 40_000)))
                        expected += data
                        group = choose.choice((first, first, second, third))
                        await group.send(client, data)
                        if choose.random() < 0.1:
                            group.flush()
                assert ring.statistics().staged > 16  # its share of the memory, at least
            client.shutdown(socket.SHUT_WR)
            assert await reader.all() == expected


async def test_a_stalled_peer_does_not_starve_another(driver: str) -> None:
    # Memory for two sockets that take their whole share.
    share, size = 1 << 20, 1000
    with parked_pair() as (stalled, peer), tcp_pair() as (client, other), Reader(other) as reader:
        async with zc_anyio.open_ring(driver=driver, staging=2 * share) as ring:
            async with zc_anyio.send_group(window=64 << 20) as group:
                for _ in range(4000):
                    await group.send(stalled, bytes(size))
                before = ring.statistics().staged
                async with zc_anyio.send_group() as another:
                    for _ in range(901):  # the first leaves alone
                        await another.send(client, b"o" * size)
                    with anyio.move_on_after(LIMIT) as scope:
                        await another.flush().wait_released()
                    told = another.statistics()
                with Reader(peer) as last:
                    await group.flush().wait_released()
                    stalled.shutdown(socket.SHUT_WR)
                    first = await last.all()
            staged = ring.statistics().staged - told.staged
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == b"o" * 901 * size
    assert first == bytes(4000 * size)
    assert not scope.cancelled_caught
    assert told.staged == 900
    # What was staged while the peer was stalled is about its share; the rest went the other way.
    assert before < 600
    assert 900 <= staged <= 1100 + before


# --- leaving ---


async def test_leaving_waits_for_no_acknowledgement_of_what_was_staged(
    holding_driver: str,
) -> None:
    with tcp_pair(stalled=True) as (client, peer):
        async with zc_anyio.open_ring(driver=holding_driver) as ring:
            with anyio.fail_after(LIMIT):
                async with zc_anyio.send_group() as group:
                    await group.send(client, bytearray(b"lone"))
            assert ring.statistics().held == 0
            with anyio.fail_after(LIMIT):
                async with zc_anyio.send_group() as group:
                    # Without a pause, or the first request would fit the peer's own buffer.
                    for _ in range(400):
                        group.send_nowait(client, bytearray(1000))
            counters = ring.statistics()
            assert (counters.staged, counters.generations_open) == (401, 0)
            # Enough to be worth zero copy.
            assert counters.held > 0
            await anyio.to_thread.run_sync(receive_exactly, peer, 400_004)


async def test_the_end_of_the_ring_resets_what_was_staged_and_is_held(
    holding_driver: str,
) -> None:
    with tcp_pair(stalled=True) as (client, peer):
        async with zc_anyio.open_ring(driver=holding_driver, drain_timeout=0.05) as ring:
            async with zc_anyio.send_group() as group:
                for _ in range(400):
                    group.send_nowait(client, bytes(1000))
            assert ring.statistics().held > 0
        assert ring.statistics().held == 0
        with pytest.raises(ConnectionResetError):
            receive_exactly(peer, 400_000)


@pytest.mark.parametrize("anyio_backend", TRIO, indirect=True)
async def test_a_stream_of_trio_closed_on_leaving_sends_all(driver: str) -> None:
    import trio

    with parked_pair() as (client, peer), Reader(peer, chunk=3000) as reader:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(client))
        async with zc_anyio.open_ring(driver=driver):
            async with zc_anyio.send_group() as group:
                for _ in range(2000):
                    await group.send(stream, b"s" * 500)
            await stream.aclose()
        assert await reader.all() == b"s" * 1_000_000


async def test_a_stream_of_anyio_closed_on_leaving_sends_all(driver: str) -> None:
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        stream: SocketStream = await wrap(client)
        async with zc_anyio.open_ring(driver=driver):
            async with zc_anyio.send_group() as group:
                for _ in range(500):
                    await group.send(stream, b"s" * 500)
            await stream.aclose()
        assert await reader.all() == b"s" * 250_000


async def test_a_socket_closed_with_bytes_staged_sends_all(driver: str) -> None:
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, bytes(1 << 20))
                for _ in range(500):
                    await group.send(client, b"s" * 500)
                await until_parked(ring, 501 if driver == "io_uring" else 0)
                client.close()
                with Reader(peer) as reader:
                    assert await reader.all() == bytes(1 << 20) + b"s" * 250_000


async def test_a_staged_send_that_fails_is_reported(driver: str) -> None:
    with tcp_pair() as (client, _):
        client.shutdown(socket.SHUT_WR)
        async with zc_anyio.open_ring(driver=driver) as ring:
            with pytest.raises(ExceptionGroup) as caught:
                async with zc_anyio.send_group() as group:
                    # Nothing may leave between them: the second would be refused.
                    group.send_nowait(client, bytearray(b"one"))
                    group.send_nowait(client, b"two")
            (error,) = caught.value.exceptions
            assert isinstance(error, anyio.BrokenResourceError)
            assert isinstance(error.__cause__, OSError)
            assert error.__cause__.errno == errno.EPIPE
            counters = ring.statistics()
            assert (counters.sends, counters.failed, counters.staged) == (2, 2, 0)
            async with zc_anyio.send_group() as group:
                with pytest.raises(anyio.BrokenResourceError):
                    await group.send(client, b"three")


async def test_staged_sends_to_a_peer_that_resets_fail_once(driver: str) -> None:
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group(on_error="collect") as group:
                await group.send(client, bytes(1 << 20))
                for _ in range(100):
                    await group.send(client, b"s" * 500)
                await until(lambda: ring.statistics().submits > 0)
                reset(peer)
            (failure,) = group.failures
            assert failure.error.errno in (errno.ECONNRESET, errno.EPIPE)
            assert ring.statistics().failed == 101


@one_backend
async def test_staging_memory_is_not_used_again_too_early_on_asyncio(
    namespaces: Rig, driver: str
) -> None:
    # Memory of four slabs, each used many times, over a device where packets wait.
    expected = bytearray()
    choose = random.Random(3)
    with namespaces.connection() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver, staging=256 << 10) as ring:
            for _ in range(10):
                async with zc_anyio.send_group() as group:
                    for _ in range(1000):
                        data = os.urandom(choose.randrange(1, 1000))
                        expected += data
                        await group.send(client, data)
                await until_idle(ring)
            assert ring.statistics().staged > 2000
            assert (zero_copied_requests(ring) > 0) == (driver != "copy")
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == expected
