"""Sending files: truncated meanwhile, refused, closed, cancelled."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.features.conftest import SIZE
from tests.support.peers import (
    Reader,
    parked_pair,
    receive_exactly,
    receive_to_end,
    tcp_pair,
)
from tests.support.waiting import LIMIT, until, until_parked

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

PAGE = os.sysconf("SC_PAGESIZE")


# --- truncated meanwhile ---


@contextmanager
def a_failure(*numbers: int) -> Iterator[None]:
    """Expect one failed socket, reported by the call or when the group is left."""
    with pytest.raises((OSError, anyio.BrokenResourceError, ExceptionGroup)) as caught:
        yield
    error: BaseException = caught.value
    if isinstance(error, ExceptionGroup):
        assert len(error.exceptions) == 1
        error = error.exceptions[0]
    if isinstance(error, anyio.BrokenResourceError):
        assert error.__cause__ is not None
        error = error.__cause__
    assert isinstance(error, OSError)
    assert error.errno in numbers


@pytest.mark.parametrize("end", [0, 2 * PAGE, 500_001])
async def test_truncated_while_pieces_of_it_wait(
    driver: str, cut: Path, content: bytes, end: int
) -> None:
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            reader = Reader(peer)
            with a_failure(errno.EIO, errno.EFAULT):
                async with (
                    zc_anyio.send_group(window=4 << 20) as group,
                    anyio.create_task_group() as tg,
                ):
                    tg.start_soon(cut_when_parked, ring, cut, end, reader)
                    await send_until_broken(group, client, cut)
            with pytest.raises(anyio.BrokenResourceError):
                async with zc_anyio.send_group() as group:
                    for _ in range(3):
                        await group.send(client, b"after a hole")
                        await group.flush().wait_released()
        client.close()
        received = await reader.all()
        reader.__exit__(None, None, None)
    assert len(received) < SIZE
    # The kernel sends zeros for the rest of the page that the end is in.
    whole = min(len(received), end)
    assert received[:whole] == content[:whole]


async def cut_when_parked(ring: zc_anyio.Ring, file: Path, end: int, reader: Reader) -> None:
    await until(lambda: ring.statistics().in_flight or ring.statistics().queued)
    await anyio.sleep(0.02)
    os.truncate(file, end)
    reader.__enter__()


async def send_until_broken(group: zc_anyio.SendGroup, client: socket.socket, file: Path) -> None:
    await group.send_file(client, file)


async def test_truncated_within_its_last_page(driver: str, tmp_path: Path) -> None:
    file, end = tmp_path / "file", 24 * PAGE + 10
    file.write_bytes(b"s" * (end + 1000))
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            with a_failure(errno.EIO):
                async with zc_anyio.send_group() as group:
                    await group.send(client, bytes(1 << 20))
                    await until_parked(ring)
                    await group.send_file(client, file)
                    os.truncate(file, end)
                    size = (1 << 20) + end
                    received = await anyio.to_thread.run_sync(receive_exactly, peer, size)
    assert received == bytes(1 << 20) + b"s" * end


async def test_a_small_file_is_sent_as_it_was_when_the_call_returned(
    driver: str, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.write_bytes(b"s" * 4000)
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, bytes(1 << 20))
                await until_parked(ring)
                await group.send_file(client, small)
                os.truncate(small, 10)
                size = (1 << 20) + 4000
                received = await anyio.to_thread.run_sync(receive_exactly, peer, size)
    assert received == bytes(1 << 20) + b"s" * 4000


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "not-cached"])
async def test_a_small_file_that_shrinks_while_it_is_read(
    driver: str, tmp_path: Path, cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small"
    small.write_bytes(b"s" * 4000)
    real = os.preadv

    def preadv(fd: int, buffers: list[bytearray], offset: int, flags: int) -> int:
        os.truncate(small, 10)
        if not cached:
            raise BlockingIOError(errno.EAGAIN, "not in memory")
        return real(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", preadv)
    with tcp_pair() as (client, _):
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            with pytest.raises(OSError) as caught:
                await group.send_file(client, small)
            assert caught.value.errno == errno.EIO
            assert group.statistics().sends == 0


# --- refused ---


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"offset": -1}, ValueError),
        ({"count": -1}, ValueError),
        ({"count": SIZE + 1}, ValueError),
        ({"offset": 1, "count": SIZE}, ValueError),
        ({"offset": SIZE + 1, "count": 1}, ValueError),
    ],
    ids=str,
)
async def test_a_part_that_is_not_within_the_file(
    driver: str, path: Path, arguments: dict[str, int], error: type[Exception]
) -> None:
    with tcp_pair() as (client, _):
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            with pytest.raises(error):
                await group.send_file(client, path, **arguments)
            assert group.statistics().sends == 0


async def test_a_fifo_is_refused_and_not_waited_for(driver: str, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    waited = False

    def rescue() -> None:
        nonlocal waited
        waited = True
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))

    timer = threading.Timer(LIMIT / 4, rescue)
    timer.start()
    with tcp_pair() as (client, _):
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            with pytest.raises(OSError):
                await group.send_file(client, fifo)
    timer.cancel()
    timer.join()
    assert not waited


@pytest.mark.parametrize(
    "kind", ["missing", "directory", "device", "pipe", "socket", "closed", "bytes", "none"]
)
async def test_something_that_is_not_a_regular_file(
    driver: str, tmp_path: Path, path: Path, kind: str
) -> None:
    with tcp_pair() as (client, peer):
        reading, writing = os.pipe()
        closed = path.open("rb")
        closed.close()
        cases: dict[str, tuple[Any, type[Exception]]] = {
            "missing": (tmp_path / "missing", FileNotFoundError),
            "directory": (tmp_path, OSError),
            "device": ("/dev/zero", OSError),
            "pipe": (reading, OSError),
            "socket": (peer, OSError),
            "closed": (closed, ValueError),
            "bytes": (os.fsencode(path), TypeError),
            "none": (None, TypeError),
        }
        file, error = cases[kind]
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            with pytest.raises(error):
                await group.send_file(client, file)
            assert group.statistics().sends == 0
        os.close(reading)
        os.close(writing)


async def test_an_empty_file_sends_nothing(driver: str, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                assert await group.send_file(client, empty) == 0
                assert await group.send_file(client, empty, count=0) == 0
            assert ring.statistics().sends == 0
        client.close()
        assert receive_to_end(peer) == b""


async def test_closed_streams_and_left_groups(driver: str, path: Path) -> None:
    with tcp_pair() as (client, _), tcp_pair() as (other, _):
        async with zc_anyio.open_ring(driver=driver):
            async with zc_anyio.send_group() as group:
                client.close()
                with pytest.raises(anyio.ClosedResourceError):
                    await group.send_file(client, path)
                with pytest.raises(TypeError):
                    await group.send_file("stream", path)
            with pytest.raises(anyio.ClosedResourceError):
                await group.send_file(other, path)


async def test_cancelled_midway(driver: str, path: Path, content: bytes) -> None:
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            with anyio.fail_after(LIMIT), anyio.CancelScope() as scope:
                async with (
                    zc_anyio.send_group(window=4 << 20) as group,
                    anyio.create_task_group() as tg,
                ):
                    tg.start_soon(group.send_file, client, path)
                    await until_parked(ring)
                    scope.cancel()
            assert scope.cancelled_caught
            with pytest.raises(anyio.BrokenResourceError):
                async with zc_anyio.send_group() as group:
                    await group.send(client, b"more")
            with Reader(peer) as reader:
                client.close()
                received = await reader.all()
    assert len(received) < SIZE
    assert content.startswith(received)
