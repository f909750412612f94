"""Files that are larger than memory: what is read of them does not stay.

The kernel may take some pages at any time.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

import zc_anyio
from tests.support.peers import Reader, tcp_pair
from zc_anyio._files import maps, memory_limit
from zc_anyio._files.maps import PIECE
from zc_anyio._native.lib import FileMemory

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

PIECES = 24
CONTENT = random.Random(3).randbytes(PIECE - 1) + b"\n"


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maps, "memory_limit", lambda: PIECE)
    monkeypatch.setattr(maps, "STAYING", 2)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that is on the disk and in memory."""
    made = tmp_path / "file"
    with made.open("wb") as opened:
        for _ in range(PIECES):
            opened.write(CONTENT)
        opened.flush()
        os.fsync(opened.fileno())
    return made


def forget(file: Path, first: int) -> None:
    """Have the kernel drop what is in memory, from one piece on."""
    with file.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), first * PIECE, 0, os.POSIX_FADV_DONTNEED)
    assert resident(file) <= set(range(first))


def resident(file: Path) -> set[int]:
    """Return which pieces are in memory."""
    memory = FileMemory(os.open(file, os.O_RDONLY), file.stat().st_size)
    return {n for n in range(PIECES) if memory.is_resident(n * PIECE, PIECE)}


async def send(driver: str, file: Path) -> None:
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group(window=PIECE) as group:  # type: ignore[arg-type]
            assert await group.send_file(client, file) == PIECES * PIECE
        client.close()
        assert await reader.all() == PIECES * CONTENT


async def test_what_is_read_is_dropped(driver: str, file: Path, small_memory: None) -> None:
    forget(file, 0)
    await send(driver, file)
    # What a group has sent last, and what the kernel had read ahead, are still there.
    assert len(resident(file)) <= PIECES // 2


async def test_what_was_in_memory_before_stays(driver: str, file: Path, small_memory: None) -> None:
    await send(driver, file)
    assert len(resident(file)) > PIECES * 3 // 4
    forget(file, 8)
    before = len(resident(file))
    await send(driver, file)
    assert len(resident(file) & set(range(8))) > before // 2
    assert len(resident(file)) <= 8 + PIECES // 2


async def test_a_file_that_fits_stays(driver: str, file: Path) -> None:
    forget(file, 0)
    await send(driver, file)
    assert len(resident(file)) > PIECES * 3 // 4


# --- how much memory there is ---


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/\n", {}, None),
        ("0::/\n", {"memory.max": "1000"}, 1000),
        ("0::/a/b\n", {"a/memory.max": "2000", "a/b/memory.max": "max"}, 2000),
        ("0::/a/b\n", {"a/memory.max": "2000", "a/b/memory.max": "500"}, 500),
        ("5:cpu:/\n4:memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "700"}, 700),
        ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": str(2**63)}, None),
        (None, {}, None),
    ],
    ids=["no-group", "container", "group-above", "both", "version-1", "unlimited", "no-proc"],
)
def test_the_limit_of_memory(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    groups: str | None,
    limits: dict[str, str],
    expected: int | None,
) -> None:
    if groups is not None:
        (tmp_path / "cgroup").write_text(groups)
    for name, text in limits.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory_limit, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory_limit, "MOUNTED", tmp_path)
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert memory_limit.memory_limit.__wrapped__() == (expected or physical)
