"""A ring: its scope, its counters, its size, its end."""

from __future__ import annotations

import contextvars
import dataclasses
import errno
import os
import socket
import time
from contextlib import ExitStack
from pathlib import Path
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
)
from tests.support.waiting import (
    LIMIT,
    unsent,
    until,
    until_blocking,
    until_held,
    until_idle,
    until_parked,
)
from zc_anyio._native.lib import AGAIN
from zc_anyio._ring.reaper import RETRY_SECONDS
from zc_anyio.testing import open_descriptors

MIB = 1 << 20


@pytest.mark.anyio
async def test_an_unused_ring(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver):
        pass
    async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group():
        pass
    async with zc_anyio.send_group():
        pass


@pytest.mark.anyio
async def test_the_ambient_ring(driver: Any) -> None:
    seen: list[zc_anyio.Ring | None] = []

    async def look() -> None:
        seen.append(zc_anyio.current_ring())

    assert zc_anyio.current_ring() is None
    async with zc_anyio.open_ring(driver=driver) as outer:
        assert zc_anyio.current_ring() is outer
        async with anyio.create_task_group() as tg:
            tg.start_soon(look)
        async with zc_anyio.open_ring(driver=driver) as inner:
            assert zc_anyio.current_ring() is inner
            async with anyio.create_task_group() as tg:
                tg.start_soon(look)
        assert zc_anyio.current_ring() is outer
    assert zc_anyio.current_ring() is None
    assert seen == [outer, inner]


@pytest.mark.anyio
async def test_nested_rings_are_apart(driver: Any) -> None:
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver) as outer:
            async with zc_anyio.open_ring(driver=driver) as inner:
                async with zc_anyio.send_group() as group:
                    await group.send(client, b"by the inner, ")
                async with zc_anyio.send_group(ring=outer) as group:
                    await group.send(client, b"by the outer, ")
            async with zc_anyio.send_group() as group:
                await group.send(client, b"by the outer")
            assert (inner.statistics().sends, outer.statistics().sends) == (1, 2)
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == b"by the inner, by the outer, by the outer"


@pytest.mark.anyio
async def test_the_ambient_ring_of_a_context_that_outlives_it(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver):
        context = contextvars.copy_context()
    ring = context.run(zc_anyio.current_ring)
    if ring is not None:
        with pytest.raises(RuntimeError, match="closed"):
            async with zc_anyio.send_group(ring=ring):
                pass


@pytest.mark.anyio
async def test_a_group_with_no_ring_opens_one(rings: list[zc_anyio.Ring]) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.send_group() as group:
            await group.send(client, b"data")
            assert zc_anyio.current_ring() is rings[-1]
        assert zc_anyio.current_ring() is None
        assert "closed" in repr(rings[-1])
        assert receive_exactly(peer, 4) == b"data"


@pytest.mark.anyio
async def test_a_group_that_outlives_its_ring(driver: Any, rings: list[zc_anyio.Ring]) -> None:
    data = bytearray(1000)
    with tcp_pair() as (client, peer):
        with pytest.raises(RuntimeError, match="the ring was closed"):
            async with zc_anyio.open_ring(driver=driver) as ring:
                group = zc_anyio.send_group()
                await group.__aenter__()
                group.send_nowait(client, data)
            with pytest.raises(RuntimeError, match="the ring is closed"):
                group.send_nowait(client, data)
            await group.__aexit__(None, None, None)
        # Draining has sent it, although nobody else would have flushed its generation.
        assert receive_exactly(peer, 1000) == bytes(1000)
        assert ring.statistics().queued == ring.statistics().held == 0
        rings.clear()
        del group
        data.append(1)


