"""The first message of a group, if it is small, leaves by itself and needs no context."""

from __future__ import annotations

import errno
import socket
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.support.peers import (
    Reader,
    parked_pair,
    receive_exactly,
    receive_to_end,
    tcp_pair,
    udp_pair,
)
from tests.support.waiting import until, until_idle

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

THRESHOLD = 16 << 10


async def test_one_message_needs_no_turn_and_no_context(driver: Any) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            for number in range(3):
                async with zc_anyio.send_group() as group:
                    await group.send(client, b"message %d" % number)
                    # It has left: nothing has to be waited for.
                    assert receive_exactly(peer, 9) == b"message %d" % number
                    assert ring._native.statistics().contexts == 0
            counters = ring.statistics()
            assert (counters.sends, counters.copied, counters.bytes_sent) == (3, 3, 27)
            assert (counters.submits, counters.requests, counters.completions) == (0, 0, 0)
            assert (counters.staged, counters.generations_released) == (0, 0)


async def test_later_messages_are_in_order_and_counted(driver: Any) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, b"one ")
                await group.send(client, b"two ")
                await group.send(client, bytearray(b"three"))
                assert await anyio.to_thread.run_sync(receive_exactly, peer, 13) == b"one two three"
                told = group.statistics()
            assert (told.sends, told.bytes_sent, told.copied, told.staged) == (3, 13, 1, 2)
            assert (ring.statistics().copied, ring.statistics().staged) == (1, 2)


async def test_the_parts_of_a_group_know_of_it(driver: Any) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group(tag=7) as group:
            await group.send(client, b"alone")
            assert (group.statistics().sends, group.statistics().copied) == (1, 1)
            with group.notifications as notifications:
                generation = group.flush()
                assert generation.number == 0
                await generation.wait_released()
                assert (await notifications.receive()).tag == 7
        assert receive_exactly(peer, 5) == b"alone"


async def test_notifications_of_a_group_that_was_left_have_ended(driver: Any) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver):
            async with zc_anyio.send_group() as group:
                await group.send(client, b"alone")
            with group.notifications as notifications, pytest.raises(anyio.EndOfStream):
                await notifications.receive()
            with pytest.raises(anyio.ClosedResourceError):
                await group.send(client, b"late")
            with pytest.raises(anyio.ClosedResourceError):
                group.statistics()
        client.close()
        assert receive_to_end(peer) == b"alone"


async def test_notifications_of_a_group_whose_ring_is_closed_have_ended(driver: Any) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver):
            async with zc_anyio.send_group() as group:
                await group.send(client, b"alone")
        with group.notifications as notifications, pytest.raises(anyio.EndOfStream):
            await notifications.receive()
        assert group.notifications is notifications
        assert receive_exactly(peer, 5) == b"alone"


@pytest.mark.parametrize("sends", [0, 1, 2])
async def test_a_ring_that_was_closed_within_a_group_is_an_error(driver: Any, sends: int) -> None:
    with tcp_pair() as (client, peer):
        scope = zc_anyio.open_ring(driver=driver)
        ring = await scope.__aenter__()
        with pytest.raises(RuntimeError, match="closed while a send group was open"):
            async with zc_anyio.send_group(ring=ring) as group:
                for _ in range(sends):
                    await group.send(client, b"sent")
                await scope.__aexit__(None, None, None)
        assert receive_exactly(peer, 4 * sends) == b"sent" * sends


@pytest.mark.parametrize("size", [0, THRESHOLD])
async def test_empty_and_large_messages_are_queued(driver: Any, size: int) -> None:
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, bytes(size))
                assert ring._native.statistics().contexts == 1
            await until_idle(ring)
            assert ring.statistics().requests == (size > 0)
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == bytes(size)


async def test_with_always_nothing_is_sent_by_copying(driver: Any) -> None:
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver, zero_copy="always") as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, b"by the ring")
            async with zc_anyio.send_group(zero_copy="never") as group:
                await group.send(client, b", by itself")
            await until_idle(ring)
            assert ring.statistics().requests == 1
            assert (ring.statistics().staged, ring.statistics().copied) == (1, 1)
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == b"by the ring, by itself"


