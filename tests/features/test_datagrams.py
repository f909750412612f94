"""Datagrams: whole or not at all, to a peer or an address, and what a refusal leaves behind."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.features.receivers import Collector
from tests.support.backends import TRIO, one_backend
from tests.support.netns import RECEIVER, Rig
from tests.support.peers import bound, tcp_pair, udp_pair
from tests.support.waiting import LIMIT, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

# The largest payload of a datagram over IPv4.
LARGEST = 65_507

each_family = pytest.mark.parametrize(
    "family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"]
)


@contextmanager
def refused() -> Iterator[tuple[socket.socket, Any]]:
    """A UDP socket connected to an address where nobody listens, and that address."""
    with bound() as gone, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        address = gone.getsockname()
        sender.setblocking(False)
        sender.connect(address)
        gone.close()
        yield sender, address


# --- what arrives ---


@each_family
@pytest.mark.parametrize("zero_copy", ["auto", "always"])
async def test_datagrams_arrive_one_by_one(driver: str, family: int, zero_copy: Any) -> None:
    with udp_pair(family) as (sender, receiver):
        async with zc_anyio.open_ring(driver=driver, zero_copy=zero_copy) as ring:
            async with zc_anyio.send_group() as group:
                for size in (1, 0, 100, 1500, 20_000, LARGEST, 0, 7):
                    data = bytearray(os.urandom(size))
                    await group.send(sender, data)
                    await group.flush().wait_released()
                    assert receiver.recv(1 << 16) == data
                    data.append(1)
            counters = ring.statistics()
            assert (counters.sends, counters.requests, counters.failed) == (8, 8, 0)
            assert counters.staged == 0


@each_family
async def test_several_buffers_are_one_datagram(driver: str, family: int) -> None:
    parts = [b"head", bytearray(b"body") * 1000, memoryview(b"a tail")[2:], b""]
    with udp_pair(family) as (sender, receiver):
        async with zc_anyio.open_ring(driver=driver, zero_copy="always", threshold=0):
            async with zc_anyio.send_group() as group:
                await group.send(sender, parts)
                await group.send(sender, [b"", b""])
                await group.send_to(sender, parts[:2], receiver.getsockname())
        assert receiver.recv(1 << 16) == b"head" + b"body" * 1000 + b"tail"
        assert receiver.recv(1 << 16) == b""
        assert receiver.recv(1 << 16) == b"head" + b"body" * 1000


@each_family
async def test_sending_to_addresses(driver: str, family: int) -> None:
    with bound(family) as first, bound(family) as second, bound(family) as sender:
        sender.setblocking(False)
        async with zc_anyio.open_ring(driver=driver, zero_copy="always", threshold=0):
            async with zc_anyio.send_group() as group:
                for number in range(50):
                    receiver = (first, second)[number % 2]
                    await group.send_to(sender, b"%d" % number * 500, receiver.getsockname())
                await group.send_to(sender, b"", first.getsockname())
        for parity, receiver in enumerate((first, second)):
            received = Counter(receiver.recv(1 << 16) for _ in range(25))
            assert received == Counter(b"%d" % number * 500 for number in range(parity, 50, 2))
        data, address = first.recvfrom(10)
        assert (data, address) == (b"", sender.getsockname())


async def test_a_connected_socket_can_send_elsewhere(driver: str) -> None:
    with udp_pair() as (sender, receiver), bound() as other:
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            await group.send_to(sender, b"elsewhere", other.getsockname())
            await group.send(sender, b"here")
        assert other.recv(100) == b"elsewhere"
        assert receiver.recv(100) == b"here"


async def test_sockets_of_anyio(driver: str) -> None:
    with bound() as receiver:
        host, port = receiver.getsockname()
        async with (
            await anyio.create_connected_udp_socket(host, port) as connected,
            await anyio.create_udp_socket(local_host="127.0.0.1") as free,
            zc_anyio.open_ring(driver=driver, zero_copy="always", threshold=0),
            zc_anyio.send_group() as group,
        ):
            await group.send(connected, b"connected")
            await group.send_to(connected, b"addressed", (host, port))
            await group.send_to(free, b"free", (host, port))
            with pytest.raises(OSError) as caught:
                await group.send(free, b"to nobody")
            assert caught.value.errno == errno.EDESTADDRREQ
        assert {receiver.recv(100) for _ in range(3)} == {b"connected", b"addressed", b"free"}


@pytest.mark.parametrize("anyio_backend", TRIO, indirect=True)
async def test_sockets_of_trio(driver: str) -> None:
    trio = sys.modules["trio"]
    with bound() as receiver, trio.socket.socket(type=socket.SOCK_DGRAM) as sender:
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            await group.send_to(sender, b"free", receiver.getsockname())
            await sender.connect(receiver.getsockname())
            await group.send(sender, b"connected")
        assert receiver.recv(100) == b"free"
        assert receiver.recv(100) == b"connected"


async def test_a_file_that_fits_a_datagram(driver: str, tmp_path: Any) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(10_000))
    with udp_pair() as (sender, receiver):
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            await group.send_file(sender, file, offset=1)
        assert receiver.recv(1 << 16) == file.read_bytes()[1:]


# --- many ---


async def test_many_in_flight(driver: str) -> None:
    count = 500
    buffers = [bytearray(number.to_bytes(4, "big") * 300) for number in range(count)]
    expected = Counter(bytes(buffer) for buffer in buffers)
    with udp_pair() as (sender, receiver), Collector(receiver) as collector:
        async with zc_anyio.open_ring(driver=driver, zero_copy="always", threshold=0) as ring:
            async with zc_anyio.send_group() as group:
                for buffer in buffers:
                    group.send_nowait(sender, buffer)
            for buffer in buffers:
                buffer[:] = b"!" * len(buffer)
            assert ring.statistics().failed == 0
            await until(lambda: len(collector.received) == count)
            sender.send(b"")
    assert Counter(collector.received) == expected


@one_backend
async def test_more_than_the_socket_holds_where_packets_wait_on_asyncio(
    namespaces: Rig, driver: str
) -> None:
    # The socket is full most of the time, and what waits in the device must not change.
    count, size = 150, 20_000
    with namespaces.datagrams() as (sender, receiver):
        expected = Counter[bytes]()
        with Collector(receiver) as collector:
            async with zc_anyio.open_ring(driver=driver, zero_copy="always", threshold=0) as ring:
                for _ in range(3):
                    buffers = [bytearray(os.urandom(size)) for _ in range(count // 3)]
                    expected.update(bytes(buffer) for buffer in buffers)
                    async with zc_anyio.send_group() as group:
                        for buffer in buffers:
                            await group.send(sender, buffer)
                    for buffer in buffers:
                        buffer[:] = bytes(size)
                assert ring.statistics().failed == 0
                await until(lambda: len(collector.received) == count)
                sender.send(b"")
        assert Counter(collector.received) == expected


@one_backend
@pytest.mark.parametrize("how", ["left", "timed-out", "cancelled"])
@pytest.mark.parametrize("size", [1000, 20_000], ids=["whole", "in-fragments"])
async def test_leaving_does_not_wait_for_a_receiver_that_reads_nothing_on_asyncio(
    namespaces: Rig, driver: str, size: int, how: str
) -> None:
    data = bytearray(size)
    with (
        namespaces.receiver.socket(kind=socket.SOCK_DGRAM) as receiver,
        namespaces.sender.socket(kind=socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind((RECEIVER, 0))
        sender.setblocking(False)
        sender.connect(receiver.getsockname())
        rescue = threading.Timer(LIMIT / 4, receiver.recv, [1 << 16])
        async with zc_anyio.open_ring(driver=driver, zero_copy="always", threshold=0):
            rescue.start()
            with anyio.CancelScope() as scope:
                async with zc_anyio.send_group(
                    release_timeout=0.1 if how == "timed-out" else None
                ) as group:
                    await group.send(sender, data)
                    if how == "cancelled":
                        await anyio.sleep(0.1)
                        scope.cancel()
            in_time = rescue.is_alive()
            rescue.cancel()
            rescue.join()
        data.append(1)
    assert in_time


# --- refused ---


@pytest.mark.parametrize(
    ("data", "queued"),
    [
        pytest.param(bytes(1 << 16), False, id="64KiB"),
        pytest.param(bytes(LARGEST + 1), True, id="just-too-large"),
        pytest.param([b"x"] * 1025, False, id="1025-buffers"),
    ],
)
async def test_too_large_a_datagram_breaks_nothing(driver: str, data: Any, queued: bool) -> None:
    with udp_pair() as (sender, receiver):
        async with zc_anyio.open_ring(driver=driver, zero_copy="always", threshold=0):
            async with zc_anyio.send_group(on_error="collect") as group:
                await group.send(sender, b"before")
                if queued:
                    await group.send(sender, data)
                else:
                    with pytest.raises(OSError) as caught:
                        await group.send(sender, data)
                    assert caught.value.errno == errno.EMSGSIZE
                await group.flush().wait_released()
                await group.send(sender, b"after")
            numbers = [failure.error.errno for failure in group.failures]
            assert numbers == ([errno.EMSGSIZE] if queued else [])
        assert receiver.recv(100) == b"before"
        assert receiver.recv(100) == b"after"


async def test_a_refusal_is_raised_when_the_group_is_left(driver: str) -> None:
    with udp_pair() as (sender, _):
        async with zc_anyio.open_ring(driver=driver) as ring:
            with pytest.raises(ExceptionGroup) as caught:
                async with zc_anyio.send_group() as group:
                    await group.send(sender, bytes(LARGEST + 1))
            (error,) = caught.value.exceptions
            assert isinstance(error, anyio.BrokenResourceError)
            assert isinstance(error.__cause__, OSError)
            assert error.__cause__.errno == errno.EMSGSIZE
            assert ring.statistics().failed == 1


async def test_a_peer_that_was_not_there_comes_up(driver: str) -> None:
    with refused() as (sender, address):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group(on_error="collect") as group:
                await group.send(sender, b"into the void")
                await group.flush().wait_released()
                assert not group.failures
                # The answer to it fails the next one.
                await group.send(sender, b"refused")
                await group.flush().wait_released()
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
                    receiver.bind(address)
                    receiver.settimeout(LIMIT)
                    await group.send(sender, b"welcome")
                    await group.flush().wait_released()
                    assert receiver.recv(100) == b"welcome"
            (failure,) = group.failures
            assert failure.stream is sender
            assert failure.error.errno == errno.ECONNREFUSED
            assert isinstance(failure.error, ConnectionRefusedError)
            assert ring.statistics().failed == 1


@pytest.mark.parametrize(
    ("address", "error"),
    [
        (("localhost", 9), ValueError),
        (("127.0.0.1.5", 9), ValueError),
        (("127.0.0.1", 1 << 16), (ValueError, OverflowError)),
        (("127.0.0.1", -1), (ValueError, OverflowError)),
        (("127.0.0.1", "9"), TypeError),
        (("127.0.0.1",), TypeError),
    ],
    ids=str,
)
async def test_something_that_is_not_an_address(driver: str, address: Any, error: Any) -> None:
    with bound() as sender:
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            with pytest.raises(error):
                await group.send_to(sender, b"x", address)
            assert group.statistics().sends == 0


async def test_a_stream_has_no_addresses(driver: str) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            with pytest.raises(TypeError):
                await group.send_to(client, b"x", peer.getsockname())


@pytest.mark.parametrize("make", [bytes, bytearray])
async def test_cancelling_does_not_break_a_datagram_socket(
    driver: str, make: Callable[[int], Any]
) -> None:
    with udp_pair() as (sender, receiver), Collector(receiver) as collector:
        async with zc_anyio.open_ring(driver=driver, zero_copy="always", threshold=0):
            with anyio.CancelScope() as scope:
                async with zc_anyio.send_group() as group:
                    for _ in range(100):
                        group.send_nowait(sender, make(1000))
                    scope.cancel()
                    await anyio.sleep_forever()
            async with zc_anyio.send_group() as group:
                await group.send(sender, b"still here")
        await until(lambda: b"still here" in collector.received)
        sender.send(b"")
    assert set(collector.received) <= {bytes(1000), b"still here"}
