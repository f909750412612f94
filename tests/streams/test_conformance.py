"""The contract of trio's streams, by trio's own checks."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
import trio
import trio.testing

import zc_anyio
from tests.streams.pairs import stream_pair

ZERO_COPY = ["auto", "always", "never"]


@pytest.mark.trio
@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("zero_copy", ZERO_COPY)
async def test_trios_own_check(driver: Any, zero_copy: Any, kind: str) -> None:
    async def maker() -> tuple[trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]:
        one, other = await stream_pair(kind)
        return zc_anyio.as_trio_stream(one), zc_anyio.as_trio_stream(other)

    async def clogged() -> tuple[trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]:
        one, other = await stream_pair(kind, small=True)
        for stream in (one, other):
            # Down to the last byte of the window, whichever way the bytes take.
            for size in (1 << 20, 1 << 16, 1 << 12, 1 << 8, 1):
                await send_until_blocked(stream, bytes(size))
        return zc_anyio.as_trio_stream(one), zc_anyio.as_trio_stream(other)

    async with zc_anyio.open_ring(driver=driver, zero_copy=zero_copy):
        await trio.testing.check_half_closeable_stream(maker, clogged)


async def send_until_blocked(stream: zc_anyio.ZeroCopySocketStream, data: bytes) -> None:
    async with anyio.create_task_group() as tasks:
        blocked = False

        async def send() -> None:
            while not blocked:
                await stream.send(data)

        tasks.start_soon(send)
        await anyio.wait_all_tasks_blocked()
        blocked = True
        tasks.cancel_scope.cancel()
