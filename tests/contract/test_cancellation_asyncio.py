"""asyncio's own cancellation, which interrupts whatever a task awaits, shielded by anyio or not."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.support.backends import only_asyncio
from tests.support.peers import MORE_THAN_FITS, parked_pair, tcp_pair
from tests.support.waiting import until_held, until_parked

MIB = 1 << 20
BOUND = 2.0


@pytest.mark.anyio
@only_asyncio
@pytest.mark.parametrize("state", ["parked", "held"])
async def test_a_second_cancellation_that_no_scope_shields_from(
    holding_driver: Any, state: str
) -> None:
    data = bytearray(MIB if state == "held" else MORE_THAN_FITS)

    async def body() -> None:
        async with zc_anyio.send_group(ring=ring, window=MORE_THAN_FITS) as group:
            await group.send(client, data)
            await anyio.sleep_forever()

    with tcp_pair(stalled=True) if state == "held" else parked_pair() as (client, _peer):
        async with zc_anyio.open_ring(driver=holding_driver) as ring:
            task = asyncio.ensure_future(body())
            await (until_held(ring, 1) if state == "held" else until_parked(ring))
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            with anyio.fail_after(BOUND), pytest.raises(asyncio.CancelledError):
                await task
            data.append(1)


@pytest.mark.anyio
@only_asyncio
async def test_cancelling_the_end_of_a_ring_that_no_scope_shields_from(
    holding_driver: Any,
) -> None:
    data = os.urandom(MIB)
    before = sys.getrefcount(data)

    async def body() -> None:
        async with zc_anyio.open_ring(driver=holding_driver, drain_timeout=0.2):
            async with zc_anyio.send_group() as group:
                await group.send(client, data)
                started.set()
                await anyio.sleep_forever()

    started = anyio.Event()
    with tcp_pair(stalled=True) as (client, _peer):
        task = asyncio.ensure_future(body())
        await started.wait()
        for _ in range(4):
            task.cancel()
            await asyncio.sleep(0.02)
        with anyio.fail_after(BOUND), pytest.raises(asyncio.CancelledError):
            await task
    assert sys.getrefcount(data) == before
