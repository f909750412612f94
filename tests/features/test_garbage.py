"""Buffers, and the library's objects for them, may become garbage together, in cycles.

Before Python 3.12.4 the collector crashes on a memoryview with an export when both are in one
cycle, so each case runs in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import zc_anyio
from tests.support.backends import one_backend

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

SCRIPT = """
import array, gc, os, socket, sys, tempfile
import anyio, numpy, zc_anyio

SIZE = 1 << 20

def buffer(kind, pool):
    if kind == "memoryview":
        return memoryview(bytearray(SIZE))
    if kind == "slice":
        return memoryview(bytearray(2 * SIZE))[10 : SIZE]
    if kind == "array":
        return array.array("B", bytes(SIZE))
    if kind == "ndarray":
        return numpy.zeros(SIZE, numpy.uint8)
    if kind == "sequence":
        return [memoryview(bytearray(SIZE)), b"x", memoryview(bytearray(SIZE))[1:]]
    if kind == "pool":
        return pool
    if kind == "pool-slice":
        return pool[10:]
    return numpy.frombuffer(pool, numpy.uint8)[1:]

kept = []

async def fail(client, kind):
    async with zc_anyio.open_buffer_pool(buffer_size=SIZE, count=1) as pool:
        async with zc_anyio.send_group(on_error="collect") as group:
            if kind == "file":
                with tempfile.TemporaryFile() as file:
                    os.truncate(file.fileno(), SIZE)
                    for _ in range(3):
                        await group.send_file(client, file)
                        await group.flush().wait_released()
            else:
                data = buffer(kind, await pool.acquire())
                for _ in range(3):
                    await group.send(client, data)
                    await group.flush().wait_released()

async def main():
    left, right = socket.socketpair()
    server = socket.create_server(("127.0.0.1", 0))
    for way in ("broken", "cancelled"):
        client = socket.create_connection(server.getsockname())
        client.setblocking(False)
        peer, _ = server.accept()
        async with zc_anyio.open_ring(driver=sys.argv[1], zero_copy="always", drain_timeout=0.1):
            if way == "broken":
                client.shutdown(socket.SHUT_WR)
            try:
                async with anyio.create_task_group() as tg:
                    tg.start_soon(fail, client, sys.argv[2])
                    if way == "cancelled":
                        await anyio.sleep(0.02)
                        tg.cancel_scope.cancel()
            except BaseException as exc:
                exc.cycle = exc
                # As a debugger does, and whoever logs the locals of frames.
                while exc is not None:
                    trace = exc.__traceback__
                    while trace is not None:
                        kept.append(trace.tb_frame)
                        trace = trace.tb_next
                    inner = getattr(exc, "exceptions", None)
                    exc = inner[0] if inner else exc.__cause__
        client.close(), peer.close()
    server.close(), left.close(), right.close()

anyio.run(main)
cycle = [kept]
cycle.append(cycle)
del cycle, kept
gc.collect()
gc.collect()
print("done")
"""


@one_backend
@pytest.mark.parametrize(
    "kind",
    [
        "memoryview",
        "slice",
        "array",
        "ndarray",
        "sequence",
        "pool",
        "pool-slice",
        "pool-array",
        "file",
    ],
)
async def test_a_failure_in_a_cycle_is_collected_on_asyncio(driver: str, kind: str) -> None:
    paths = [str(Path(zc_anyio.__file__).parents[1]), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{SCRIPT}", driver, kind],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
