"""Sending files: which bytes arrive, and what is refused."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.support.backends import one_backend
from tests.support.peers import (
    ChildReader,
    Reader,
    parked_pair,
    receive_exactly,
    receive_to_end,
    tcp_pair,
)
from tests.support.waiting import LIMIT, until, until_held, until_parked

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

PAGE = os.sysconf("SC_PAGESIZE")
SIZE = 9_000_001
GIBIBYTE = 1 << 30
ODD = 4097


@pytest.fixture(scope="module")
def content() -> bytes:
    return random.Random(1).randbytes(SIZE)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> Path:
    made = tmp_path_factory.mktemp("files") / "file"
    made.write_bytes(content)
    return made


@pytest.fixture
def cut(tmp_path: Path, content: bytes) -> Path:
    """A file that a test may truncate."""
    made = tmp_path / "cut"
    made.write_bytes(content)
    return made


@contextmanager
def unix_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        right.settimeout(LIMIT)
        yield left, right


# --- what arrives ---


@pytest.mark.parametrize("over", ["tcp", "unix"])
async def test_parts_of_a_file(driver: str, over: str, path: Path, content: bytes) -> None:
    parts = [
        (0, None),
        (1, None),
        (0, 1),
        (PAGE - 1, PAGE + 2),
        (PAGE, PAGE),
        (3, 8_500_000),
        ((4 << 20) - 1, (4 << 20) + 2),
        (SIZE - 1, 1),
        (SIZE, None),
        (SIZE + PAGE, None),
        (17, 0),
    ]
    expected = b""
    with unix_pair() if over == "unix" else tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                for offset, count in parts:
                    piece = content[offset:][:count]
                    sent = await group.send_file(client, path, offset=offset, count=count)
                    assert sent == len(piece)
                    await group.send(client, b"|")
                    expected += piece + b"|"
            assert ring.statistics().failed == 0
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == expected


async def test_a_path_a_file_object_or_a_descriptor(
    driver: str, path: Path, content: bytes
) -> None:
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            await group.send_file(client, path, count=1000)
            await group.send_file(client, str(path), count=1000)
            with path.open("rb") as file:
                file.seek(500)
                await group.send_file(client, file, count=1000)
                assert file.tell() == 500
            with path.open("rb", buffering=0) as raw:
                await group.send_file(client, raw, offset=1, count=1000)
            descriptor = os.open(path, os.O_RDONLY)
            os.lseek(descriptor, 77, os.SEEK_SET)
            await group.send_file(client, descriptor, offset=2, count=1000)
            assert os.lseek(descriptor, 0, os.SEEK_CUR) == 77
            os.close(descriptor)
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == content[:1000] * 3 + content[1:1001] + content[2:1002]


async def test_files_and_buffers_leave_in_the_order_of_the_calls(
    driver: str, path: Path, content: bytes
) -> None:
    expected = b""
    with tcp_pair(receive_buffer=64 << 10) as (client, peer), Reader(peer, chunk=9999) as reader:
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            for number in range(20):
                await group.send(client, b"small")
                await group.send_file(client, path, offset=number * 1000, count=20_001)
                await group.send(client, content[:30_000])
                expected += b"small" + content[number * 1000 :][:20_001] + content[:30_000]
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == expected


async def test_the_descriptor_and_the_file_may_go_while_it_is_held(
    holding_driver: str, cut: Path, content: bytes
) -> None:
    with tcp_pair(stalled=True) as (client, peer):
        async with zc_anyio.open_ring(driver=holding_driver, zero_copy="always") as ring:
            async with zc_anyio.send_group() as group:
                with cut.open("rb") as file:
                    await group.send_file(client, file, count=1 << 20)
                cut.unlink()
                await until_held(ring, 1)
                assert receive_exactly(peer, 1 << 20) == content[: 1 << 20]


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int, str]]:
    """A gibibyte with three specks of data, and what ``sendfile`` makes of its greater part."""
    file = tmp_path_factory.mktemp("sparse") / "file"
    with file.open("wb") as writing:
        for offset in (4096, 123_456_789, GIBIBYTE - 1000):
            writing.seek(offset)
            writing.write(b"data" * 250)
    with tcp_pair() as (client, peer), ChildReader(peer, chunk=1 << 20) as child:
        client.setblocking(True)
        with file.open("rb") as reading:
            client.sendfile(reading, ODD, GIBIBYTE - 2 * ODD)
        client.close()
        size, digest = anyio.run(child.result)
    yield file, size, digest
    file.unlink()


@pytest.mark.timeout(120)
@one_backend
async def test_a_sparse_gibibyte_as_sendfile_on_asyncio(
    driver: str, sparse: tuple[Path, int, str]
) -> None:
    file, size, digest = sparse
    assert size == GIBIBYTE - 2 * ODD
    with tcp_pair() as (client, peer), ChildReader(peer, chunk=1 << 20) as child:
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            assert await group.send_file(client, file, offset=ODD, count=size) == size
        client.close()
        assert await child.result() == (size, digest)


async def test_the_bytes_pass_through_no_python_object(
    driver: str, path: Path, content: bytes
) -> None:
    with tcp_pair() as (client, peer), ChildReader(peer, chunk=1 << 20) as child:
        async with zc_anyio.open_ring(driver=driver):
            tracemalloc.start()
            try:
                async with zc_anyio.send_group() as group:
                    await group.send_file(client, path)
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        client.close()
        assert await child.result() == (SIZE, hashlib.sha256(content).hexdigest())
    assert peak < 1 << 20


# --- truncated meanwhile ---


@contextmanager
def a_failure(*numbers: int) -> Iterator[None]:
    """Expect one failed socket, told by the call or when the group is left."""
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
    # Of the page that the end is in, the kernel sends the rest as zeros.
    whole = min(len(received), end)
    assert received[:whole] == content[:whole]


async def cut_when_parked(ring: zc_anyio.Ring, file: Path, end: int, reader: Reader) -> None:
    await until(lambda: ring.statistics().in_flight or ring.statistics().queued)
    await anyio.sleep(0.02)
    os.truncate(file, end)
    reader.__enter__()


async def send_until_broken(group: zc_anyio.SendGroup, client: socket.socket, file: Path) -> None:
    await group.send_file(client, file)


async def test_truncated_within_its_only_page(driver: str, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_bytes(b"s" * 4000)
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            with a_failure(errno.EIO):
                async with zc_anyio.send_group() as group:
                    await group.send(client, bytes(1 << 20))
                    await until_parked(ring)
                    await group.send_file(client, small)
                    os.truncate(small, 10)
                    received = await anyio.to_thread.run_sync(receive_exactly, peer, (1 << 20) + 10)
    assert received == bytes(1 << 20) + b"s" * 10


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
async def test_what_is_no_regular_file(driver: str, tmp_path: Path, path: Path, kind: str) -> None:
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
