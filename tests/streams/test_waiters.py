"""What one task waits for and another wakes it by, on each event loop."""

from __future__ import annotations

import anyio
import pytest

from tests.streams.pairs import settle
from zc_anyio._base.loops import Waiter, running_loop

pytestmark = pytest.mark.anyio


async def wait(waiter: Waiter, woken: list[str]) -> None:
    await waiter
    woken.append("woken")


async def test_a_task_sleeps_until_it_is_woken() -> None:
    loop, woken = running_loop(), list[str]()
    waiter = loop.new_waiter()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, waiter, woken)
        await settle()
        assert not woken
        loop.wake(waiter)
        loop.wake(waiter)
        await settle()
        assert woken == ["woken"]


async def test_what_is_set_before_and_more_than_once_wakes_once() -> None:
    loop, woken = running_loop(), list[str]()
    waiter = loop.new_waiter()
    loop.wake(waiter)
    loop.wake(waiter)
    with anyio.fail_after(10):
        await wait(waiter, woken)
    assert woken == ["woken"]
    loop.wake(waiter)
    await settle()


async def test_setting_after_the_wait_was_cancelled_wakes_nobody() -> None:
    loop = running_loop()
    waiter = loop.new_waiter()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await waiter
    assert scope.cancelled_caught
    loop.wake(waiter)
    # A wake-up for the wait that was cancelled would end this one.
    with anyio.move_on_after(0.02) as other:
        await anyio.sleep_forever()
    assert other.cancelled_caught


async def test_setting_and_cancelling_at_once() -> None:
    loop, woken = running_loop(), list[str]()
    waiter = loop.new_waiter()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, waiter, woken)
        await settle()
        loop.wake(waiter)
        tasks.cancel_scope.cancel()
    with anyio.move_on_after(0.02) as other:
        await anyio.sleep_forever()
    assert other.cancelled_caught
