"""How long other tasks wait for their turn while a ring works: goal, 5 ms.

A task that only yields notes the CPU time of the thread between two of its turns, so time that a
busy machine gives to other programs does not count.  Printed are the longest such gap and the 99th
percentile, in milliseconds, over three runs of each job.  The first line is for no job: what a turn
of the event loop costs by itself.  Python's garbage collector is off.

    .venv/bin/python -m benchmarks.gaps [--connections 4000] [--backends trio]
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import resource
import selectors
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread

import zc_anyio

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
MIB, GIB = 1 << 20, 1 << 30
RUNS = 3


def drain(listener: socket.socket) -> None:
    """Accept all connections, and read everything."""
    ready, memory = selectors.DefaultSelector(), bytearray(MIB)
    listener.setblocking(False)
    ready.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in ready.select():
            sock: Any = key.fileobj
            try:
                if sock is listener:
                    ready.register(listener.accept()[0], selectors.EVENT_READ)
                elif not sock.recv_into(memory):
                    ready.unregister(sock)
                    sock.close()
            except (BlockingIOError, ConnectionError):
                pass


class Gaps:
    """The gaps of a task that only yields."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def watch(self) -> None:
        while True:
            before = time.thread_time()
            await anyio.lowlevel.checkpoint()
            self.seconds.append(time.thread_time() - before)

    async def of(self, name: str, job: Callable[[], Awaitable[None]], runs: int = RUNS) -> None:
        # What has happened here since the watching task's last turn belongs to no job.
        for _ in range(2):
            await anyio.lowlevel.checkpoint()
        self.seconds = []
        for _ in range(runs):
            await job()
            # The ring finishes what the job has left to it.
            await anyio.sleep(0.05)
        found = sorted(self.seconds)
        print(
            f"  {name:<44} {found[-1] * 1000:7.2f} {found[int(len(found) * 0.99)] * 1000:7.2f}",
            flush=True,
        )


async def main(count: int) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=drain, args=(listener,), daemon=True)
    process.start()
    gaps = Gaps()
    address = listener.getsockname()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(gaps.watch)
        ring_scope = zc_anyio.open_ring()
        await ring_scope.__aenter__()
        own = [await zc_anyio.connect_tcp(*address) for _ in range(count)]
        others = [await anyio.connect_tcp(*address) for _ in range(count)]

        # Made and freed outside the measurement.
        large = bytes(GIB)

        async def nothing() -> None:
            await anyio.sleep(0.05)

        async def broadcast(streams: list[Any], data: bytes) -> None:
            async with zc_anyio.send_group() as group:
                await group.broadcast(streams, data)

        async def many_sends() -> None:
            async with zc_anyio.send_group() as group:
                for number in range(100_000):
                    group.send_nowait(own[number % count], b"x" * 64)
                    if number % 1000 == 0:
                        await anyio.lowlevel.checkpoint()

        async def send_file(*, cold: bool) -> None:
            if cold:
                advice = partial(os.posix_fadvise, file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                await anyio.to_thread.run_sync(advice)
            async with zc_anyio.send_group() as group:
                await group.send_file(own[0], file)

        async def close() -> None:
            for stream in own:
                await stream.aclose()

        await gaps.of("nothing", nothing)
        await gaps.of(f"64 B to {count} of this library's", lambda: broadcast(own, b"x" * 64))
        await gaps.of(f"64 B to {count} of anyio's", lambda: broadcast(others, b"x" * 64))
        await gaps.of(f"64 KiB to {count}", lambda: broadcast(own, bytes(64 << 10)))
        await gaps.of("1 GiB to one", lambda: broadcast(own[:1], large))
        with tempfile.TemporaryFile() as file:
            for _ in range(GIB // MIB):
                file.write(bytes(MIB))
            os.fsync(file.fileno())
            # Memory that a virtual machine touches for the first time costs it more than the job.
            await send_file(cold=True)
            await gaps.of("a file of 1 GiB, from the disk", lambda: send_file(cold=True))
            await gaps.of("a file of 1 GiB, in memory", lambda: send_file(cold=False))
        await gaps.of("100,000 sends of 64 B", many_sends)
        await gaps.of(f"closing {count}", close, runs=1)

        async def end() -> None:
            await ring_scope.__aexit__(None, None, None)

        await gaps.of(f"the end of a ring with {count}", end, runs=1)
        for other in others:
            await other.aclose()
        tasks.cancel_scope.cancel()
    process.terminate()
    process.join()
    listener.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--connections", type=int, default=4000)
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for chosen in options.backends:
        # A full collection of all these objects is a gap as well, but Python's.
        gc.disable()
        name, more = BACKENDS[chosen]
        print(f"{chosen:<46} longest    99 %  ms of CPU between two turns of another task")
        anyio.run(main, options.connections, backend=name, backend_options=more)
