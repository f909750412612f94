"""Sending files: which bytes arrive, and what is refused."""

from __future__ import annotations

import hashlib
import os
import socket
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

import zc_anyio
from tests.features.conftest import SIZE
from tests.support.backends import one_backend
from tests.support.peers import (
    ChildReader,
    Reader,
    receive_exactly,
    tcp_pair,
)
from tests.support.waiting import LIMIT, until_held

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

PAGE = os.sysconf("SC_PAGESIZE")
GIBIBYTE = 1 << 30
ODD = 4097


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
        async with zc_anyio.open_ring(
            driver=holding_driver, zero_copy="always", threshold=0
        ) as ring:
            async with zc_anyio.send_group() as group:
                with cut.open("rb") as file:
                    await group.send_file(client, file, count=1 << 20)
                cut.unlink()
                await until_held(ring, 1)
                assert receive_exactly(peer, 1 << 20) == content[: 1 << 20]


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int, str]]:
    """A gibibyte with three small pieces of data, and how ``sendfile`` sends most of it."""
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
