"""Sending files again: maps that are kept, and files that change meanwhile."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import anyio
import pytest

import zc_anyio
from tests.features.memory import maps_of
from tests.support.needs import need_root
from tests.support.peers import Reader, tcp_pair
from zc_anyio._files import maps as maps_module
from zc_anyio._files.maps import FileMap
from zc_anyio._native.lib import FileMemory

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

MEBIBYTE = 1 << 20


# A user that has nothing here.
OTHER = 12345


def kept(ring: zc_anyio.Ring) -> list[FileMap]:
    return list(ring._maps._maps.values())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "file"
    made.write_bytes(b"a" * MEBIBYTE)
    return made


async def test_one_map_for_all_that_send_a_file(driver: str, file: Path) -> None:
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.send_file(client, file)
                [first] = kept(ring)
                with file.open("rb") as opened:
                    await group.send_file(client, opened, offset=5, count=100_000)
                await group.send_file(client, file)
                assert kept(ring) == [first]
                assert maps_of(file) == 1
        del first
        assert maps_of(file) == 0
        client.close()
        assert await reader.all() == b"a" * (2 * MEBIBYTE + 100_000)


async def test_a_file_that_changes_is_sent_as_it_is(driver: str, file: Path) -> None:
    expected = b""
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver):

            async def send() -> None:
                nonlocal expected
                expected += file.read_bytes()
                async with zc_anyio.send_group() as group:
                    await group.send_file(client, file)
                assert maps_of(file, or_replaced=False) <= 1

            await send()
            # In place: the same inode and size, and times that are put back.
            status = file.stat()
            with file.open("r+b") as opened:
                opened.write(b"b" * 5000)
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
            await send()
            os.truncate(file, 100_001)
            await send()
            os.truncate(file, 2 * MEBIBYTE)
            await send()
            other = file.with_name("other")
            other.write_bytes(b"c" * MEBIBYTE)
            other.replace(file)
            await send()
            file.unlink()
            file.write_bytes(b"d" * MEBIBYTE)
            await send()
        client.close()
        assert await reader.all() == expected


async def test_a_lock_of_the_caller_ends_with_its_descriptor(driver: str, file: Path) -> None:
    with tcp_pair() as (client, peer), Reader(peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            with file.open("rb") as locked:
                fcntl.flock(locked, fcntl.LOCK_EX)
                async with zc_anyio.send_group() as group:
                    await group.send_file(client, locked)
            assert len(kept(ring)) == 1
            with file.open("rb") as other:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        client.close()


async def test_what_is_kept_is_bounded(
    driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps_module, "KEPT_FILES", 3)
    monkeypatch.setattr(maps_module, "KEPT_BYTES", 1_000_000)
    files = [tmp_path / str(number) for number in range(6)]
    for number, path in enumerate(files):
        path.write_bytes(bytes([number]) * 200_000)
    files[5].write_bytes(b"5" * 1_000_001)
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver) as ring:

            async def send(number: int) -> None:
                async with zc_anyio.send_group() as group:
                    await group.send_file(client, files[number])

            for number in (0, 1, 2, 0, 3):
                await send(number)
            # The second was unused for longest.
            assert [maps_of(path) for path in files] == [1, 0, 1, 1, 0, 0]
            await send(5)
            assert len(kept(ring)) == 0
        client.close()
        assert len(await reader.all()) == 2_000_001


async def test_what_is_not_used_is_dropped(
    driver: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps_module, "KEPT_SECONDS", 0.1)
    with tcp_pair() as (client, peer), Reader(peer):
        async with zc_anyio.open_ring(driver=driver):
            for _ in range(2):
                async with zc_anyio.send_group() as group:
                    await group.send_file(client, file)
                with anyio.fail_after(20):
                    while maps_of(file):
                        await anyio.sleep(0.01)
        client.close()


@pytest.mark.parametrize("told", [True, False], ids=["told", "untold"])
async def test_many_clients_populate_a_file_once(
    driver: str, file: Path, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    populated: list[tuple[int, int]] = []
    threads: set[int] = set()
    resident = False

    def populate(self: FileMap, offset: int, size: int) -> None:
        nonlocal resident
        populated.append((offset, size))
        threads.add(threading.get_ident())
        resident = True

    monkeypatch.setattr(FileMap, "_populate", populate)
    monkeypatch.setattr(FileMemory, "is_resident", lambda *_: resident)
    if not told:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 12345)
        monkeypatch.setattr(os, "access", lambda *_, **__: False)
    async with zc_anyio.open_ring(driver=driver):

        async def one() -> None:
            with tcp_pair() as (client, peer), Reader(peer) as reader:
                async with zc_anyio.send_group() as group:
                    await group.send_file(client, file)
                client.close()
                assert await reader.all() == b"a" * MEBIBYTE

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(one)
    assert populated == [(0, MEBIBYTE)]
    assert threading.get_ident() not in threads


@pytest.mark.parametrize(("user", "told"), [(OTHER, True), (0, True), (OTHER + 1, False)])
async def test_without_a_ring_of_whose_files_the_kernel_tells_what_is_in_memory(
    tmp_path_factory: pytest.TempPathFactory, user: int, told: bool
) -> None:
    need_root("acting as another user")
    file = tmp_path_factory.mktemp("owned") / "file"
    file.write_bytes(b"o" * MEBIBYTE)
    os.chown(file, OTHER, OTHER)
    fd = os.open(file, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.seteuid(user)
    try:
        mapped = FileMap(fd, os.fstat(fd))
        assert mapped._is_told == told
        # What this user is told of a file of which nothing is in memory.
        assert mapped._memory.is_resident(0, MEBIBYTE) != told
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("size", [10_001, 300_001])
async def test_replaced_and_truncated_under_load(driver: str, tmp_path: Path, size: int) -> None:
    """Each byte is one that the file had while the call lasted, and a hole is an error."""
    file = tmp_path / "file"
    file.write_bytes(b"a" * size)
    stop = threading.Event()

    def change() -> None:
        number = 0
        while not stop.wait(0.002):
            number += 1
            if number % 3 == 0:
                os.truncate(file, size // 3)
            new = tmp_path / "new"
            new.write_bytes(b"bc"[number % 2 : number % 2 + 1] * size)
            new.replace(file)

    thread = threading.Thread(target=change)
    thread.start()
    sent = failed = 0
    try:
        async with zc_anyio.open_ring(driver=driver):
            for _ in range(60):
                with tcp_pair() as (client, peer), Reader(peer) as reader:
                    count = 0
                    try:
                        async with zc_anyio.send_group() as group:
                            count = await group.send_file(client, file)
                        sent += 1
                    except (OSError, anyio.BrokenResourceError, ExceptionGroup):
                        failed += 1
                        count = -1
                    client.close()
                    received = await reader.all()
                    if count >= 0:
                        assert len(received) == count
                        assert len(set(received)) <= 1
                        assert set(received) <= set(b"abc")
    finally:
        stop.set()
        thread.join()
    assert sent
