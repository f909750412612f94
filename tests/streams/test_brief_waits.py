"""Staying awake for what comes soon: when that is done, and that nothing is lost by it."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import zc_anyio
from tests.streams.pairs import connected, facing, settle
from tests.support.backends import only_asyncio
from zc_anyio._receiving import brief_waits as _brief_waits
from zc_anyio._receiving.brief_waits import FAILURE, LARGE, TRUST, BriefWaits

LONG = 1e9


@pytest.fixture
def durations(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Choose whether each wait is short, each look is the last one, and each stall is one."""

    def set_them(*, short: float = LONG, awake: float = 0.0, stall: float = LONG) -> None:
        monkeypatch.setattr(_brief_waits, "SHORT_SECONDS", short)
        monkeypatch.setattr(_brief_waits, "AWAKE_SECONDS", awake)
        monkeypatch.setattr(_brief_waits, "STALL_SECONDS", stall)

    return set_them


SMALL = 100


def begin(waits: BriefWaits) -> bool:
    """Send, and begin to wait for the answer."""
    waits.sent = True
    return waits.begin()


def wait_asleep(waits: BriefWaits, times: int, size: int = SMALL) -> None:
    for _ in range(times):
        assert not begin(waits)
        waits.woken(size)


def test_it_is_tried_after_many_short_waits_and_not_again_when_it_was_in_vain(
    durations: Any,
) -> None:
    durations()
    waits = BriefWaits()
    for _ in range(3):
        wait_asleep(waits, TRUST)
        assert begin(waits)
        assert not waits.go_on()


def test_long_waits_count_against_it(durations: Any) -> None:
    waits = BriefWaits()
    durations(short=0.0)
    wait_asleep(waits, 3 * TRUST)
    durations()
    wait_asleep(waits, TRUST - 1)
    durations(short=0.0)
    wait_asleep(waits, 1)
    durations()
    wait_asleep(waits, 2)
    assert begin(waits)


