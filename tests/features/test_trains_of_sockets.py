"""UDP sockets of this library send and receive in trains."""

from __future__ import annotations

import os
import socket

import anyio
import pytest

import zc_anyio
from tests.features.test_trains import cut, each_family
from tests.support.needs import missing

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

UDP_SEGMENT, UDP_GRO = 103, 104


@pytest.fixture(scope="module")
def loopback_keeps_trains() -> None:
    """Skip where a train arrives in pieces: Linux 5.10 cuts it before the loopback device."""
    with (
        socket.socket(type=socket.SOCK_DGRAM) as peer,
        socket.socket(type=socket.SOCK_DGRAM) as ours,
    ):
        peer.bind(("127.0.0.1", 0))
        peer.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
        ours.connect(peer.getsockname())
        ours.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 2)
        ours.send(b"aabb")
        if peer.recv(4) != b"aabb":
            missing("a kernel whose loopback device keeps trains together")


@each_family
@pytest.mark.usefixtures("loopback_keeps_trains")
async def test_our_sockets_send_and_receive_in_trains(driver: str, family: int) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    name = "localhost" if family == socket.AF_INET else host
    data = os.urandom(100_000)
    async with (
        zc_anyio.open_ring(driver=driver) as ring,
        await zc_anyio.create_udp_socket(local_host=host) as free,
    ):
        port = free.extra(anyio.abc.SocketAttribute.local_port)
        async with await zc_anyio.create_connected_udp_socket(host, port) as connected:
            own = (host, connected.extra(anyio.abc.SocketAttribute.local_port))
            # From here on the kernel gathers; what waits already comes by itself.
            await connected.send(b"early")
            assert await free.receive_segments() == (b"early", 5, own)
            await connected.send_segments(data[:30_000], 1200)
            assert await free.receive_segments() == (data[:30_000], 1200, own)
            await connected.send_many([data[:500], data[500:1000], data[1000:1200]])
            assert await free.receive_segments() == (data[:1200], 500, own)
            await connected.send_segments(bytearray(data[:2500]), 1000)
            # Datagrams of a train are received one by one as well, and the rest together.
            assert await free.receive() == (data[:1000], own)
            assert await free.receive_segments() == (data[1000:2000], 1000, own)
            assert await free.receive() == (data[2000:2500], own)
            await connected.send(b"")
            assert await free.receive_segments() == (b"", 0, own)
            await free.send_segments(data[:3000], 1400, own)
            await free.send_many([(b"one", own), (b"two", (name, own[1]))])
            got = [await connected.receive() for _ in range(5)]
            assert got == [*cut(data[:3000], 1400), b"one", b"two"]
            await connected.send_segments(data, 700)
            await connected.send(b"last")
            arrived = b""
            while not arrived.endswith(b"last"):
                piece, size, _ = await free.receive_segments()
                assert size in (700, 4)
                arrived += piece
            assert arrived == data + b"last"
            assert ring.statistics().failed == 0


@pytest.mark.parametrize("zero_copy", ["auto", "always"])
@pytest.mark.usefixtures("loopback_keeps_trains")
async def test_many_that_would_be_copied_leave_without_a_request(
    driver: str, zero_copy: zc_anyio.ZeroCopy
) -> None:
    """What is large enough to be queued keeps its place among them."""
    data = os.urandom(60_000)
    small = cut(data[:12_000], 1000)
    many = [*small, b"", data, *small, data[:999]]
    async with (
        zc_anyio.open_ring(driver=driver, zero_copy=zero_copy) as ring,
        await zc_anyio.create_udp_socket(local_host="127.0.0.1") as free,
    ):
        port = free.extra(anyio.abc.SocketAttribute.local_port)
        with anyio.move_on_after(0.01):
            await free.receive_segments()
        async with await zc_anyio.create_connected_udp_socket("127.0.0.1", port) as connected:
            await connected.send_many(small)
            assert (await free.receive_segments())[:2] == (data[:12_000], 1000)
            if zero_copy == "auto" or driver == "copy":
                assert ring.statistics().requests == 0
            await connected.send_many(many)
            assert [(await free.receive())[0] for _ in many] == many
        assert ring.statistics().sends == len(small) + len(many)
        assert ring.statistics().failed == 0


async def test_a_socket_that_is_closed_sends_and_receives_no_trains(driver: str) -> None:
    async with zc_anyio.open_ring(driver=driver):
        free = await zc_anyio.create_udp_socket(local_host="127.0.0.1")
        port = free.extra(anyio.abc.SocketAttribute.local_port)
        connected = await zc_anyio.create_connected_udp_socket("127.0.0.1", port)
        for sock in (free, connected):
            await sock.aclose()
            with pytest.raises(anyio.ClosedResourceError):
                await sock.receive_segments()
        address = ("127.0.0.1", port)
        for call in (
            connected.send_segments(b"x", 1),
            connected.send_many([b"x"]),
            free.send_segments(b"x", 1, address),
            free.send_many([(b"x", address)]),
        ):
            with pytest.raises(anyio.ClosedResourceError):
                await call


@pytest.mark.usefixtures("loopback_keeps_trains")
async def test_a_task_that_waits_for_a_train_can_be_cancelled_or_closed(driver: str) -> None:
    async with (
        zc_anyio.open_ring(driver=driver),
        await zc_anyio.create_udp_socket(local_host="127.0.0.1") as free,
    ):
        port = free.extra(anyio.abc.SocketAttribute.local_port)
        with anyio.move_on_after(0.01) as scope:
            await free.receive_segments()
        assert scope.cancelled_caught
        async with await zc_anyio.create_connected_udp_socket("127.0.0.1", port) as connected:
            await connected.send_segments(b"aabb", 2)
            assert (await free.receive_segments())[:2] == (b"aabb", 2)

        async def wait_for_the_end() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await free.receive_segments()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait_for_the_end)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(anyio.BusyResourceError):
                await free.receive_segments()
            await free.aclose()
