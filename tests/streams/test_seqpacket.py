"""UNIX sockets that keep messages apart."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest

import zc_anyio
from tests.streams.pairs import settle

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        "kind" not in signature(anyio.connect_unix).parameters,
        reason="anyio 4.16 or newer is missing",
    ),
]

KIND: Any = socket.SOCK_SEQPACKET


@asynccontextmanager
async def seqpackets(
    path: Path,
) -> AsyncIterator[tuple[anyio.abc.UNIXSocketStream, anyio.abc.UNIXSocketStream]]:
    accepted: list[Any] = []
    async with await zc_anyio.create_unix_listener(path, mode=0o600, kind=KIND) as listener:
        assert path.stat().st_mode & 0o777 == 0o600
        async with anyio.create_task_group() as tasks:

            async def accept() -> None:
                accepted.append(await listener.accept())

            tasks.start_soon(accept)
            one = await zc_anyio.connect_unix(path, KIND)
    async with one, accepted[0] as other:
        yield one, other


async def test_each_send_is_a_message(driver: Any, tmp_path: Path) -> None:
    async with (
        zc_anyio.open_ring(driver=driver),
        seqpackets(tmp_path / "socket") as (one, other),
    ):
        assert isinstance(one, anyio.abc.UNIXSocketStream)
        sizes = (1, 1000, 65_536, 3, 100_000)
        for size in sizes:
            await one.send(bytes([size % 251]) * size)
        changeable = bytearray(b"changeable")
        await one.send(changeable)
        changeable[:] = b"overwritten"
        await one.send(b"")
        await one.send_eof()
        for size in sizes:
            assert await other.receive(200_000) == bytes([size % 251]) * size
        assert await other.receive() == b"changeable"
        with pytest.raises(anyio.EndOfStream):
            await other.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await one.send(b"x")
        # What does not fit into the call is lost, as with anyio.
        await other.send(b"longer than that")
        assert await one.receive(6) == b"longer"
        await other.send(b"next")
        assert await one.receive() == b"next"


async def test_order_while_the_peer_is_slow(driver: Any, tmp_path: Path) -> None:
    async with (
        zc_anyio.open_ring(driver=driver),
        seqpackets(tmp_path / "socket") as (one, other),
    ):
        sent = 0

        async def send() -> None:
            nonlocal sent
            for number in range(500):
                await one.send(b"%d" % number * 500)
                sent += 1
            await one.send_eof()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            await settle()
            await settle()
            for number in range(500):
                assert await other.receive() == b"%d" % number * 500
        assert sent == 500


async def test_cancelling_a_send_that_waits(driver: Any, tmp_path: Path) -> None:
    async with (
        zc_anyio.open_ring(driver=driver),
        seqpackets(tmp_path / "socket") as (one, other),
    ):
        accepted = 0
        with anyio.move_on_after(0.05) as scope:
            while True:
                await one.send(b"%d" % accepted)
                accepted += 1
        assert scope.cancelled_caught
        for number in range(accepted):
            assert await other.receive() == b"%d" % number
        await one.send(b"after")
        assert await other.receive() == b"after"


async def test_failures(driver: Any, tmp_path: Path) -> None:
    async with (
        zc_anyio.open_ring(driver=driver),
        seqpackets(tmp_path / "socket") as (one, other),
    ):
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await one.send(bytes(64 << 20))
        assert isinstance(caught.value.__cause__, OSError)
        with pytest.raises(TypeError):
            await one.send("text")  # type: ignore[arg-type]
        await one.send(b"goes on")
        assert await other.receive() == b"goes on"
        await other.aclose()
        with pytest.raises(anyio.BrokenResourceError):
            # Until the ring has given up its duplicate of the other end.
            while True:
                await one.send(b"x")
        await one.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await one.send(b"x")


async def test_a_group_refuses_it(driver: Any, tmp_path: Path) -> None:
    async with (
        zc_anyio.open_ring(driver=driver) as ring,
        seqpackets(tmp_path / "socket") as (one, other),
    ):
        async with zc_anyio.send_group() as group:
            with pytest.raises(TypeError, match="only stream and datagram sockets"):
                await group.send(one, b"x")
        assert ring.statistics().sends == 0
        await one.send(b"y")
        assert await other.receive() == b"y"


async def test_descriptors_and_taking_over(driver: Any, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with zc_anyio.open_ring(driver=driver):
        async with await anyio.create_unix_listener(path, kind=KIND) as listener:
            connected = await anyio.connect_unix(path, KIND)
            accepted = await listener.accept()
        async with (
            await zc_anyio.wrap_stream(connected) as one,
            await zc_anyio.wrap_stream(accepted) as other,
        ):
            assert isinstance(one, anyio.abc.UNIXSocketStream)
            assert isinstance(other, anyio.abc.UNIXSocketStream)
            reading, writing = os.pipe()
            await one.send(b"before")
            await one.send_fds(b"with", [writing])
            os.close(writing)
            assert await other.receive() == b"before"
            message, (received,) = await other.receive_fds(100, 1)
            assert message == b"with"
            os.write(received, b"through")
            os.close(received)
            assert os.read(reading, 100) == b"through"
            os.close(reading)