@pytest.mark.anyio
async def test_statistics_and_capabilities(driver: Any) -> None:
    with tcp_pair() as (client, peer), Reader(peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            assert repr(ring) == f"<Ring {driver}>"
            async with zc_anyio.send_group() as group:
                for _ in range(10):
                    await group.send(client, bytearray(100_000))
            counters = ring.statistics()
            assert counters.driver == ring.capabilities.driver == driver
            assert counters.sends == 10
            assert counters.bytes_sent == 1_000_000
            assert counters.zero_copied + counters.copied == 10
            assert counters.failed == counters.queued == counters.in_flight == counters.held == 0
            assert counters.generations_released >= 1
            assert counters.requests >= counters.submits > 0 or driver != "io_uring"
            for report in (counters, ring.capabilities):
                with pytest.raises(dataclasses.FrozenInstanceError):
                    report.driver = "another"  # type: ignore[misc]
            assert ring.capabilities.kernel == os.uname().release
        assert ring.statistics() == counters
        assert "closed" in repr(ring)
        client.close()


@pytest.mark.anyio
async def test_never_copies_and_always_copies_what_it_should(holding_driver: Any) -> None:
    # The peer takes nothing, so zero-copied sends are held, and copied ones are not.
    for policy, size, held in [
        ("always", 100, 1),
        ("never", MIB, 0),
        ("auto", MIB, 1),
        ("auto", 1000, 0),
    ]:
        with tcp_pair(stalled=True) as (client, peer):
            client.send(bytes(2 * MIB))
            async with zc_anyio.open_ring(driver=holding_driver, threshold=4096) as ring:
                async with zc_anyio.send_group(zero_copy=policy) as group:  # type: ignore[arg-type]
                    await group.send(client, bytearray(size))
                    group.flush()
                    await until(lambda: unsent(ring) == 0)
                    assert (policy, size, ring.statistics().held) == (policy, size, held)
                    await anyio.to_thread.run_sync(receive_exactly, peer, 2 * MIB + size)


# --- too small ---


@pytest.mark.anyio
@pytest.mark.parametrize("entries", [1, 2])
async def test_a_ring_much_smaller_than_what_is_sent(driver: Any, entries: int) -> None:
    with ExitStack() as stack:
        pairs = [stack.enter_context(tcp_pair()) for _ in range(40)]
        readers = [stack.enter_context(Reader(peer)) for _, peer in pairs]
        async with zc_anyio.open_ring(driver=driver, entries=entries) as ring:
            async with zc_anyio.send_group() as group:
                for number in range(20):
                    for client, _ in pairs:
                        await group.send(client, bytearray([number]) * 20_000)
                await group.broadcast([client for client, _ in pairs], b"to all")
            counters = ring.statistics()
            assert counters.sends == 840
            assert (counters.queued, counters.in_flight, counters.held) == (0, 0, 0)
        expected = b"".join(bytes([number]) * 20_000 for number in range(20)) + b"to all"
        for (client, _), reader in zip(pairs, readers, strict=True):
            client.shutdown(socket.SHUT_WR)
            assert await reader.all() == expected


def overflowed(ring: zc_anyio.Ring, number: int) -> bool:
    """Whether completions of an io_uring wait outside its full completion queue."""
    text = Path(f"/proc/self/fdinfo/{number}").read_text(encoding="ascii")
    return "user_data" in text.partition("CqOverflowList:")[2]


@pytest.mark.anyio
async def test_a_completion_queue_that_overflows(holding_driver: Any) -> None:
    if holding_driver != "io_uring":
        pytest.skip("only io_uring has a completion queue")
    data = [bytearray(200_000) for _ in range(30)]
    with ExitStack() as stack:
        pairs = [stack.enter_context(tcp_pair(stalled=True)) for _ in data]
        before = open_descriptors()
        async with zc_anyio.open_ring(driver=holding_driver, entries=1) as ring:
            (number,) = (
                n
                for n, what in open_descriptors().items()
                if what == "anon_inode:[io_uring]" and n not in before
            )
            async with zc_anyio.send_group() as group:
                for (client, _), buffer in zip(pairs, data, strict=True):
                    client.send(bytes(MIB))
                    await group.send(client, buffer)
                generation = group.flush()
                await until_held(ring, 30)
                # All notifications come while nobody reaps, and there is room for two.
                for _, peer in pairs:
                    receive_exactly(peer, MIB + 200_000)
                until_blocking(lambda: overflowed(ring, number), "an overflow")
                with anyio.fail_after(10):
                    await generation.wait_released()
            for buffer in data:
                buffer.append(1)


# --- the end ---


@pytest.mark.anyio
async def test_the_end_waits_for_what_was_left_to_the_ring(holding_driver: Any) -> None:
    data = os.urandom(MIB)
    with tcp_pair(stalled=True) as (client, peer):
        async with zc_anyio.open_ring(driver=holding_driver, drain_timeout=30) as ring:
            with anyio.CancelScope() as scope:
                async with zc_anyio.send_group() as group:
                    await group.send(client, data)
                    await until_held(ring, 1)
                    scope.cancel()
                    await anyio.sleep_forever()
            reader = Reader(peer)
            with reader:
                await until(lambda: reader.size == MIB)
        client.shutdown(socket.SHUT_WR)
        assert bytes(reader._received) == data


@pytest.mark.anyio
async def test_the_end_of_the_ring_comes_while_a_task_still_sends(driver: Any) -> None:
    # The body fails while a group in a task of its own is busy.
    data = bytearray(MIB)

    async def send() -> None:
        async with zc_anyio.send_group() as group:
            while True:
                await group.send(client, data)

    with parked_pair() as (client, _):
        with pytest.raises(BaseExceptionGroup) as caught:
            async with zc_anyio.open_ring(driver=driver) as ring, anyio.create_task_group() as tg:
                tg.start_soon(send)
                await until_parked(ring)
                raise LookupError("of the body")
        assert caught.value.subgroup(LookupError) is not None
        data.append(1)


@pytest.mark.anyio
async def test_an_exception_in_the_body_of_a_ring(driver: Any) -> None:
    error = LookupError("of the body")
    with pytest.raises(LookupError) as caught:
        async with zc_anyio.open_ring(driver=driver):
            raise error
    assert caught.value is error


@pytest.mark.anyio
async def test_many_rings_one_after_the_other(driver: Any, rings: list[zc_anyio.Ring]) -> None:
    with tcp_pair() as (client, peer):
        for number in range(50):
            async with zc_anyio.open_ring(driver=driver):
                async with zc_anyio.send_group() as group:
                    await group.send(client, b"%02d" % number)
        assert receive_exactly(peer, 100) == b"".join(b"%02d" % n for n in range(50))


@pytest.mark.anyio
async def test_an_idle_ring_uses_no_processor_time(driver: Any) -> None:
    with tcp_pair(stalled=True) as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, bytes(MIB))
                await until(lambda: unsent(ring) == 0)
                # A send is held meanwhile, or was copied; in both cases nothing has to be done.
                before = os.times()
                await anyio.sleep(0.3)
                used = os.times()
                assert used.user + used.system - before.user - before.system < 0.15
                receive_exactly(peer, MIB)
            await until_idle(ring)


