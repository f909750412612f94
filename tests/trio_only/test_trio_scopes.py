"""trio's nurseries, cancel scopes and deadlines around groups, and at exact points."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

import zc_anyio
from tests.support.peers import MORE_THAN_FITS, Reader, parked_pair, receive_exactly, tcp_pair
from tests.support.waiting import until_held, until_idle, until_parked

MIB = 1 << 20
BOUND = 2.0


class Sender:
    """A task that sends from a group, step by step, and can be cancelled at each."""

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.at = "outside"
        self.left = trio.Event()

    async def run(self, client: object, data: list[Any], window: int, *, stay: bool) -> None:
        with self.scope:
            try:
                async with zc_anyio.send_group(window=window) as group:
                    for part in data:
                        self.at = "sending"
                        await group.send(client, part)
                    self.at = "staying"
                    if stay:
                        await trio.sleep_forever()
                    self.at = "leaving"
            finally:
                self.left.set()


@pytest.mark.trio
@pytest.mark.parametrize(
    ("point", "size", "count", "window", "stay"),
    [
        ("sending", MIB, 8, 2 * MIB, True),  # waits for the window
        ("staying", MIB, 8, 64 * MIB, True),
        ("leaving", MIB, 8, 64 * MIB, False),
    ],
)
async def test_cancelled_when_every_task_is_blocked(
    driver: Any, point: str, size: int, count: int, window: int, stay: bool
) -> None:
    data = [bytearray(size) for _ in range(count)]
    with parked_pair() as (client, _peer):
        async with zc_anyio.open_ring(driver=driver) as ring, trio.open_nursery() as nursery:
            sender = Sender()

            async def run() -> None:
                await sender.run(client, data, window, stay=stay)

            nursery.start_soon(run)
            await until_parked(ring)
            await wait_all_tasks_blocked(0.01)
            assert sender.at == point
            sender.scope.cancel()
            with trio.fail_after(BOUND):
                await sender.left.wait()
            assert sender.scope.cancelled_caught
            for part in data:
                part.append(1)
            counters = ring.statistics()
            assert (counters.queued, counters.in_flight, counters.held) == (0, 0, 0)


@pytest.mark.trio
async def test_cancelled_in_the_step_that_queued(driver: Any) -> None:
    data = bytearray(MORE_THAN_FITS)
    with parked_pair() as (client, _peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            with trio.CancelScope() as scope:
                scope.cancel()
                async with zc_anyio.send_group(window=MORE_THAN_FITS) as group:
                    group.send_nowait(client, data)
                    await trio.lowlevel.checkpoint()
            assert scope.cancelled_caught
            data.append(1)
            await until_idle(ring)


@pytest.mark.trio
async def test_deadlines(holding_driver: Any) -> None:
    data = [bytearray(MIB // 2) for _ in range(3)]
    with tcp_pair(stalled=True) as (client, _peer):
        async with zc_anyio.open_ring(driver=holding_driver):
            with trio.fail_after(BOUND), pytest.raises(trio.TooSlowError):
                with trio.fail_after(0.05):
                    async with zc_anyio.send_group() as group:
                        for part in data:
                            await group.send(client, part)
            for part in data:
                part.append(1)


@pytest.mark.trio
async def test_a_nursery_inside_that_fails(driver: Any) -> None:
    data = [bytearray(b"x" * MIB) for _ in range(3)]

    async def send(part: bytearray) -> None:
        await group.send(client, part)

    async def fail() -> None:
        await trio.sleep(0.01)
        raise LookupError("of a task")

    with tcp_pair() as (client, peer), Reader(peer) as reader:
        with pytest.RaisesGroup(LookupError):
            async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
                async with trio.open_nursery() as nursery:
                    for part in data:
                        nursery.start_soon(send, part)
                    nursery.start_soon(fail)
                    nursery.start_soon(trio.sleep_forever)
        for part in data:
            part.append(1)
        client.shutdown(socket.SHUT_WR)
        # What was queued went out: only cancelling the group itself takes it back.
        assert await reader.all() == b"x" * (3 * MIB)


@pytest.mark.trio
async def test_a_nursery_outside_that_is_cancelled(holding_driver: Any) -> None:
    data = [bytearray(MIB // 4) for _ in range(4)]

    async def send(part: bytearray) -> None:
        async with zc_anyio.send_group() as group:
            await group.send(client, part)

    with tcp_pair(stalled=True) as (client, _peer):
        async with zc_anyio.open_ring(driver=holding_driver) as ring:
            with trio.fail_after(BOUND):
                async with trio.open_nursery() as nursery:
                    for part in data:
                        nursery.start_soon(send, part)
                    await until_held(ring, 4)
                    await wait_all_tasks_blocked(0.01)
                    nursery.cancel_scope.cancel()
            for part in data:
                part.append(1)


@pytest.mark.trio
async def test_a_group_shielded_from_the_cancellation_around(driver: Any) -> None:
    data = bytearray(b"x" * (4 * MIB))
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            with trio.CancelScope() as outer:
                with trio.CancelScope(shield=True):
                    async with zc_anyio.send_group() as group:
                        await group.send(client, data)
                        await until_parked(ring)
                        outer.cancel()
                        assert (
                            await trio.to_thread.run_sync(receive_exactly, peer, len(data)) == data
                        )
            assert not group.failures
            data.append(1)


@pytest.mark.trio
async def test_tasks_of_a_nursery_share_a_group_and_a_ring(driver: Any) -> None:
    async def send(number: int) -> None:
        for _ in range(20):
            async with zc_anyio.send_group() as own:
                await own.send(client, bytearray([number]) * 1000)
            await shared.send(client, bytearray([number]) * 30_000)

    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as shared, trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(send, number)
            assert ring.statistics().sends == 400
        client.shutdown(socket.SHUT_WR)
        received = await reader.all()
    for number in range(10):
        assert received.count(number) == 20 * 31_000


@pytest.mark.trio
async def test_keyboard_interrupt_in_the_body(driver: Any) -> None:
    data = bytearray(MIB)
    with tcp_pair() as (client, peer), Reader(peer):
        with pytest.raises(KeyboardInterrupt):
            async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
                await group.send(client, data)
                raise KeyboardInterrupt
        data.append(1)
        client.close()


@pytest.mark.trio
async def test_send_is_a_checkpoint_now_and_then(driver: Any) -> None:
    with tcp_pair() as (client, peer), Reader(peer, keep=False):
        async with zc_anyio.open_ring(driver=driver):
            with trio.fail_after(BOUND), trio.move_on_after(0.1) as scope:
                async with zc_anyio.send_group() as group:
                    while True:
                        await group.send(client, b"x")
            assert scope.cancelled_caught
        client.close()
