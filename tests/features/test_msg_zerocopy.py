"""What only the driver ``msg_zerocopy`` has: the error queue, its ids, and room for notifications.

That its ids wrap at 32 bits cannot be tested here: a socket would have to send four billion times
first, and nothing sets the kernel's counter.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time

import anyio
import pytest

import zc_anyio
from tests.features.receivers import Collector
from tests.support.backends import one_backend
from tests.support.needs import missing, why_not
from tests.support.netns import SINK, Rig, rig
from tests.support.peers import LARGE_BUFFER, Reader, receive_exactly, tcp_pair
from tests.support.waiting import until, until_held, until_idle
from zc_anyio.testing import reset

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

SO_ZEROCOPY = 60
MSG_ZEROCOPY = 0x4000000
SO_EE_ORIGIN_ZEROCOPY = 5
# struct sock_extended_err: errno, origin, type, code, padding, info (lowest id), data (highest).
EXTENDED_ERROR = struct.Struct("=IBBBxII")
DRIVER = "msg_zerocopy"


@pytest.fixture(autouse=True)
def runs_here() -> None:
    if (reason := why_not(DRIVER)) is not None:
        missing(f"the driver {DRIVER} cannot run: {reason}")


def errors(sock: socket.socket) -> list[tuple[int, int]]:
    """Take the ranges of ids that wait in a socket's error queue; there is no peeking into it."""
    ranges: list[tuple[int, int]] = []
    while True:
        try:
            _, ancillary, _, _ = sock.recvmsg(0, 512, socket.MSG_ERRQUEUE)
        except BlockingIOError:
            return ranges
        for _, _, data in ancillary:
            _, origin, _, _, low, high = EXTENDED_ERROR.unpack_from(data)
            assert origin == SO_EE_ORIGIN_ZEROCOPY
            ranges.append((low, high))


def polled(sock: socket.socket) -> int:
    """Return the events that polling the socket for no event still reports."""
    poll = select.poll()
    poll.register(sock, 0)
    events = poll.poll(0)
    return events[0][1] if events else 0


# --- notifications ---


async def test_sends_that_nobody_receives_are_zero_copied(namespaces: Rig) -> None:
    with namespaces.to_sink() as sink:
        async with zc_anyio.open_ring(driver=DRIVER) as ring:
            async with zc_anyio.send_group() as group:
                for _ in range(200):
                    await group.send(sink, bytearray(20_000))
            counters = ring.statistics()
            assert (counters.zero_copied, counters.copied) == (200, 0)
            assert counters.completions == 2 * counters.requests - retries(counters)
        assert polled(sink) == 0


def retries(counters: zc_anyio.RingStatistics) -> int:
    """Return how many requests found no room, and were made again."""
    return counters.requests - counters.sends


async def test_ranges_of_several_sends() -> None:
    count, size = 8, 200_000
    buffers = [bytearray(os.urandom(size)) for _ in range(count)]
    expected = b"".join(buffers)
    # Sends that are acknowledged before anybody looks are one range, as sending by hand shows.
    with tcp_pair(stalled=True) as (client, peer):
        client.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
        for buffer in buffers:
            assert client.send(buffer, MSG_ZEROCOPY) == size
        receive_exactly(peer, count * size)
        assert errors(client) == [(0, count - 1)]
    with tcp_pair(stalled=True) as (client, peer):
        async with zc_anyio.open_ring(driver=DRIVER, zero_copy="always", threshold=0) as ring:
            async with zc_anyio.send_group() as group:
                generations = []
                for buffer in buffers:
                    group.send_nowait(client, buffer)
                    generations.append(group.flush())
                held = ring.statistics().held
                received = receive_exactly(peer, count * size)
                for generation, buffer in zip(generations, buffers, strict=True):
                    await generation.wait_released()
                    buffer.append(0)
            counters = ring.statistics()
    assert held == count
    assert (counters.sends, counters.failed) == (count, 0)
    assert counters.completions == 2 * counters.requests
    assert received == expected


@one_backend
async def test_ids_out_of_order_on_asyncio() -> None:
    # Datagrams to the receiver wait in the device; one to the sink is done with at once.  The
    # socket is connected anew in between: without a peer, or in fragments, they would be copied.
    with (
        rig("8mbit") as namespaces,
        namespaces.datagrams() as (sender, receiver),
    ):
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGE_BUFFER)
        slow = [bytearray(os.urandom(1_400)) for _ in range(200)]
        sent = {bytes(data) for data in slow}
        with Collector(receiver) as collector:
            async with zc_anyio.open_ring(driver=DRIVER, zero_copy="always", threshold=0) as ring:
                async with zc_anyio.send_group() as group:
                    with group.notifications as notifications:
                        for data in slow:
                            await group.send(sender, data)
                        first = group.flush()
                        # One turn does not submit so many.
                        await until(lambda: ring.statistics().queued == 0)
                        sender.connect((SINK, 9))
                        await group.send(sender, bytearray(1_400))
                        second = group.flush()
                        await second.wait_released()
                        overtaken = not first.is_released
                        await first.wait_released()
                        for data in slow:
                            data[:] = bytes(1_400)
                        # In the order of their numbers all the same.
                        told = [(await notifications.receive()).generation for _ in range(2)]
                counters = ring.statistics()
            await until(lambda: len(collector.received) == 200)
            sender.sendto(b"", receiver.getsockname())
    assert overtaken
    assert told == [0, 1]
    assert set(collector.received) == sent
    assert (counters.sends, counters.failed, counters.zero_copied) == (201, 0, 1)


