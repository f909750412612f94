"""Many connections: nothing is left of them, and too many do no harm."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute, SocketStream

import zc_anyio
from tests.support.backends import one_backend
from tests.support.commands import ROOT
from tests.support.needs import missing, why_not
from tests.support.waiting import until
from zc_anyio.testing import open_descriptors

AT_ONCE = 100


def is_empty(ring: zc_anyio.Ring) -> bool:
    """Whether nothing is left of any stream."""
    counters = ring.statistics()
    return not (
        counters.queued
        or counters.in_flight
        or counters.held
        or counters.generations_open
        or ring._sockets._by_ident
        or ring._sockets._known
        or ring._reaper.contexts
    )


@pytest.mark.anyio
async def test_400_connections_leave_nothing(driver: Any) -> None:
    await connect_and_close(driver, 400)


@pytest.mark.anyio
@one_backend
async def test_2000_connections_leave_nothing(driver: Any) -> None:
    await connect_and_close(driver, 2000)


async def connect_and_close(driver: Any, connections: int) -> None:
    async def echo(stream: SocketStream) -> None:
        async with stream:
            async for chunk in stream:
                await stream.send(chunk)

    async def use(port: int, times: int) -> None:
        for _ in range(times):
            async with await zc_anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(b"hello")
                assert await stream.receive() == b"hello"

    async with zc_anyio.open_ring(driver=driver) as ring:
        listener = await zc_anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(SocketAttribute.local_port)
        async with listener, anyio.create_task_group() as serving:
            serving.start_soon(listener.serve, echo)
            await use(port, 1)
            await until(lambda: is_empty(ring))
            before = len(open_descriptors())
            async with anyio.create_task_group() as clients:
                for _ in range(AT_ONCE):
                    clients.start_soon(use, port, connections // AT_ONCE)
            await until(lambda: is_empty(ring))
            assert len(open_descriptors()) == before
            assert ring.statistics().sends == 2 * (connections + 1)
            serving.cancel_scope.cancel()


# Serves echoes with few descriptors: says its port, and ends with its standard input.
SERVER = """
import resource, sys
import anyio, zc_anyio
from anyio.abc import SocketAttribute

backend, uvloop, driver = sys.argv[1], sys.argv[2] == "True", sys.argv[3]

async def echo(stream):
    async with stream:
        try:
            async for chunk in stream:
                await stream.send(chunk)
        except anyio.BrokenResourceError:
            pass

async def main():
    async with zc_anyio.open_ring(driver=driver):
        listener = await zc_anyio.create_tcp_listener(local_host="127.0.0.1")
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, echo)
            print(listener.extra(SocketAttribute.local_port), flush=True)
            await anyio.to_thread.run_sync(sys.stdin.read)
            tasks.cancel_scope.cancel()

resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))
options = {"use_uvloop": True} if uvloop else {}
anyio.run(main, backend=backend, backend_options=options)
"""

# Opens 5,000 connections and leaves them open for a while, then sees that one more is served.
FLOOD = """
import resource, socket, sys, time
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 6000), hard))
address = "127.0.0.1", int(sys.argv[1])
sockets = []
for number in range(5000):
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(address)
    sockets.append(sock)
answered = 0
for sock in sockets:
    sock.settimeout(0.05 if answered > 100 else 20)
    try:
        sock.sendall(b"hello")
        answered += sock.recv(5) == b"hello"
    except OSError:
        if answered > 100:
            break
for sock in sockets:
    sock.close()
with socket.create_connection(address, 30) as sock:
    sock.settimeout(30)
    sock.sendall(b"after")
    assert sock.recv(5) == b"after"
print(answered)
"""


@pytest.mark.parametrize(
    ("backend", "use_uvloop", "driver"),
    [
        ("asyncio", False, "io_uring"),
        ("asyncio", True, "io_uring"),
        ("trio", False, "io_uring"),
        ("asyncio", False, "msg_zerocopy"),
        ("trio", False, "copy"),
    ],
)
def test_a_flood_of_5000_connections(backend: str, use_uvloop: bool, driver: str) -> None:
    """A process each, since it takes a while, for every driver and every event loop."""
    if (reason := why_not(driver)) is not None:
        missing(f"the driver {driver} cannot run: {reason}")
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SERVER, backend, str(use_uvloop), driver],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            flood = subprocess.run(
                [sys.executable, "-I", "-S", "-c", FLOOD, server.stdout.readline().strip()],
                capture_output=True,
                text=True,
                check=False,
                timeout=50,
            )
            assert flood.returncode == 0, flood.stderr
            assert int(flood.stdout) > 100
            _, errors = server.communicate("", 20)
        finally:
            server.kill()
    assert server.returncode == 0, errors
    # Told once, not for each connection.
    assert errors.count("\n") <= 3, errors
