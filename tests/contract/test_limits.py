"""Processes that may do less, other platforms, and memory over a long time."""

from __future__ import annotations

import errno
import subprocess
import sys
from typing import Any

import pytest

from tests.support.confined import run_confined
from tests.support.needs import SANITIZED, need_root

LIMITED = """
    import asyncio

    drop_privileges()
    lockable(64 << 10)
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    peer, _ = listener.accept()
    digest = hashlib.sha256()

    def read():
        while data := peer.recv(1 << 20):
            digest.update(data)

    async def main():
        sent = hashlib.sha256()
        async with zc_anyio.open_ring(driver=sys.argv[1]) as ring:
            print(ring.capabilities.zero_copy_limited)
            print(ring.capabilities.memlock_limit)
            for number in range(20):
                buffers = [bytearray([number, i]) * 100_000 for i in range(20)]
                async with zc_anyio.send_group() as group:
                    for buffer in buffers:
                        sent.update(buffer)
                        await group.send(client, buffer)
                    thread.is_alive() or thread.start()
                for buffer in buffers:
                    buffer[:] = bytes(len(buffer))
            counters = ring.statistics()
        client.close()
        thread.join()
        assert digest.digest() == sent.digest()
        print(counters.sends, counters.zero_copied, counters.copied, counters.failed)

    thread = threading.Thread(target=read)
    anyio.run(main)
    peer.close()
    listener.close()
"""


def test_little_lockable_memory(driver: Any) -> None:
    need_root("dropping privileges")
    reason, limit, counters = run_confined(LIMITED, driver).splitlines()
    if driver != "copy":
        assert "RLIMIT_MEMLOCK" in reason
        assert "65536" in reason
    assert int(limit) == 65536
    # A buffer of 200,000 bytes is beyond the limit by itself.
    assert counters == "400 0 400 0"


def test_the_limit_does_not_bind_a_process_that_may_lock_memory(driver: Any) -> None:
    need_root("CAP_IPC_LOCK")
    if driver == "copy":
        pytest.skip("the copy driver locks nothing")
    output = run_confined(
        """
        async def main():
            async with zc_anyio.open_ring(driver=sys.argv[1]) as ring:
                print(ring.capabilities.zero_copy_limited, ring.capabilities.memlock_limit)

        lockable(64 << 10)
        anyio.run(main)
        """,
        driver,
    )
    assert output == "None None\n"


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EPERM, "forbidden"),
        (errno.ENOSYS, "has no io_uring"),
        (errno.EMFILE, "open files"),
    ],
    ids=["EPERM", "ENOSYS", "EMFILE"],
)
def test_no_io_uring(number: int, reason: str) -> None:
    output = run_confined(
        """
        from tests.support.seccomp import CALLS, forbid

        forbid(int(sys.argv[1]), [CALLS["setup"]])

        async def main():
            before = len(os.listdir("/proc/self/fd"))
            try:
                async with zc_anyio.open_ring(driver="io_uring"):
                    pass
            except zc_anyio.DriverUnavailable as exc:
                print(exc)
            assert len(os.listdir("/proc/self/fd")) == before

        anyio.run(main)
        """,
        str(number),
    )
    assert reason in output


def test_importing_elsewhere_than_on_linux() -> None:
    # The platform changes after everything else has been imported for the one that it is.
    script = """
import sys
import anyio, cffi, socket, warnings, zc_anyio
import anyio._backends._asyncio
for name in [name for name in sys.modules if name.split(".")[0] == "zc_anyio"]:
    del sys.modules[name]
sys.platform = "darwin"
sys.modules["zc_anyio._native._zc"] = None  # importing it fails
sys.modules["resource"] = None
import zc_anyio

async def main():
    for attempt in (zc_anyio.open_ring(), zc_anyio.send_group()):
        try:
            async with attempt:
                pass
        except zc_anyio.DriverUnavailable as exc:
            print(exc)

anyio.run(main)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert all("darwin" in line for line in done.stdout.splitlines())


# --- memory, in a process of its own whose size nothing else changes ---

GROWTH = """
    from pathlib import Path
    import gc

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    async def detached(native):
        # A socket stays attached for a while after its last send.
        while native.statistics().sockets:
            await anyio.sleep(0.01)

    async def main(driver, groups, sends):
        data = [b"x" * 100, bytearray(100), [b"head", bytearray(100)]]
        async with zc_anyio.open_ring(driver=driver) as ring:
            native, first = ring._native, groups // 5
            for number in range(first + groups):
                if number == first:
                    await detached(native)
                    gc.collect()
                    before, allocations = resident(), native.statistics().allocations
                async with zc_anyio.send_group(window=1 << 20) as group:
                    for _ in range(sends):
                        await group.send(client, data[number % 3])
                peer.recv(1 << 20, socket.MSG_TRUNC)
            await detached(native)
            gc.collect()
            counters = native.statistics()
            assert counters.sends == (first + groups) * sends
            # A third of the groups are of bytes: a single message of them needs no generation.
            assert counters.generations_released >= (first + groups) * 2 // 3
            assert (counters.contexts, counters.sockets, counters.strays) == (0, 0, 0)
            assert counters.allocations == allocations
            print(resident() - before)

    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    client.setblocking(False)
    peer, _ = listener.accept()
    name, options = eval(sys.argv[1])
    anyio.run(main, sys.argv[2], *map(int, sys.argv[3:]), backend=name, backend_options=options)
    for sock in (listener, client, peer):
        sock.close()
"""


def growth(backend: tuple[str, dict[str, Any]], driver: Any, groups: int, sends: int) -> int:
    """Return by how many bytes a process grows over a number of groups, after a fifth of them."""
    grown = int(run_confined(GROWTH, repr(backend), driver, str(groups), str(sends)))
    return 0 if SANITIZED else grown


@pytest.mark.usefixtures("io_uring_runs")
@pytest.mark.timeout(150)
def test_memory_over_100000_groups_with_one_loop_and_driver_since_it_takes_long() -> None:
    groups = 10_000 if SANITIZED else 100_000  # a sanitizer makes it ten times as slow
    assert growth(("asyncio", {"use_uvloop": True}), "io_uring", groups, 1) < 5 << 20


def test_memory_over_10000_groups(driver: Any, anyio_backend: tuple[str, dict[str, Any]]) -> None:
    assert growth(anyio_backend, driver, 10_000, 1) < 5 << 20


def test_memory_over_100_groups_of_1000_sends(
    driver: Any, anyio_backend: tuple[str, dict[str, Any]]
) -> None:
    assert growth(anyio_backend, driver, 100, 1000) < 5 << 20
