"""Files on file systems that fail: a disk that cannot be read, and one that is full."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import zc_anyio
from tests.support.needs import need_command, need_root
from tests.support.peers import Reader, tcp_pair
from zc_anyio._files.maps import PIECE

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

MEBIBYTE = 1 << 20
# What the kernel says of the disk, and this library of the hole.
UNREADABLE = r"Input/output error|cannot be read"


@contextmanager
def mounted(point: Path, *arguments: str) -> Iterator[Path]:
    """Mount a file system for the length of a scope."""
    need_root("mounting a file system")
    point.mkdir()
    subprocess.run([need_command("mount", "mount"), *arguments, point], check=True, timeout=30)
    try:
        yield point
    finally:
        # Lazily: the exception of a failed test refers to maps of its files.
        subprocess.run(["umount", "--lazy", point], check=True, timeout=30)


@pytest.fixture
def lost(tmp_path: Path) -> Iterator[Path]:
    """A file of two pieces, of which the disk has lost all but the beginning."""
    disk = tmp_path / "disk"
    disk.touch()
    os.truncate(disk, 32 * MEBIBYTE)
    subprocess.run(
        [need_command("mkfs.ext4", "e2fsprogs"), "-q", "-O", "^has_journal", disk],
        check=True,
        timeout=30,
    )
    with mounted(tmp_path / "mounted", "-o", "loop", str(disk)) as folder:
        path = folder / "file"
        with path.open("wb") as file:
            file.write(b"f" * 2 * PIECE)
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        # In memory is what a read of the first piece brings, and its metadata.
        with path.open("rb") as file:
            file.read(PIECE)
        os.truncate(disk, MEBIBYTE)
        yield path


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file of two pieces on a full tmpfs, where reading the second one's hole takes memory."""
    with mounted(tmp_path / "mounted", "-t", "tmpfs", "-o", "size=6m", "tmpfs") as folder:
        path = folder / "file"
        path.write_bytes(b"f" * PIECE)
        os.truncate(path, 2 * PIECE)
        filling = folder / "filling"
        with pytest.raises(OSError, match="No space left"), filling.open("wb", 0) as file:
            while True:
                file.write(bytes(4096))
        yield path


@pytest.mark.parametrize("how", ["lost", "full"])
async def test_a_part_that_cannot_be_read(
    driver: str, how: str, request: pytest.FixtureRequest
) -> None:
    path: Path = request.getfixturevalue(how)
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                for _ in range(2):
                    with pytest.raises(
                        OSError, match=r"Input/output error|cannot be read"
                    ) as caught:
                        await group.send_file(client, path)
                    assert caught.value.errno == errno.EIO
                # What could be read was sent, and the connection goes on.
                await group.send_file(client, path, count=PIECE)
                await group.send(client, b"end")
            assert ring.statistics().failed == 0
        client.close()
        assert await reader.all() == b"f" * 3 * PIECE + b"end"
