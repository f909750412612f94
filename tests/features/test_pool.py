"""Pools of registered buffers: what is handed out, when it goes back, and what is refused."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import re
import select
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest

import zc_anyio
from tests.features.memory import address_of, mapping_flags
from tests.support.confined import run_confined
from tests.support.needs import missing, need_root
from tests.support.peers import Reader, receive_exactly, tcp_pair
from tests.support.waiting import until, until_held
from zc_anyio import open_buffer_pool

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

SIZE = 64 << 10
# More than the peer of a stalled pair takes.
HELD = 512 << 10


async def receive(peer: socket.socket, size: int) -> bytes:
    """Receive so many bytes while the event loop goes on sending them."""
    return await anyio.to_thread.run_sync(receive_exactly, peer, size)


# --- the memory ---


async def test_memory_is_registered_or_the_pool_says_why_not(driver: str) -> None:
    async with zc_anyio.open_ring(driver=driver):
        async with open_buffer_pool(buffer_size=SIZE, count=2) as pool:
            if driver == "io_uring":
                assert pool.unregistered is None
            else:
                assert pool.unregistered
            assert (pool.buffer_size, pool.count, pool.free) == (SIZE, 2, 2)


@pytest.mark.parametrize("part", [slice(None), slice(5000, 20_001)], ids=["whole", "slice"])
@pytest.mark.usefixtures("io_uring_runs")
async def test_sends_read_the_memory_that_was_registered(part: slice) -> None:
    # The registration still refers to pages that the process has given up; sending by address would
    # send the new pages.
    libc = ctypes.CDLL(None)
    with tcp_pair() as (client, peer):
        async with (
            zc_anyio.open_ring(driver="io_uring", zero_copy="always", threshold=0) as ring,
            open_buffer_pool(buffer_size=SIZE, count=2, huge_pages="never") as pool,
        ):
            view = await pool.acquire()
            old = os.urandom(SIZE)
            view[:] = old
            address = address_of(view)
            assert libc.madvise(ctypes.c_void_p(address), SIZE, mmap.MADV_DONTNEED) == 0
            assert view == bytes(SIZE)
            async with zc_anyio.send_group() as group:
                await group.send(client, view[part])
            assert ring.statistics().registered == 1
        assert receive_exactly(peer, len(old[part])) == old[part]


@pytest.mark.usefixtures("io_uring_runs")
async def test_buffers_sent_in_a_burst_are_read_from_registered_memory_too() -> None:
    data = [os.urandom(SIZE) for _ in range(8)]
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with (
            zc_anyio.open_ring(driver="io_uring", zero_copy="always", threshold=0) as ring,
            open_buffer_pool(buffer_size=SIZE, count=len(data)) as pool,
        ):
            views = [await pool.acquire() for _ in data]
            async with zc_anyio.send_group() as group:
                for view, part in zip(views, data, strict=True):
                    view[:] = part
                    group.send_nowait(client, view)
            counters = ring.statistics()
            assert counters.registered == counters.requests > 0
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == b"".join(data)


@contextmanager
def reserved_huge_pages(count: int) -> Iterator[None]:
    """Reserve huge pages, for one test at a time."""
    need_root("reserving huge pages")
    # The number is the whole machine's: other tests at the same time change it too.
    with (Path(tempfile.gettempdir()) / "zc-anyio-huge-pages.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with _reserved_huge_pages(count):
            yield


def free_huge_pages() -> int:
    (free,) = re.findall(
        r"^HugePages_Free: +(\d+)$", Path("/proc/meminfo").read_text(), re.MULTILINE
    )
    return int(free)


@contextmanager
def _reserved_huge_pages(count: int) -> Iterator[None]:
    setting = Path("/proc/sys/vm/nr_hugepages")
    before = setting.read_text(encoding="ascii")
    try:
        setting.write_text(str(int(before) + count), encoding="ascii")
    except OSError as exc:
        missing(f"huge pages cannot be reserved: {exc}")
    try:
        # Pages that an earlier ring still has count as well, until it is gone.
        end = time.monotonic() + 10
        while free_huge_pages() < count:
            if time.monotonic() > end:
                missing("no huge pages can be reserved")
            time.sleep(0.05)
            setting.write_text(str(int(before) + count), encoding="ascii")
        yield
    finally:
        setting.write_text(before, encoding="ascii")


@pytest.mark.parametrize(("huge_pages", "flag"), [("auto", "hg"), ("never", "nh")])
async def test_transparent_huge_pages(driver: str, huge_pages: Any, flag: str) -> None:
    async with zc_anyio.open_ring(driver=driver):
        async with open_buffer_pool(buffer_size=SIZE, count=40, huge_pages=huge_pages) as pool:
            # Registered with an io_uring, a huge page would be charged to the send buffer whole.
            expected = "nh" if driver == "io_uring" else flag
            assert expected in mapping_flags(address_of(await pool.acquire()))


async def test_reserved_huge_pages(driver: str) -> None:
    with tcp_pair() as (client, peer), Reader(peer) as reader, reserved_huge_pages(2):
        async with zc_anyio.open_ring(driver=driver):
            async with open_buffer_pool(buffer_size=SIZE, count=2, huge_pages="always") as pool:
                assert (pool.unregistered is None) == (driver == "io_uring")
                view = await pool.acquire()
                assert "ht" in mapping_flags(address_of(view))
                async with zc_anyio.send_group() as group:
                    view[:] = b"h" * SIZE
                    await group.send(client, view)
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == b"h" * SIZE


def _is_full(sock: socket.socket) -> bool:
    """Whether a socket has no room for more."""
    return not select.select([], [sock], [], 0)[1]


@pytest.mark.usefixtures("io_uring_runs")
async def test_a_socket_takes_as_much_of_huge_pages_as_of_others() -> None:
    taken = []
    with reserved_huge_pages(4):
        for huge_pages in ("never", "always"):
            with tcp_pair(stalled=True) as (client, _):
                async with zc_anyio.open_ring(
                    driver="io_uring", zero_copy="always", threshold=0, drain_timeout=0
                ) as ring:
                    async with open_buffer_pool(
                        buffer_size=SIZE, count=128, huge_pages=huge_pages
                    ) as pool:
                        assert pool.unregistered is None
                        with anyio.CancelScope() as scope:
                            async with zc_anyio.send_group() as group:
                                for _ in range(pool.count):
                                    await group.send(client, await pool.acquire())
                                group.flush()
                                await until(lambda: _is_full(client))
                                scope.cancel()
                                await anyio.lowlevel.checkpoint()
                        await until(lambda: not ring.statistics().in_flight)
                        taken.append(ring.statistics().bytes_sent)
    assert 0 < taken[0] < 128 * SIZE
    assert taken[1] > taken[0] / 2


async def test_no_reserved_huge_pages_is_an_error_and_not_another_kind(driver: str) -> None:
    async with zc_anyio.open_ring(driver=driver):
        with pytest.raises(OSError):
            async with open_buffer_pool(buffer_size=1 << 30, count=1000, huge_pages="always"):
                pass


@pytest.mark.parametrize(
    "wrong",
    [{"buffer_size": 0}, {"buffer_size": (1 << 30) + 1}, {"count": 0}, {"huge_pages": "some"}],
    ids=str,
)
async def test_wrong_arguments(wrong: dict[str, Any]) -> None:
    async with zc_anyio.open_ring():
        with pytest.raises(ValueError):
            async with open_buffer_pool(**{"buffer_size": SIZE, "count": 1, **wrong}):
                pass


async def test_without_a_ring() -> None:
    with pytest.raises(RuntimeError, match="open_ring"):
        async with open_buffer_pool(buffer_size=SIZE, count=1):
            pass


# --- sending ---


async def test_numpy_arrays_slices_and_gathered_parts_are_sent(driver: str) -> None:
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver):
            async with open_buffer_pool(buffer_size=SIZE, count=2) as pool:
                async with zc_anyio.send_group() as group:
                    view = await pool.acquire()
                    array = np.frombuffer(view, np.uint32)
                    array[:] = np.arange(len(array))
                    await group.send(client, array)
                    await group.send(client, view[4:12])
                    await group.send(client, [view[:4], b"between", view[-4:]])
                    await group.send(client, view[100:100])
                    expected = bytes(view)
                    del array
                await until(lambda: pool.free == 2)
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == (
            expected + expected[4:12] + expected[:4] + b"between" + expected[-4:]
        )


async def test_a_buffer_goes_back_on_the_release_of_its_last_generation(
    holding_driver: str,
) -> None:
    with tcp_pair(stalled=True) as (first, peer), tcp_pair() as (second, other), Reader(other):
        async with zc_anyio.open_ring(
            driver=holding_driver, zero_copy="always", threshold=0
        ) as ring:
            async with open_buffer_pool(buffer_size=HELD, count=2) as pool:
                async with zc_anyio.send_group() as group:
                    view = await pool.acquire()
                    view[:] = bytes(HELD)
                    await group.send(first, view)
                    group.flush()
                    await group.send(second, view[:SIZE])
                    await group.flush().wait_released()
                    await until_held(ring, 1)
                    assert pool.free == 1
                    view[0] = 0
                    with pytest.raises(BufferError):
                        pool.release(view)
                    assert await receive(peer, HELD) == bytes(HELD)
                    await until(lambda: pool.free == 2)
                    with pytest.raises(ValueError):
                        view[0] = 1
                    with pytest.raises(ValueError):
                        await group.send(second, view)
            second.shutdown(socket.SHUT_WR)


async def test_a_failed_send_gives_its_buffer_back(driver: str) -> None:
    with tcp_pair() as (client, _):
        client.shutdown(socket.SHUT_WR)
        async with zc_anyio.open_ring(driver=driver):
            async with open_buffer_pool(buffer_size=SIZE, count=1) as pool:
                async with zc_anyio.send_group(on_error="collect") as group:
                    await group.send(client, await pool.acquire())
                await until(lambda: pool.free == 1)


async def test_a_cancelled_group_leaves_its_buffer_to_the_ring(holding_driver: str) -> None:
    with tcp_pair(stalled=True) as (client, peer):
        async with zc_anyio.open_ring(
            driver=holding_driver, zero_copy="always", threshold=0
        ) as ring:
            async with open_buffer_pool(buffer_size=HELD, count=1) as pool:
                with anyio.CancelScope() as scope:
                    async with zc_anyio.send_group() as group:
                        view = await pool.acquire()
                        view[:] = b"c" * HELD
                        await group.send(client, view)
                        await until_held(ring, 1)
                        scope.cancel()
                assert pool.free == 0
                assert await receive(peer, HELD) == b"c" * HELD
                await until(lambda: pool.free == 1)


# --- limits ---

MEMLOCK = """
import encodings.ascii  # read when privileges are gone, and then perhaps out of reach

