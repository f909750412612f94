"""Datagrams in trains: each arrives as it was cut, whoever cut it."""

from __future__ import annotations

import errno
import os
import socket
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.features.receivers import Collector
from tests.support.backends import one_backend
from tests.support.netns import Rig
from tests.support.peers import bound, tcp_pair, udp_pair
from tests.support.waiting import LIMIT, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

# The kernel refuses a train of a socket without checksums: socket(7), and linux/udp.h.
WITHOUT_CHECKSUMS: dict[int, tuple[int, int]] = {
    socket.AF_INET: (socket.SOL_SOCKET, 11),
    socket.AF_INET6: (socket.IPPROTO_UDP, 101),
}
UDP_NO_CHECK6_RX = 102
# The most that one train takes.
TRAIN_BYTES, TRAIN_SEGMENTS = 65_507, 64
# What is queued in one go.
RUN_BYTES = 256 << 10

each_family = pytest.mark.parametrize(
    "family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"]
)


def cut(data: Any, size: int) -> list[bytes]:
    return [bytes(data[start : start + size]) for start in range(0, len(data), size)]


def receive(sock: socket.socket, count: int) -> list[bytes]:
    return [sock.recv(1 << 16) for _ in range(count)]


def trains(datagrams: Iterable[bytes]) -> int:
    """How many requests datagrams need that come in one call."""
    count, size, taken, total = 0, -1, 0, 0
    for datagram in datagrams:
        fits = taken < min(TRAIN_SEGMENTS, TRAIN_BYTES // max(size, 1))
        if not (fits and 0 < len(datagram) <= size and total == taken * size and taken):
            count, size, taken, total = count + 1, len(datagram), 0, 0
        taken, total = taken + 1, total + len(datagram)
    return count


def numbered(sizes: Iterable[int]) -> list[bytes]:
    return [os.urandom(size) for size in sizes]


# --- what arrives ---


@each_family
@pytest.mark.parametrize("zero_copy", ["auto", "always", "never"])
@pytest.mark.parametrize("size", [7, 700, 1472, 20_000, 32_753, 32_754, 65_507])
async def test_each_arrives_as_it_was_cut(
    driver: str, family: int, zero_copy: Any, size: int
) -> None:
    data = bytearray(os.urandom(min(size * 150 + 3, 400_000)))
    expected = cut(data, size)
    with udp_pair(family) as (sender, receiver):
        async with zc_anyio.open_ring(driver=driver, zero_copy=zero_copy) as ring:
            async with zc_anyio.send_group() as group:
                await group.send_segments(sender, data, size)
            counters = ring.statistics()
            data[:] = bytes(len(data))
        assert receive(receiver, len(expected)) == expected
    assert ring.capabilities.sends_trains
    assert (counters.sends, counters.failed) == (len(expected), 0)
    assert counters.zero_copied + counters.copied == len(expected)
    assert counters.bytes_sent == len(data)
    # What is zero-copied may be tried again by copying.
    run = max(1, RUN_BYTES // size)
    runs = (expected[start : start + run] for start in range(0, len(expected), run))
    again = counters.requests - sum(map(trains, runs))
    assert again == 0 or (again > 0 and zero_copy != "never" and driver != "copy")


async def test_several_buffers_are_cut_as_one(driver: str) -> None:
    parts = [os.urandom(10), bytearray(os.urandom(5000)), b"", memoryview(os.urandom(99))[3:]]
    with udp_pair() as (sender, receiver):
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            await group.send_segments(sender, parts, 64)
        expected = cut(b"".join(parts), 64)
        assert receive(receiver, len(expected)) == expected


async def test_buffers_of_a_pool_go_back(driver: str) -> None:
    with udp_pair() as (sender, receiver):
        async with (
            zc_anyio.open_ring(driver=driver, zero_copy="always"),
            zc_anyio.open_buffer_pool(buffer_size=10_000, count=2) as pool,
        ):
            for send in ("segments", "many"):
                view = await pool.acquire()
                view[:] = data = os.urandom(10_000)
                async with zc_anyio.send_group() as group:
                    if send == "segments":
                        await group.send_segments(sender, [view], 1000)
                    else:
                        await group.send_many(sender, cut_views(view, 1000))
                assert receive(receiver, 10) == cut(data, 1000)
                await until(lambda: pool.free == 2)


def cut_views(view: memoryview, size: int) -> list[memoryview]:
    return [view[start : start + size] for start in range(0, len(view), size)]


@each_family
async def test_trains_go_to_addresses(driver: str, family: int) -> None:
    with bound(family) as first, bound(family) as second, bound(family) as sender:
        sender.setblocking(False)
        data = os.urandom(5000)
        items = [(b"%d" % n * 50, (first, second)[n // 5 % 2].getsockname()) for n in range(40)]
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            await group.send_segments(sender, data, 900, second.getsockname())
            await group.send_many(sender, items)
            await group.flush().wait_released()
            counters = ring.statistics()
        assert receive(second, 6) == cut(data, 900)
        for receiver in (first, second):
            expected = [item for item, address in items if address == receiver.getsockname()]
            assert receive(receiver, len(expected)) == expected
    assert (counters.sends, counters.failed) == (46, 0)
    assert counters.requests == 1 + 8


@pytest.mark.parametrize("zero_copy", ["auto", "always"])
async def test_many_of_all_sizes(driver: str, zero_copy: Any) -> None:
    sizes = [100] * 150 + [50, 50, 0, 0, 7, 8, 8, 3, 40_000, 40_000, 1472, 1472, 1472, 1471, 1]
    datagrams = numbered(sizes)
    with udp_pair() as (sender, receiver):
        async with zc_anyio.open_ring(driver=driver, zero_copy=zero_copy) as ring:
            async with zc_anyio.send_group() as group:
                await group.send_many(sender, (bytearray(item) for item in datagrams))
            counters = ring.statistics()
        assert receive(receiver, len(datagrams)) == datagrams
    assert (counters.sends, counters.failed) == (len(datagrams), 0)
    if zero_copy == "auto":
        assert counters.requests == trains(datagrams)


async def test_what_a_small_window_takes_piece_by_piece(driver: str) -> None:
    data = os.urandom(300_000)
    datagrams = numbered([700] * 500)
    with udp_pair() as (sender, receiver), Collector(receiver) as collector:
        async with zc_anyio.open_ring(driver=driver, zero_copy="always"):
            async with zc_anyio.send_group(window=10_000) as group:
                await group.send_segments(sender, data, 1000)
                await group.send_many(sender, datagrams)
        await until(lambda: len(collector.received) == 800)
        sender.send(b"")
    assert collector.received == cut(data, 1000) + datagrams


# --- what cannot leave in a train ---


@each_family
@pytest.mark.parametrize("zero_copy", ["auto", "always"])
async def test_a_train_that_is_refused_is_cut(driver: str, family: int, zero_copy: Any) -> None:
    first, second, third = (os.urandom(30_000) for _ in range(3))
    with udp_pair(family) as (sender, receiver):
        sender.setsockopt(*WITHOUT_CHECKSUMS[family], 1)
        if family == socket.AF_INET6:
            receiver.setsockopt(socket.IPPROTO_UDP, UDP_NO_CHECK6_RX, 1)
        async with zc_anyio.open_ring(driver=driver, zero_copy=zero_copy) as ring:
            async with zc_anyio.send_group() as group:
                # Both are on their way before the first is refused.
                await group.send_segments(sender, first, 1000)
                await group.send_segments(sender, [second[:4500], second[4500:]], 1000)
            refused = ring.statistics()
            async with zc_anyio.send_group() as group:
                await group.send_segments(sender, third, 1000)
            counters = ring.statistics()
        assert receive(receiver, 90) == cut(first + second + third, 1000)
    assert (refused.sends, refused.failed, refused.zero_copied + refused.copied) == (60, 0, 60)
    assert refused.requests >= 62
    # It is known by now, and cut at once.
    assert counters.requests - refused.requests == 30


async def test_the_sockets_of_others_keep_datagrams_apart(driver: str) -> None:
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, receiver:
        sender.setblocking(False)
        receiver.settimeout(LIMIT)
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            await group.send_segments(sender, b"one two thr", 4)
            await group.send_many(sender, [b"four", b"five"])
            await group.flush().wait_released()
            assert ring.statistics().requests == 5
        assert receive(receiver, 5) == [b"one ", b"two ", b"thr", b"four", b"five"]


@one_backend
@pytest.mark.parametrize("zero_copy", ["auto", "always"])
@pytest.mark.parametrize("size", [1472, 1473, 4000], ids=["whole", "just-in-fragments", "larger"])
async def test_datagrams_that_the_path_takes_in_fragments_on_asyncio(
    namespaces: Rig, driver: str, zero_copy: Any, size: int
) -> None:
    with namespaces.datagrams() as (sender, receiver):
        data = bytearray(os.urandom(size * 20 + 5))
        expected = cut(data, size)
        with Collector(receiver) as collector:
            async with zc_anyio.open_ring(driver=driver, zero_copy=zero_copy) as ring:
                async with zc_anyio.send_group() as group:
                    await group.send_segments(sender, data, size)
                data[:] = bytes(len(data))
                await until(lambda: len(collector.received) == len(expected))
                counters = ring.statistics()
                sender.send(b"")
        assert Counter(collector.received) == Counter(expected)
    assert (counters.sends, counters.failed) == (21, 0)
    if size > 1472:
        assert counters.requests > 21
    elif zero_copy == "auto":
        assert counters.requests == 1


# --- refused ---


@pytest.mark.parametrize(
    ("data", "size", "error"),
    [
        pytest.param(b"x", 0, ValueError, id="zero"),
        pytest.param(b"x", -1, ValueError, id="negative"),
        pytest.param(b"x", 1.5, TypeError, id="float"),
        pytest.param(b"x", "1", TypeError, id="str"),
        pytest.param(b"x", None, TypeError, id="none"),
        pytest.param(b"", 1, ValueError, id="empty"),
        pytest.param([], 1, ValueError, id="no-buffers"),
        pytest.param([b"", b""], 1, ValueError, id="empty-buffers"),
        pytest.param("text", 1, TypeError, id="text"),
        pytest.param(memoryview(b"abcd")[::2], 1, BufferError, id="not-contiguous"),
        pytest.param(b"x", 1 << 16, errno.EMSGSIZE, id="64KiB"),
        pytest.param(b"x", 1 << 70, errno.EMSGSIZE, id="enormous"),
        pytest.param([b"x"] * 1025, 1, errno.EMSGSIZE, id="1025-buffers"),
    ],
)
async def test_wrong_segments_queue_nothing(driver: str, data: Any, size: Any, error: Any) -> None:
    with udp_pair() as (sender, receiver):
        host, port = receiver.getsockname()
        async with (
            zc_anyio.open_ring(driver=driver) as ring,
            await zc_anyio.create_connected_udp_socket(host, port) as ours,
        ):
            kind = OSError if isinstance(error, int) else error
            async with zc_anyio.send_group() as group:
                with pytest.raises(kind) as caught:
                    await group.send_segments(sender, data, size)
                if isinstance(caught.value, OSError):
                    assert caught.value.errno == error
            broken = anyio.BrokenResourceError if isinstance(error, int) else error
            with pytest.raises(broken) as caught:
                await ours.send_segments(data, size)
            if isinstance(error, int):
                assert isinstance(caught.value.__cause__, OSError)
                assert caught.value.__cause__.errno == error
            assert ring.statistics().sends == 0


async def test_a_datagram_that_is_too_large_leaves_those_before_it(driver: str) -> None:
    with udp_pair() as (sender, receiver):
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            with pytest.raises(OSError) as caught:
                await group.send_many(sender, [b"a", b"b", bytes(1 << 16), b"c"])
            assert caught.value.errno == errno.EMSGSIZE
            await group.flush().wait_released()
            assert ring.statistics().sends == 2
        assert receive(receiver, 2) == [b"a", b"b"]


async def test_segments_that_are_too_large_by_a_byte_fail_one_by_one(driver: str) -> None:
    with udp_pair() as (sender, _):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group(on_error="collect") as group:
                await group.send_segments(sender, bytes(65_508 * 2), 65_508)
            assert [failure.error.errno for failure in group.failures] == [errno.EMSGSIZE]
            assert ring.statistics().failed == 2


async def test_only_udp_sends_datagrams(driver: str) -> None:
    with tcp_pair() as (client, _), bound() as unconnected:
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            with pytest.raises(TypeError, match="UDP"):
                await group.send_segments(client, b"x", 1)
            with pytest.raises(TypeError, match="UDP"):
                await group.send_many(client, [b"x"])
            unconnected.setblocking(False)
            for call in (
                group.send_segments(unconnected, b"x", 1),
                group.send_many(unconnected, [b"x"]),
            ):
                with pytest.raises(OSError) as caught:
                    await call
                assert caught.value.errno == errno.EDESTADDRREQ
            with pytest.raises(ValueError, match="address"):
                await group.send_segments(unconnected, b"x", 1, ("nobody", 1))
            assert group.statistics().sends == 0
        with pytest.raises(anyio.ClosedResourceError):
            await group.send_segments(unconnected, b"x", 1)
        with pytest.raises(anyio.ClosedResourceError):
            await group.send_many(unconnected, [b"x"])


@pytest.mark.parametrize("how", ["segments", "many"])
async def test_cancelling_takes_back_what_has_not_left(driver: str, how: str) -> None:
    data = bytearray(os.urandom(1000)) * 2000
    with udp_pair() as (sender, receiver), Collector(receiver) as collector:
        async with zc_anyio.open_ring(driver=driver, zero_copy="always"):
            with anyio.CancelScope() as scope:
                async with zc_anyio.send_group() as group:
                    scope.cancel()
                    if how == "segments":
                        await group.send_segments(sender, data, 1000)
                    else:
                        await group.send_many(sender, cut(data, 1000))
                    await anyio.sleep_forever()
            part = bytes(data[:1000])
            data.clear()
            async with zc_anyio.send_group() as group:
                await group.send(sender, b"still here")
        await until(lambda: b"still here" in collector.received)
        sender.send(b"")
    assert set(collector.received) <= {part, b"still here"}


def test_the_count_of_trains() -> None:
    assert trains([b"a" * 100] * 64) == 1
    assert trains([b"a" * 100] * 65) == 2
    assert trains([b"aa", b"aa", b"a", b"a"]) == 2
    assert trains([b"a", b"aa"]) == trains([b"", b"", b"a"][1:]) == 2
    assert all(one >= two for one, two in pairwise([trains([bytes(n)] * 50) for n in (9999, 99)]))
