"""A group that is cancelled is left in bounded time, and what the caller can change is released."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.support.peers import (
    MORE_THAN_FITS,
    Reader,
    parked_pair,
    receive_exactly,
    receive_to_end,
    tcp_pair,
    wrap,
)
from tests.support.waiting import until, until_held, until_idle, until_parked
from zc_anyio.testing import open_descriptors, reset

MIB = 1 << 20
# Promised for peers that read nothing at all.
BOUND = 2.0


class Body:
    """The body of a group in a task of its own, to be cancelled from outside."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.left = anyio.Event()
        self.entered = False
        self.error: BaseException | None = None

    async def run(
        self, client: object, buffers: list[object], window: int, *, stay: bool, wait: bool
    ) -> None:
        with self.scope:
            try:
                async with zc_anyio.send_group(window=window) as group:
                    self.entered = True
                    for buffer in buffers:
                        if wait:
                            await group.send(client, buffer)
                        else:
                            group.send_nowait(client, buffer)
                    if not wait:  # most of it has not been submitted
                        self.scope.cancel()
                    if stay:
                        await anyio.sleep_forever()
            except Exception as exc:
                self.error = exc
            finally:
                self.left.set()


@asynccontextmanager
async def cancelled(
    point: str, driver: Any, make: Callable[[int], object]
) -> AsyncIterator[tuple[zc_anyio.Ring, list[Any], socket.socket, socket.socket, Body]]:
    """Cancel a group whose peer never reads, at a given point, and wait until it is left."""
    size = 256 << 10 if point == "held" else MIB
    count = 4 if point in ("held", "window") else 24
    window = MIB if point == "window" else 2 * MORE_THAN_FITS
    buffers = [make(size) for _ in range(count)]
    with tcp_pair(stalled=True) if point == "held" else parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver, drain_timeout=1) as ring:
            before = len(open_descriptors())
            body = Body()
            async with anyio.create_task_group() as tg:
                stay = point not in ("leaving", "window")
                wait = point != "at once"
                run = lambda: body.run(client, buffers, window, stay=stay, wait=wait)  # noqa: E731
                tg.start_soon(run)
                await until(lambda: body.entered)
                if point == "held":
                    await until_held(ring, count)
                elif point == "leaving" or point == "parked" or point == "window":
                    await until_parked(ring)
                body.scope.cancel()
                with anyio.fail_after(BOUND):
                    await body.left.wait()
            assert body.error is None
            yield ring, buffers, client, peer, body
            with anyio.fail_after(BOUND):
                await until_idle(ring)
            # The ring closes its duplicate of the socket a little after the last send.
            await until(lambda: len(open_descriptors()) <= before)


POINTS = ["at once", "parked", "held", "leaving", "window"]


@pytest.mark.anyio
@pytest.mark.parametrize("point", POINTS)
async def test_changeable_buffers_are_released_when_the_group_is_left(
    driver: Any, point: str
) -> None:
    if (driver, point) == ("copy", "held"):
        pytest.skip("the copy driver holds nothing")
    async with cancelled(point, driver, bytearray) as (ring, buffers, *_):
        for buffer in buffers:
            assert isinstance(buffer, bytearray)
            buffer.append(1)
        counters = ring.statistics()
        assert (counters.queued, counters.in_flight, counters.held) == (0, 0, 0)


@pytest.mark.anyio
@pytest.mark.parametrize("point", POINTS[:4])
async def test_views_of_changeable_buffers_too(driver: Any, point: str) -> None:
    if (driver, point) == ("copy", "held"):
        pytest.skip("the copy driver holds nothing")

    def make(size: int) -> object:
        owners.append(bytearray(size))
        return memoryview(owners[-1]).toreadonly()

    owners: list[bytearray] = []
    async with cancelled(point, driver, make) as (_, buffers, *_):
        buffers.clear()
        for owner in owners:
            owner.append(1)


@pytest.mark.anyio
@pytest.mark.parametrize("end", ["read", "reset"])
async def test_bytes_stay_with_the_ring_until_the_end(holding_driver: Any, end: str) -> None:
    async with cancelled("held", holding_driver, os.urandom) as (ring, buffers, _, peer, _):
        assert ring.statistics().held == len(buffers)
        # The list, `data` and the ring refer to it; only the list and `data` to this one.
        others = [os.urandom(100)]
        other = others[0]
        data = buffers[0]
        assert sys.getrefcount(data) == sys.getrefcount(other) + 1
        if end == "read":
            received = receive_exactly(peer, sum(len(part) for part in buffers))
            assert received == b"".join(buffers)
        else:
            reset(peer)
        await until_idle(ring)
        assert sys.getrefcount(data) == sys.getrefcount(other)