def test_it_goes_on_while_few_of_many_tries_are_in_vain(durations: Any) -> None:
    durations()
    waits = BriefWaits()
    wait_asleep(waits, TRUST)
    for _ in range(10):
        for _ in range(FAILURE):
            assert begin(waits)
            waits.came(SMALL)
        assert begin(waits)
        assert not waits.go_on()
        waits.woken(SMALL)
    # Successes are not remembered for ever.
    for _ in range(10 * TRUST):
        assert begin(waits)
        waits.came(SMALL)
    for _ in range(TRUST // FAILURE + 1):
        assert begin(waits)
        assert not waits.go_on()
    assert not begin(waits)


@pytest.mark.parametrize("comes", [False, True])
def test_a_task_that_is_kept_from_looking_sleeps_for_long(
    durations: Any, monkeypatch: pytest.MonkeyPatch, comes: bool
) -> None:
    monkeypatch.setattr(_brief_waits, "STALLED", 5 * TRUST)
    durations()
    waits = BriefWaits()
    wait_asleep(waits, TRUST)
    assert begin(waits)
    durations(stall=0.0)
    if comes:
        waits.came(SMALL)
    else:
        assert not waits.go_on()
    wait_asleep(waits, 5 * TRUST)
    assert begin(waits)


def test_large_answers_end_it(durations: Any) -> None:
    durations()
    waits = BriefWaits()
    wait_asleep(waits, 3 * TRUST, LARGE + 1)
    wait_asleep(waits, TRUST, LARGE)
    assert begin(waits)
    waits.came(LARGE)
    assert begin(waits)
    waits.came(LARGE + 1)
    wait_asleep(waits, TRUST)
    assert begin(waits)


def test_only_answers_are_waited_for_awake(durations: Any) -> None:
    durations()
    waits = BriefWaits()
    for _ in range(3 * TRUST):
        assert not waits.begin()
        waits.woken(SMALL)
    wait_asleep(waits, TRUST)
    assert not waits.begin()
    assert begin(waits)
    waits.came(SMALL)
    assert not waits.begin()


@pytest.fixture
def always_awake(durations: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    durations(awake=LONG)
    monkeypatch.setattr(_brief_waits, "TRUST", 0)
    original = BriefWaits.begin

    def begin_anyway(waits: BriefWaits) -> bool:
        waits.sent = True
        return original(waits)

    monkeypatch.setattr(BriefWaits, "begin", begin_anyway)


def waits_of(stream: Any) -> BriefWaits:
    receiver = stream._receiver
    waits = getattr(receiver, "_direct", receiver)._waits
    assert isinstance(waits, BriefWaits)
    return waits


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_echoes_that_are_waited_for_awake(
    driver: Any, kind: str, always_awake: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = 0

    def count(_: BriefWaits, _size: int) -> None:
        nonlocal times
        times += 1

    def must_not(_: BriefWaits, _size: int) -> None:
        raise AssertionError("it fell asleep")

    monkeypatch.setattr(BriefWaits, "came", count)
    monkeypatch.setattr(BriefWaits, "woken", must_not)
    async with zc_anyio.open_ring(driver=driver), connected(kind) as (one, other):

        async def echo() -> None:
            async for chunk in other:
                await other.send(chunk)
            await other.send_eof()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(echo)
            for number in range(1, 200):
                message = bytes([number]) * number * 100
                await one.send(message)
                received = b""
                while len(received) < len(message):
                    received += await one.receive()
                assert received == message
            await one.send_eof()
            with pytest.raises(anyio.EndOfStream):
                await one.receive()
    assert times > 100


@pytest.mark.anyio
async def test_cancelling_a_task_that_waits_awake_loses_nothing(
    driver: Any, always_awake: None
) -> None:
    async with zc_anyio.open_ring(driver=driver), facing() as (stream, peer):
        received = bytearray()

        async def receive() -> None:
            received.extend(await stream.receive(3))

        for number in range(100):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive)
                await settle()
                peer.send(b"%03d" % number)
                for _ in range(number % 5):
                    await anyio.lowlevel.checkpoint()
                tasks.cancel_scope.cancel()
        peer.close()
        with pytest.raises(anyio.EndOfStream):
            while True:
                received += await stream.receive()
        assert received == b"".join(b"%03d" % number for number in range(100))


@pytest.mark.anyio
@only_asyncio
async def test_asyncios_own_cancellation_loses_nothing_either(
    driver: Any, always_awake: None
) -> None:
    async with zc_anyio.open_ring(driver=driver), facing() as (stream, peer):
        received = bytearray()

        async def receive() -> None:
            received.extend(await stream.receive(3))

        for number in range(100):
            task = asyncio.ensure_future(receive())
            await asyncio.sleep(0)
            peer.send(b"%03d" % number)
            for _ in range(number % 5):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        peer.close()
        with pytest.raises(anyio.EndOfStream):
            while True:
                received += await stream.receive()
        assert received == b"".join(b"%03d" % number for number in range(100))


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_closing_ends_a_wait_awake(driver: Any, kind: str, always_awake: None) -> None:
    async with zc_anyio.open_ring(driver=driver), connected(kind) as (one, _):

        async def receive() -> None:
            with pytest.raises(anyio.ClosedResourceError):
                await one.receive()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await settle()
            assert waits_of(one).begin()
            await one.aclose()


@pytest.mark.anyio
async def test_a_broken_connection_ends_a_wait_awake(driver: Any, always_awake: None) -> None:
    async with zc_anyio.open_ring(driver=driver), facing() as (stream, peer):

        async def receive() -> None:
            with pytest.raises(anyio.BrokenResourceError):
                await stream.receive()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(receive)
            await settle()
            await stream.send(b"unread")
            # A reset.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()


@pytest.mark.anyio
async def test_a_stream_tells_that_it_has_sent(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver), connected() as (one, other):
        for _ in range(2):
            assert not waits_of(one).sent
            await one.send(b"question")
            assert waits_of(one).sent
            assert await other.receive() == b"question"
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(one.receive)
                await settle()
                await other.send(b"answer")
            assert not waits_of(one).sent
