"""File descriptors over UNIX streams."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.streams.pairs import clog, connected, settle
from zc_anyio import ZeroCopyUNIXSocketStream


@pytest.mark.anyio
async def test_passing(driver: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    async with zc_anyio.open_ring(driver=driver), connected("unix") as (one, other):
        assert isinstance(one, ZeroCopyUNIXSocketStream)
        assert isinstance(other, ZeroCopyUNIXSocketStream)
        with (tmp_path / "file").open("rb") as file:
            await one.send_fds(b"here it is", [file, file.fileno()])
        message, fds = await other.receive_fds(100, 5)
        assert message == b"here it is"
        assert len(fds) == 2
        for fd in fds:
            assert not os.get_inheritable(fd)
            assert os.pread(fd, 100, 0) == b"content"
            os.close(fd)
        await one.send_eof()
        with pytest.raises(anyio.EndOfStream):
            await other.receive_fds(100, 5)
        with pytest.raises(anyio.ClosedResourceError):
            await one.send_fds(b"x", [0])


@pytest.mark.anyio
async def test_after_what_is_queued(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver), connected("unix", small=True) as (one, other):
        assert isinstance(one, ZeroCopyUNIXSocketStream)
        assert isinstance(other, ZeroCopyUNIXSocketStream)
        await clog(one)
        read, write = os.pipe()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.send_fds, b"with one", [read])
            await settle()
            with pytest.raises(anyio.BusyResourceError):
                await one.send(b"no")
            received, fds = b"", list[int]()
            while not fds:
                message, fds = await other.receive_fds(1 << 20, 1)
                received += message
        await one.send(b"!")
        received += await other.receive()
        assert received.endswith(b"\0with one!")
        assert set(received[:-9]) == {0}
        os.write(write, b"pipe")
        assert os.read(fds[0], 100) == b"pipe"
        for fd in (read, write, *fds):
            os.close(fd)


@pytest.mark.anyio
async def test_more_than_asked_for_are_closed(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver), connected("unix") as (one, other):
        assert isinstance(one, ZeroCopyUNIXSocketStream)
        assert isinstance(other, ZeroCopyUNIXSocketStream)
        await one.send_fds(b"three", [0, 0, 0])
        message, fds = await other.receive_fds(100, 1)
        assert message == b"three"
        assert len(fds) == 1
        os.close(fds[0])
        # Those that a plain receive meets are closed as well.
        await one.send_fds(b"lost", [0])
        assert await other.receive() == b"lost"
        # And those that come with something that was not asked for; the fixture looks for them.
        other.extra(anyio.abc.SocketAttribute.raw_socket).setsockopt(
            socket.SOL_SOCKET, socket.SO_PASSCRED, 1
        )
        await one.send_fds(b"signed", [0])
        with pytest.raises(RuntimeError, match="ancillary"):
            await other.receive_fds(100, 10)


@pytest.mark.anyio
async def test_wrong_input(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver), connected("unix") as (one, other):
        assert isinstance(one, ZeroCopyUNIXSocketStream)
        for message, fds in ((b"", [0]), (b"x", [])):
            with pytest.raises(ValueError, match="must not be empty"):
                await one.send_fds(message, fds)
        for length, most in ((-1, 1), (1, 0), ("1", 1), (1, "1"), (1.0, 1), (1, None)):
            with pytest.raises(ValueError, match="must be a"):
                await one.receive_fds(length, most)
        await other.aclose()
        with pytest.raises(anyio.BrokenResourceError):
            await one.send_fds(b"x", [0])