async def main():
    lockable(1 << 20)
    drop_privileges()
    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    client.setblocking(False)
    peer, _ = server.accept()
    digest = hashlib.sha256()
    def read():
        while data := peer.recv(1 << 20):
            digest.update(data)
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    expected = hashlib.sha256()
    async with zc_anyio.open_ring(driver=sys.argv[1], zero_copy="always", threshold=0) as ring:
        async with zc_anyio.open_buffer_pool(buffer_size=1 << 20, count=4) as pool:
            assert pool.unregistered, "registered"
            assert sys.argv[1] != "io_uring" or "memory" in pool.unregistered.lower()
            async with zc_anyio.send_group() as group:
                for number in range(40):
                    view = await pool.acquire()
                    view[:] = os.urandom(1 << 20)
                    expected.update(view)
                    await group.send(client, view)
                    group.flush()
            with anyio.fail_after(10):
                while pool.free != 4:
                    await anyio.sleep(0.001)
        counters = ring.statistics()
        assert (counters.sends, counters.failed, counters.bytes_sent) == (40, 0, 40 << 20), counters
        assert counters.copied + counters.zero_copied == 40, counters
    client.close()
    thread.join()
    assert digest.digest() == expected.digest()
    peer.close(), server.close()

anyio.run(main)
print("done")
"""


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_pool_works_where_its_memory_may_not_be_locked(driver: str) -> None:
    need_root("dropping privileges")
    assert run_confined(MEMLOCK, driver) == "done\n"
