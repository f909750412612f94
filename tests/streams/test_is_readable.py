"""Streams tell whether receiving would wait, whether the ring or the socket has the bytes."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import zc_anyio
from tests.streams.pairs import connected, facing
from tests.support.peers import tcp_pair, wrap
from tests.support.waiting import until
from zc_anyio.testing import reset


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_bytes_and_the_end(driver: Any, kind: str) -> None:
    async with zc_anyio.open_ring(driver=driver), connected(kind) as (stream, peer):
        assert not stream.is_readable()
        await peer.send(b"two")
        await until(stream.is_readable)
        assert await stream.receive(2) == b"tw"
        assert stream.is_readable()
        assert await stream.receive() == b"o"
        assert not stream.is_readable()
        await peer.send_eof()
        await until(stream.is_readable)
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
        assert stream.is_readable()
        await stream.aclose()
        assert stream.is_readable()


@pytest.mark.anyio
async def test_a_reset(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver), facing() as (stream, peer):
        reset(peer)
        await until(stream.is_readable)
        with pytest.raises(anyio.BrokenResourceError):
            await stream.receive()


@pytest.mark.anyio
async def test_what_a_wrapped_stream_had_received(driver: Any) -> None:
    with tcp_pair() as (sock, peer):
        made = await wrap(sock.dup())
        peer.sendall(b"ahead")
        # On asyncio its transport takes what arrives.
        assert await made.receive(1) == b"a"
        async with zc_anyio.open_ring(driver=driver):
            async with await zc_anyio.wrap_stream(made) as stream:
                assert stream.is_readable()
                assert await stream.receive() == b"head"
                assert not stream.is_readable()