@pytest.mark.anyio
@pytest.mark.parametrize("changeable", [0, 1], ids=["first", "last"])
@pytest.mark.parametrize("point", ["parked", "held"])
async def test_one_changeable_part_makes_a_vector_changeable(
    holding_driver: Any, point: str, changeable: int
) -> None:
    def make(size: int) -> object:
        owners.append(bytearray(size // 2))
        parts: list[object] = [bytes(size // 2)]
        parts.insert(changeable, owners[-1])
        return parts

    owners: list[bytearray] = []
    async with cancelled(point, holding_driver, make):
        for owner in owners:
            owner.append(1)


CONTENT = os.urandom(256 << 10)
UNCHANGEABLE: dict[str, Callable[[], object]] = {
    "view": lambda: memoryview(CONTENT),
    "vector": lambda: [CONTENT[:1000], CONTENT[1000:]],
    "vector with a view": lambda: [CONTENT[:1000], memoryview(CONTENT)[1000:]],
}


@pytest.mark.anyio
@pytest.mark.parametrize("kind", UNCHANGEABLE)
async def test_what_else_cannot_change_stays_with_the_ring_too(
    holding_driver: Any, kind: str
) -> None:
    make = UNCHANGEABLE[kind]
    async with cancelled("held", holding_driver, lambda _: make()) as (ring, sent, _, peer, _):
        assert ring.statistics().held == len(sent)
        # The ring refers to what views are views of.
        for data in sent:
            for part in data if isinstance(data, list) else [data]:
                if isinstance(part, memoryview):
                    part.release()
        assert receive_exactly(peer, len(CONTENT) * len(sent)) == CONTENT * len(sent)


@pytest.mark.anyio
async def test_the_end_of_the_ring_resets_connections_that_hold_sends(holding_driver: Any) -> None:
    data = os.urandom(MIB)
    before = sys.getrefcount(data)
    with tcp_pair(stalled=True) as (client, peer):
        with anyio.fail_after(BOUND), anyio.CancelScope() as scope:
            # The end of the ring is waited for although everything around it is cancelled.
            async with zc_anyio.open_ring(driver=holding_driver, drain_timeout=0.1) as ring:
                async with zc_anyio.send_group() as group:
                    await group.send(client, data)
                    await until_held(ring, 1)
                    scope.cancel()
                    await anyio.sleep_forever()
        assert ring.statistics().held == 0
        assert sys.getrefcount(data) == before
        with pytest.raises(ConnectionResetError):
            receive_to_end(peer)


@pytest.mark.anyio
@pytest.mark.parametrize("make", [bytearray, bytes])
async def test_a_stream_cut_short_is_broken(driver: Any, make: Callable[[int], object]) -> None:
    with parked_pair() as (client, _peer):
        stream = await wrap(client)
        async with stream, zc_anyio.open_ring(driver=driver, drain_timeout=0.1) as ring:
            with anyio.move_on_after(10) as scope:
                async with zc_anyio.send_group(window=MORE_THAN_FITS) as group:
                    await group.send(stream, make(MORE_THAN_FITS))
                    await until_parked(ring)
                    scope.cancel()
                    await anyio.sleep_forever()
            # Bytes that were taken may be held for as long as the peer reads nothing.
            await until(lambda: ring.statistics().failed == 1)
            async with zc_anyio.send_group() as group:
                with pytest.raises(anyio.BrokenResourceError) as caught:
                    await group.send(stream, b"after the hole")
            assert isinstance(caught.value.__cause__, OSError)
            with pytest.raises(anyio.BrokenResourceError), anyio.fail_after(BOUND):
                while True:  # asyncio's transport reports the error of a write at a later one
                    await stream.send(b"after the hole")


@pytest.mark.anyio
@pytest.mark.parametrize("make", [bytearray, bytes])
async def test_nothing_of_a_cancelled_send_leaves_that_had_not_begun(
    driver: Any, make: Callable[[int], object]
) -> None:
    first = os.urandom(3 * MIB)
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, first)
                await until_parked(ring)  # what follows is queued behind it
                with anyio.CancelScope() as scope:
                    async with zc_anyio.send_group() as other:
                        await other.send(client, make(1000))
                        scope.cancel()
                        await anyio.sleep_forever()
                assert scope.cancelled_caught
                assert ring.statistics().failed == 1
                with Reader(peer) as reader:
                    await group.flush().wait_released()
                    # The stream is whole.
                    await group.send(client, b"the next")
                    await group.flush().wait_released()
                    client.shutdown(socket.SHUT_WR)
                    assert await reader.all() == first + b"the next"


@pytest.mark.anyio
async def test_neighbours_in_the_same_request_go_on(driver: Any) -> None:
    first, second, third = os.urandom(3 * MIB), os.urandom(900_000), bytes(50_000)
    scope = anyio.CancelScope()

    async def cancelled_one() -> None:
        with scope:
            async with zc_anyio.send_group() as group:
                await group.send(client, third)
                await anyio.sleep_forever()

    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group, anyio.create_task_group() as tg:
                await group.send(client, first)
                await until_parked(ring)
                await group.send(client, second)
                tg.start_soon(cancelled_one)
                await until(lambda: ring.statistics().sends == 3)
                # With the first one gone, the other two are gathered, and parked together.
                received = await anyio.to_thread.run_sync(receive_exactly, peer, len(first))
                await until(lambda: ring.statistics().bytes_sent >= len(first))
                scope.cancel()
                await until(lambda: ring.statistics().failed == 1)
                with Reader(peer) as reader:
                    await group.flush().wait_released()
                    client.shutdown(socket.SHUT_WR)
                    received += await reader.all()
    assert received == first + second


@pytest.mark.anyio
async def test_only_peers_that_hold_sends_are_reset(holding_driver: Any) -> None:
    data = bytearray(os.urandom(MIB))
    expected = bytes(data)
    with ExitStack() as stack:
        good = [stack.enter_context(tcp_pair()) for _ in range(3)]
        bad = [stack.enter_context(tcp_pair(stalled=True)) for _ in range(2)]
        readers = [stack.enter_context(Reader(peer)) for _, peer in good]
        async with zc_anyio.open_ring(driver=holding_driver) as ring:
            with anyio.CancelScope() as scope:
                async with zc_anyio.send_group() as group:
                    await group.broadcast([client for client, _ in good + bad], data)
                    await until_held(ring, 2)
                    scope.cancel()
                    await anyio.sleep_forever()
            data[:] = bytes(MIB)
            data.append(1)
            async with zc_anyio.send_group() as group:
                for client, _ in good:
                    await group.send(client, b"goes on")
                for client, _ in bad:
                    with pytest.raises(anyio.BrokenResourceError):
                        await group.send(client, b"does not")
        for (client, _), reader in zip(good, readers, strict=True):
            client.shutdown(socket.SHUT_WR)
            assert await reader.all() == expected + b"goes on"


@pytest.mark.anyio
async def test_a_deadline_around_the_group(holding_driver: Any) -> None:
    data = bytearray(MIB)
    with tcp_pair(stalled=True) as (client, _):
        async with zc_anyio.open_ring(driver=holding_driver):
            with anyio.fail_after(BOUND), anyio.move_on_after(0.05) as scope:
                async with zc_anyio.send_group() as group:
                    await group.send(client, data)
            assert scope.cancelled_caught
            data.append(1)


@pytest.mark.anyio
async def test_a_task_group_inside_is_cancelled_with_it(holding_driver: Any) -> None:
    buffers = [bytearray(MIB // 4) for _ in range(4)]

    async def send(buffer: bytearray) -> None:
        await group.send(client, buffer)
        await anyio.sleep_forever()

    with tcp_pair(stalled=True) as (client, _):
        async with zc_anyio.open_ring(driver=holding_driver) as ring:
            with anyio.CancelScope() as scope:
                async with zc_anyio.send_group() as group, anyio.create_task_group() as tg:
                    for buffer in buffers:
                        tg.start_soon(send, buffer)
                    await until_held(ring, 4)
                    scope.cancel()
            for buffer in buffers:
                buffer.append(1)


@pytest.mark.anyio
async def test_waiting_for_a_generation_can_be_cancelled(holding_driver: Any) -> None:
    data = bytearray(MIB)
    with tcp_pair(stalled=True) as (client, peer):
        async with zc_anyio.open_ring(driver=holding_driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, data)
                generation = group.flush()
                with anyio.move_on_after(0.05) as scope:
                    await generation.wait_released()
                assert scope.cancelled_caught
                assert not generation.is_released
                await until_held(ring, 1)
                receive_exactly(peer, MIB)
                await generation.wait_released()


@pytest.mark.anyio
async def test_cancelled_before_the_group_is_entered(driver: Any) -> None:
    with tcp_pair() as (client, _):
        async with zc_anyio.open_ring(driver=driver) as ring:
            with anyio.CancelScope() as scope:
                scope.cancel()
                async with zc_anyio.send_group() as group:
                    await group.send(client, bytearray(1000))
                    await anyio.lowlevel.checkpoint()
            assert scope.cancelled_caught
            await until_idle(ring)