@pytest.mark.anyio
async def test_a_turn_that_fails_ends_the_ring(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Any:
        raise OSError(errno.EIO, "as if the kernel refused")

    with tcp_pair() as (client, peer):
        with pytest.raises(ExceptionGroup) as caught:
            async with zc_anyio.open_ring(driver=driver) as ring:
                async with zc_anyio.send_group() as group:
                    with monkeypatch.context() as patch:
                        patch.setattr(ring._native, "turn", fail)
                        group.send_nowait(client, bytearray(b"taken"))
                        await anyio.sleep(LIMIT)
        (error,) = caught.value.exceptions
        assert isinstance(error, OSError)
        assert error.errno == errno.EIO
        # Leaving was a cancellation, so what nobody had taken is not sent.
        client.close()
        assert receive_to_end(peer) == b""


@pytest.mark.anyio
async def test_a_submission_without_memory_is_tried_again_now_and_then(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = 0

    def again() -> list[int]:
        nonlocal turns
        turns += 1
        return [AGAIN, 0, 0, 0]

    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            with monkeypatch.context() as patch:
                patch.setattr(ring._native, "turn", again)
                group.send_nowait(client, b"late")
                begun = time.monotonic()
                await anyio.sleep(100 * RETRY_SECONDS)
                await until(lambda: turns > 2)
                pauses = (time.monotonic() - begun) / RETRY_SECONDS
            # One because it was asked for, one by the submitter at once, and one after each pause.
            assert turns <= 10 + pauses
        assert receive_exactly(peer, 4) == b"late"
