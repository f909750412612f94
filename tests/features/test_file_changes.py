"""Files that change between two sends: they are sent as they are, from whatever map is kept."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

import zc_anyio
from tests.features.memory import maps_of
from tests.support.peers import receive_exactly, tcp_pair
from zc_anyio._native._zc import ffi, lib

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

# Two pieces; no multiple of a page.
SIZE = 5_000_001
PAGE = os.sysconf("SC_PAGESIZE")


def content(seed: int) -> bytes:
    return random.Random(seed).randbytes(SIZE)


def opened(path: Path) -> int:
    """How many descriptors of a file this process has."""
    found = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found += str(descriptor.readlink()).removesuffix(" (deleted)") == str(path)
        except FileNotFoundError:
            continue
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "file"
    made.write_bytes(content(1))
    return made


async def send(
    client: socket.socket,
    peer: socket.socket,
    path: Path,
    offset: int = 0,
    count: int | None = None,
) -> bytes:
    """Send a part of a file in a group of its own, and return what has arrived."""
    async with zc_anyio.send_group() as group:
        total = await group.send_file(client, path, offset=offset, count=count)
        return await anyio.to_thread.run_sync(receive_exactly, peer, total)


def replace(path: Path) -> bytes:
    new = path.with_name("new")
    new.write_bytes(content(2))
    new.replace(path)
    return content(2)


def rewrite_unnoticed(path: Path) -> bytes:
    """As a database does; nothing but the bytes is another."""
    status = path.stat()
    with path.open("r+b") as file:
        file.write(content(3))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return content(3)


def grow(path: Path) -> bytes:
    with path.open("ab") as file:
        file.write(b"more" * 3000)
    return content(1) + b"more" * 3000


def shorten(path: Path) -> bytes:
    os.truncate(path, 12_345)
    return content(1)[:12_345]


def shorten_and_grow(path: Path) -> bytes:
    os.truncate(path, 12_345)
    os.truncate(path, SIZE)
    return content(1)[:12_345] + bytes(SIZE - 12_345)


def empty(path: Path) -> bytes:
    os.truncate(path, 0)
    return b""


def delete_and_write(path: Path) -> bytes:
    path.unlink()
    path.write_bytes(content(4))
    return content(4)


CHANGES: dict[str, Callable[[Path], bytes]] = {
    "replaced": replace,
    "rewritten": rewrite_unnoticed,
    "grown": grow,
    "shortened": shorten,
    "a hole": shorten_and_grow,
    "emptied": empty,
    "written anew": delete_and_write,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_a_file_that_has_changed_is_sent_as_it_is(
    driver: Any, path: Path, change: Callable[[Path], bytes]
) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver):
            assert await send(client, peer, path) == content(1)
            expected = change(path)
            for _ in range(2):
                assert await send(client, peer, path) == expected
            # That of a file whose place another has taken is dropped later.
            assert maps_of(path) <= 2


async def test_a_file_is_sent_while_a_pool_is_open(driver: Any, path: Path) -> None:
    with tcp_pair() as (client, peer):
        async with (
            zc_anyio.open_ring(driver=driver),
            zc_anyio.open_buffer_pool(buffer_size=PAGE, count=2) as pool,
        ):
            async with zc_anyio.send_group() as group:
                view = await pool.acquire()
                view[:] = bytes(PAGE)
                await group.send(client, view)
                await group.send_file(client, path, count=100_000)
                await group.send(client, b"and more")
                group.flush()
                received = await anyio.to_thread.run_sync(receive_exactly, peer, PAGE + 100_008)
            assert received == bytes(PAGE) + content(1)[:100_000] + b"and more"
            assert pool.free == 2


async def test_any_part_is_sent_from_the_map_of_the_whole(driver: Any, path: Path) -> None:
    expected = content(1)
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver):
            assert await send(client, peer, path) == expected
            for offset in (0, 1, PAGE - 1, (4 << 20) - 20_000, SIZE - 40_000, SIZE - 1):
                for most in (1, 2 * PAGE + 1, 40_000):
                    count = min(most, SIZE - offset)
                    part = await send(client, peer, path, offset, count)
                    assert part == expected[offset : offset + count]
                    assert (maps_of(path), opened(path)) == (1, 1)
    assert (maps_of(path), opened(path)) == (0, 0)


def test_the_native_part_refuses_wrong_maps(tmp_path: Path) -> None:
    out = ffi.new("char **")
    with (tmp_path / "file").open("wb") as file:
        assert lib.zc_file_map(file.fileno(), 0, out) < 0
        assert lib.zc_file_map(file.fileno(), PAGE, out) < 0, "it is not open for reading"
    assert lib.zc_file_map(-1, PAGE, out) < 0