async def test_it_waits_behind_what_others_have_queued(driver: Any) -> None:
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as first:
            await first.send(client, b"1" * (1 << 20))
            async with zc_anyio.send_group() as second:
                await second.send(client, b"2")
                with Reader(peer) as reader:
                    await second.flush().wait_released()
                    client.shutdown(socket.SHUT_WR)
                    assert await reader.all() == b"1" * (1 << 20) + b"2"


# A message that the threshold calls small, though the kernel does not take all of it at once.
LONG = bytes(range(251)) * 4000
LONG_THRESHOLD = 1 << 20


async def test_the_rest_of_a_send_that_is_cut_short_follows(driver: Any) -> None:
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver, threshold=LONG_THRESHOLD) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, LONG)
                assert 0 < group.statistics().bytes_sent < len(LONG)
                assert (group.statistics().sends, ring.statistics().sends) == (1, 1)
                await group.send(client, b"and more")
                with Reader(peer, chunk=5000) as reader:
                    await group.flush().wait_released()
                    assert group.statistics().bytes_sent == len(LONG) + 8
                    client.shutdown(socket.SHUT_WR)
                    assert await reader.all() == LONG + b"and more"


async def test_a_send_that_is_cut_short_and_cancelled_breaks_its_stream(driver: Any) -> None:
    with parked_pair() as (client, _):
        # So little more that the rest waits for the event loop's next turn.
        message = LONG[: client.send(LONG) + 250_000]
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver, threshold=LONG_THRESHOLD):
            with anyio.CancelScope() as scope:
                async with zc_anyio.send_group() as group:
                    await group.send(client, message)
                    assert 0 < group.statistics().bytes_sent < len(message)
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()
            assert scope.cancelled_caught
            with pytest.raises(anyio.BrokenResourceError):
                async with zc_anyio.send_group() as group:
                    await group.send(client, b"behind a hole")
            with Reader(peer) as reader:
                received = await reader.all()
    assert 0 < len(received) < len(message)
    assert received == message[: len(received)]


async def test_a_broken_connection_is_reported_when_the_group_is_left(driver: Any) -> None:
    with tcp_pair() as (client, _):
        client.shutdown(socket.SHUT_WR)
        async with zc_anyio.open_ring(driver=driver) as ring:
            with pytest.raises(ExceptionGroup) as caught:
                async with zc_anyio.send_group() as group:
                    await group.send(client, b"nobody")
            (error,) = caught.value.exceptions
            assert isinstance(error, anyio.BrokenResourceError)
            assert isinstance(error.__cause__, OSError)
            assert error.__cause__.errno == errno.EPIPE
            assert (ring.statistics().sends, ring.statistics().failed) == (1, 1)
            with pytest.raises(anyio.BrokenResourceError):
                async with zc_anyio.send_group() as group:
                    await group.send(client, b"nobody")


async def test_cancelled_after_the_send_there_is_nothing_to_take_back(driver: Any) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            with anyio.CancelScope() as scope:
                async with zc_anyio.send_group() as group:
                    await group.send(client, b"it has left")
                    scope.cancel()
                    await anyio.lowlevel.checkpoint()
            assert scope.cancelled_caught
            assert ring.statistics().failed == 0
        assert receive_exactly(peer, 11) == b"it has left"


async def test_leaving_is_a_checkpoint(driver: Any) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver):
            with anyio.CancelScope() as scope:
                async with zc_anyio.send_group() as group:
                    await group.send(client, b"message")
                    scope.cancel()
            assert scope.cancelled_caught
        assert receive_exactly(peer, 7) == b"message"


async def test_the_socket_is_given_up_after_it(driver: Any) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            for _ in range(5):
                async with zc_anyio.send_group() as group:
                    await group.send(client, b"message")
            assert ring._native.statistics().sockets == 1
            await until(lambda: ring._native.statistics().sockets == 0)
            async with zc_anyio.send_group() as group:
                await group.send(client, b"again")
            client.close()
            received = await anyio.to_thread.run_sync(receive_to_end, peer)
        assert received == b"message" * 5 + b"again"


async def test_a_datagram_is_queued(driver: Any) -> None:
    with udp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, b"datagram")
            assert ring.statistics().requests == 1
        assert peer.recv(100) == b"datagram"
