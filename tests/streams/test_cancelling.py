"""A cancelled call has sent nothing, and taken nothing, at whatever point it was cancelled."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import zc_anyio
from tests.streams.pairs import clog, connected, facing, settle
from tests.support.backends import only_asyncio
from tests.support.peers import receive_to_end


async def cancel_after(scope: anyio.CancelScope, checkpoints: int) -> None:
    for _ in range(checkpoints):
        await anyio.lowlevel.checkpoint()
    scope.cancel()


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_sends_and_receives_at_every_point(driver: Any, kind: str) -> None:
    rng = random.Random(3)
    sent = bytearray()
    received = bytearray()
    cancelled = [0, 0]
    async with zc_anyio.open_ring(driver=driver), connected(kind, small=True) as (one, other):

        async def send(tasks: Any) -> None:
            for number in range(300):
                data = bytes([number % 255 + 1]) * rng.choice((1, 1000, 20_000, 100_000))
                with anyio.CancelScope() as scope:
                    tasks.start_soon(cancel_after, scope, rng.randrange(3))
                    await one.send(data)
                    sent.extend(data)
                cancelled[0] += scope.cancelled_caught
            await one.send_eof()

        async def receive(tasks: Any) -> None:
            while True:
                with anyio.CancelScope() as scope:
                    tasks.start_soon(cancel_after, scope, rng.randrange(3))
                    try:
                        received.extend(await other.receive(rng.choice((10, 5000, 50_000))))
                    except anyio.EndOfStream:
                        return
                cancelled[1] += scope.cancelled_caught
                if rng.random() < 0.05:
                    await anyio.sleep(0.001)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send, tasks)
            tasks.start_soon(receive, tasks)
    assert received == sent
    assert cancelled[0] > 10, cancelled


@pytest.mark.anyio
async def test_closing_at_every_point(driver: Any) -> None:
    for checkpoints in range(10):
        async with zc_anyio.open_ring(driver=driver) as ring, facing(small=True) as (stream, peer):
            finished: list[None] = []

            async def use(stream: Any = stream, finished: Any = finished) -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    while True:
                        await stream.send(b"a" * 100_000)
                        await stream.send(bytearray(b"b" * 100_000))
                        finished.append(None)

            async def receive(stream: Any = stream) -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    await stream.receive()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(use)
                tasks.start_soon(receive)
                for _ in range(checkpoints):
                    await anyio.lowlevel.checkpoint()
                await stream.aclose()
            data = await anyio.to_thread.run_sync(receive_to_end_or_reset, peer)
            # It ends with what was sent in part and could not be taken back.
            whole = b"a" * 100_000 + b"b" * 100_000
            assert (whole * (len(finished) + 1)).startswith(data)
            assert len(data) >= len(whole) * len(finished) or ring.statistics().failed


def receive_to_end_or_reset(peer: Any) -> bytes:
    received = bytearray()
    try:
        while chunk := peer.recv(1 << 20):
            received += chunk
    except ConnectionResetError:
        pass
    return bytes(received)


@pytest.mark.anyio
async def test_a_changeable_buffer_is_the_callers_after_cancelling(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver, zero_copy="always") as ring:
        async with facing(small=True) as (stream, peer):
            data = bytearray(b"a" * (8 << 20))
            with anyio.move_on_after(0.05) as scope:
                await stream.send(data)
            assert scope.cancelled_caught
            # The buffer has no export any more, and nothing that follows arrives.
            data.clear()
            with pytest.raises(anyio.BrokenResourceError):
                await stream.send(b"after")
            counters = ring.statistics()
            assert (counters.queued, counters.in_flight) == (0, 0)
            await stream.aclose()
            received = await anyio.to_thread.run_sync(receive_to_end_or_reset, peer)
            assert set(received) <= {ord("a")}


@pytest.mark.anyio
async def test_a_queued_changeable_buffer_is_taken_back_whole(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver), facing(small=True) as (stream, peer):
        await clog(stream)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.send, bytearray(b"x" * (1 << 20)))
            await settle()
            tasks.cancel_scope.cancel()
        # The stream is whole: what is sent next follows what was accepted before.
        received: list[bytes] = []

        async def receive() -> None:
            received.append(await anyio.to_thread.run_sync(receive_to_end, peer))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await stream.send(b"next")
            await stream.send_eof()
        assert received[0].endswith(b"\0next")
        assert set(received[0][:-4]) == {0}


@pytest.mark.anyio
@only_asyncio
async def test_asyncios_own_cancellation_is_not_lost(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver), facing() as (stream, peer):
        reached: list[int] = []

        async def send() -> None:
            while True:
                await stream.send(b"x")
                reached.append(1)

        for turns in range(6):
            task = asyncio.ensure_future(send())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await send()
        current = asyncio.current_task()
        assert current is not None
        assert not current.cancelling()
        sent = len(reached)
        await stream.send_eof()
        # A call that was cancelled while it let others run had sent.
        assert len(await anyio.to_thread.run_sync(receive_to_end, peer)) >= sent


@pytest.mark.anyio
@only_asyncio
async def test_asyncios_own_cancellation_loses_nothing_received(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver), facing() as (stream, peer):
        received = bytearray()

        async def receive() -> None:
            received.extend(await stream.receive(3))

        for number in range(60):
            task = asyncio.ensure_future(receive())
            if number % 2:
                await asyncio.sleep(0)
            peer.send(b"%03d" % number)
            for _ in range(number % 5):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()
        peer.close()
        with pytest.raises(anyio.EndOfStream):
            while True:
                received += await stream.receive()
        assert received == b"".join(b"%03d" % number for number in range(60))