async def test_a_socket_that_comes_again(namespaces: Rig) -> None:
    # Its ids go on where they were when it was idle.
    expected = b""
    zero_copied = 0
    with namespaces.connection() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=DRIVER, zero_copy="always", threshold=0) as ring:
            for _ in range(6):
                buffers = [bytearray(os.urandom(50_000)) for _ in range(4)]
                expected += b"".join(buffers)
                async with zc_anyio.send_group() as group:
                    for buffer in buffers:
                        await group.send(client, buffer)
                for buffer in buffers:
                    buffer[:] = bytes(50_000)
                await until_idle(ring)
                counters = ring.statistics()
                assert counters.completions - counters.requests > zero_copied
                zero_copied = counters.completions - counters.requests
                assert polled(client) == 0
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == expected


async def test_a_socket_that_comes_to_another_ring(namespaces: Rig) -> None:
    with namespaces.connection() as (client, peer), Reader(peer) as reader:
        for _ in range(3):
            async with zc_anyio.open_ring(driver=DRIVER, zero_copy="always", threshold=0) as ring:
                async with zc_anyio.send_group() as group:
                    await group.send(client, b"d" * 50_000)
                counters = ring.statistics()
                # A notification came besides the result: it was asked for zero copy.
                assert (counters.requests, counters.completions) == (1, 2)
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == b"d" * 150_000


@pytest.mark.parametrize("theirs", ["taken", "waiting", "outstanding"])
async def test_a_socket_with_zero_copy_sends_of_the_program_s_own(
    namespaces: Rig, theirs: str
) -> None:
    # Their notifications must not be taken for the ring's.
    own = [os.urandom(300_000) for _ in range(3)]
    buffers = [bytearray(os.urandom(200_000)) for _ in range(5)]
    expected = b"".join(own + buffers)  # type: ignore[operator]
    with namespaces.connection() as (client, peer), Reader(peer) as reader:
        client.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
        for data in own:
            assert client.send(data, MSG_ZEROCOPY) == len(data)
        if theirs != "outstanding":
            await until(lambda: reader.size == 900_000)
            await until(lambda: polled(client) & select.POLLERR)
        if theirs == "taken":
            assert errors(client) == [(0, 2)]
        async with zc_anyio.open_ring(driver=DRIVER, zero_copy="always", threshold=0) as ring:
            for buffer in buffers:
                async with zc_anyio.send_group() as group:
                    await group.send(client, buffer)
                buffer[:] = bytes(len(buffer))
            counters = ring.statistics()
            assert counters.zero_copied + counters.copied == 5
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == expected


async def test_a_reset_releases_every_buffer() -> None:
    data = bytearray(1 << 20)
    with tcp_pair(stalled=True) as (client, peer):
        async with zc_anyio.open_ring(driver=DRIVER, zero_copy="always", threshold=0) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, data)
                await until_held(ring, 1)
                reset(peer)
                await group.flush().wait_released()
                data.append(1)
                counters = ring.statistics()
                assert (counters.sends, counters.completions, counters.requests) == (1, 2, 1)
                with pytest.raises(anyio.BrokenResourceError):
                    # The first may be taken before the socket says that it is broken.
                    for _ in range(3):
                        await group.send(client, b"x")
                        await group.flush().wait_released()


# --- other users of the socket, and of the processor ---


async def test_an_idle_loop_with_a_held_send_does_not_spin() -> None:
    with tcp_pair(stalled=True) as (client, peer):
        async with zc_anyio.open_ring(driver=DRIVER, zero_copy="always", threshold=0) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, bytes(1 << 20))
                await until_held(ring, 1)
                assert await processor_share() < 0.3
                # There is room for more, notifications come, and then nothing happens again.
                receive_exactly(peer, 1 << 20)
                await group.flush().wait_released()
                assert await processor_share() < 0.3
                peer.send(b"for the program")
                assert await processor_share() < 0.3


async def test_a_connection_that_is_shut_down_both_ways_does_not_spin_either() -> None:
    # Every poll of it reports a hang-up, for as long as its last bytes are not acknowledged.
    with tcp_pair(stalled=True) as (client, peer):
        async with zc_anyio.open_ring(driver=DRIVER, zero_copy="always", threshold=0) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, bytes(1 << 20))
                await until_held(ring, 1)
                client.shutdown(socket.SHUT_RDWR)
                hung_up = polled(client) & select.POLLHUP
                share = await processor_share()
                held = ring.statistics().held
                receive_exactly(peer, 1 << 20)
            assert hung_up
            assert held == 1
            assert share < 0.3


async def processor_share() -> float:
    """Return the share of the processor that part of a second of doing nothing takes."""
    start, used = time.monotonic(), time.process_time()
    await anyio.sleep(0.2)
    return (time.process_time() - used) / (time.monotonic() - start)


async def test_a_reader_of_the_program_s_own_is_not_woken_for_ever() -> None:
    woken = 0
    received = b""

    async def read() -> None:
        nonlocal woken, received
        while len(received) < 5:
            await anyio.wait_readable(client)
            woken += 1
            try:
                received += client.recv(100)
            except BlockingIOError:
                await anyio.sleep(0)

    with tcp_pair() as (client, peer), Reader(peer, keep=False) as reader:
        async with zc_anyio.open_ring(driver=DRIVER, zero_copy="always", threshold=0) as ring:
            async with anyio.create_task_group() as tg:
                tg.start_soon(read)
                async with zc_anyio.send_group() as group:
                    for _ in range(20):
                        await group.send(client, bytearray(100_000))
                        await group.flush().wait_released()
                await until_idle(ring)
                notifications = ring.statistics().completions - ring.statistics().requests
                await anyio.sleep(0.05)
                before = woken
                await anyio.sleep(0.2)
                # An unread error queue would have woken it thousands of times.
                assert woken == before
                assert woken <= 4 * notifications
                peer.send(b"hello")
            assert received == b"hello"
        assert reader.error is None
        client.shutdown(socket.SHUT_WR)
