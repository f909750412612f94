"""The contract of trio's streams, by trio's own checks."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

import zc_anyio
from tests.streams.pairs import clog, stream_pair

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
            await clog(stream)
        return zc_anyio.as_trio_stream(one), zc_anyio.as_trio_stream(other)

    async with zc_anyio.open_ring(driver=driver, zero_copy=zero_copy):
        await trio.testing.check_half_closeable_stream(maker, clogged)
