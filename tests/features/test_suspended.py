"""A socket that was idle for a while is suspended, and resumed with the next send."""

from __future__ import annotations

import errno
import gc
import os
import resource
import socket
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

import zc_anyio
from tests.support.peers import receive_exactly, receive_to_end, tcp_pair, wrap
from tests.support.waiting import until
from zc_anyio._ring import sockets as sockets_module
from zc_anyio._ring.reaper import TICK_SECONDS
from zc_anyio.testing import reset

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


async def until_suspended(ring: zc_anyio.Ring) -> None:
    """Wait until the ring has no duplicate of any socket."""
    sockets = ring._sockets
    await until(lambda: bool(sockets._suspended) and not sockets.by_stream)


def numbers(ring: zc_anyio.Ring) -> list[int]:
    """Return the numbers that the ring knows its sockets by."""
    return sorted(ring._sockets._by_ident)


@pytest.mark.parametrize("kind", ["socket", "stream", "two objects"])
async def test_it_is_resumed_as_often_as_wanted(driver: str, kind: str) -> None:
    with tcp_pair() as (client, peer), ExitStack() as stack:
        stream = await wrap(client.dup()) if kind == "stream" else client
        twin = stack.enter_context(client.dup())
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            for turn in range(4):
                target = twin if kind == "two objects" and turn % 2 else stream
                await group.send(target, b"small")
                await group.send(target, b"l" * 40_000)
                await group.flush().wait_released()
                assert receive_exactly(peer, 40_005) == b"small" + b"l" * 40_000
                await until_suspended(ring)
                assert numbers(ring) == [1]
            counters = ring.statistics()
            assert (counters.sends, counters.bytes_sent) == (8, 4 * 40_005)
        if not isinstance(stream, socket.socket):
            await stream.aclose()


async def test_a_busy_event_loop_does_not_suspend_it(driver: str) -> None:
    with tcp_pair() as (client, peer), tcp_pair() as (other, other_peer):
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            await group.send(client, b"one")
            await group.flush().wait_released()
            time.sleep(10 * TICK_SECONDS)
            await group.send(other, b"two")
            group.flush()
            assert client in ring._sockets.by_stream
            assert not ring._sockets._suspended
            await until_suspended(ring)
            assert receive_exactly(peer, 3) + receive_exactly(other_peer, 3) == b"onetwo"


async def test_a_udp_socket_that_is_connected_later(driver: str) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        one.setblocking(False)
        other.bind(("127.0.0.1", 0))
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            await group.send_to(one, b"first", other.getsockname())
            await until_suspended(ring)
            with pytest.raises(OSError, match="no peer"):
                await group.send(one, b"too early")
            await until_suspended(ring)
            one.connect(other.getsockname())
            await group.send(one, b"second")
            await group.flush().wait_released()
            assert numbers(ring) == [1]
        assert [other.recv(100), other.recv(100)] == [b"first", b"second"]


async def test_its_number_is_another_connection_by_now(driver: str) -> None:
    with tcp_pair() as (client, peer), tcp_pair() as (other, other_peer):
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            await group.send(client, b"to the old one")
            await until_suspended(ring)
            # Python's object does not notice, and the bytes go where a plain send of it would go.
            os.dup2(other.fileno(), client.fileno())
            await group.send(client, b"to the new one")
            await group.flush().wait_released()
            assert numbers(ring) == [1, 2]
            assert receive_to_end(peer) == b"to the old one"
            assert receive_exactly(other_peer, 14) == b"to the new one"


async def test_it_was_closed(driver: str) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            await group.send(client, b"all")
            await until_suspended(ring)
            client.close()
            # The ring does not keep it open.
            assert receive_to_end(peer) == b"all"
            with pytest.raises(anyio.ClosedResourceError):
                await group.send(client, b"more")


async def test_it_was_reset(driver: str) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, b"all")
                await until_suspended(ring)
                reset(peer)
                with pytest.raises(anyio.BrokenResourceError) as caught:
                    await group.send(client, b"more")
                assert isinstance(caught.value.__cause__, OSError)
                assert caught.value.__cause__.errno == errno.ENOTCONN
            assert ring.statistics().failed == 0


async def test_it_was_reset_and_is_wrapped(driver: str) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            await group.send(client, b"all")
            await until_suspended(ring)
            reset(peer)
            with pytest.raises(anyio.BrokenResourceError):
                await group.send(client, b"more")
            twin = client.dup()
            # Wrapping it does not fail; sending on it does.
            async with zc_anyio.ZeroCopySocketStream(ring, twin) as stream:
                with pytest.raises(anyio.BrokenResourceError):
                    await stream.send(b"more")


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Let no descriptor be opened."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path("/dev/null").open("rb") as lowest:
        number = lowest.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_no_descriptor_is_left_to_resume_it(driver: str) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            await group.send(client, b"one")
            await until_suspended(ring)
            with no_descriptors(), pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
                group.send_nowait(client, b"two")
            await group.send(client, b"three")
            await group.flush().wait_released()
            assert numbers(ring) == [1]
        assert receive_exactly(peer, 8) == b"onethree"


async def test_a_limited_number_of_sockets_is_remembered(
    driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zc_anyio._ring.sockets.SUSPENDED_MOST", 2)
    with ExitStack() as stack:
        pairs = [stack.enter_context(tcp_pair()) for _ in range(5)]
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            for turn in range(3):
                for client, _ in pairs:
                    await group.send(client, b"%d" % turn)
                await until_suspended(ring)
                assert len(numbers(ring)) == 2
        for _, peer in pairs:
            assert receive_exactly(peer, 3) == b"012"


async def test_it_does_not_keep_its_stream_alive(driver: str) -> None:
    async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
        with tcp_pair() as (client, peer):
            twin = client.dup()
            twin.setblocking(False)
            await group.send(twin, b"data")
            await until_suspended(ring)
            twin.close()
            gone = weakref.ref(twin)
            del twin
            gc.collect()
            assert gone() is None
            assert not ring._sockets._known
            assert receive_exactly(peer, 4) == b"data"


async def test_it_is_resumed_by_the_descriptor_of_the_object_that_is_sent_to(driver: str) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            await group.send(client, b"one, ")
            await until_suspended(ring)
            with client.dup() as twin:
                await group.send(twin, b"two, ")
                await until_suspended(ring)
            # The descriptor by which it was attached last is closed.
            await group.send(client, b"three")
        assert receive_exactly(peer, 15) == b"one, two, three"


async def test_the_end_of_a_ring_forgets_them_a_few_at_a_time(
    driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tasks get their turn in between."""
    monkeypatch.setattr(sockets_module, "DETACHED_AT_ONCE", 2)
    left: list[int] = []
    detach = sockets_module.SocketTable.detach_suspended

    def count(table: sockets_module.SocketTable) -> bool:
        result = detach(table)
        left.append(len(table._suspended))
        return result

    monkeypatch.setattr(sockets_module.SocketTable, "detach_suspended", count)
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    with ExitStack() as stack:
        pairs = [stack.enter_context(tcp_pair()) for _ in range(7)]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take_turns)
            async with zc_anyio.open_ring(driver=driver) as ring:
                async with zc_anyio.send_group() as group:
                    await group.broadcast([client for client, _ in pairs], b"small")
                await until(lambda: len(ring._sockets._suspended) == len(pairs))
                before = turns
            assert left == [5, 3, 1, 0]
            assert turns >= before + 3
            tasks.cancel_scope.cancel()
        assert all(receive_exactly(peer, 5) == b"small" for _, peer in pairs)
