"""Echo: this library's streams and listener against anyio's own, on each event loop.

The same server echoes what it receives, over either kind of stream.  A client process sends one
message on each connection, waits for all of them to come back, and begins again.  The two servers
take turns, in an order that changes from round to round, so that other work of the machine affects
both.  Server and client have a processor each.  With one connection this mostly measures how two
idle processors wake each other; with ``--together`` they share one, and only the work is left.

It reports messages a second and the server's CPU time for each (medians of the rounds), and the
ratios of rounds which ran one right after the other (medians and quartiles): of the rates, ours /
anyio's, and of the CPU times, anyio's / ours.  Above 1, ours is better.

Run from the root of the source tree: ``python -m benchmarks.echo --help``.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketStream
from rich.console import Console
from rich.table import Table

import zc_anyio

BACKENDS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
SIZES = [1 << 10, 16 << 10, 64 << 10]
CONNECTIONS = [1, 100]

# Prints how many messages came back in a second, and the CPU seconds of the server's main thread
# for each, without the cost of making the connections.
CLIENT = """
import os, socket, sys, time
port, connections, size, seconds = *map(int, sys.argv[1:4]), float(sys.argv[4])
os.sched_setaffinity(0, [int(sys.argv[5])])
sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(connections)]
for sock in sockets:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
message, buffer = bytes(size), bytearray(size)

def exchange():
    for sock in sockets:
        sock.sendall(message)
    for sock in sockets:
        left = size
        while left:
            left -= sock.recv_into(buffer, left)

def server_seconds():
    with open(f"/proc/{os.getppid()}/schedstat") as file:
        return int(file.read().split()[0]) / 1e9

for _ in range(20):
    exchange()
count, spent, begun = 0, server_seconds(), time.perf_counter()
while time.perf_counter() - begun < seconds:
    exchange()
    count += connections
print(count / (time.perf_counter() - begun), (server_seconds() - spent) / count)
"""


async def echo(stream: SocketStream) -> None:
    async with stream:
        async for chunk in stream:
            await stream.send(chunk)


CORES = sorted(os.sched_getaffinity(0))


async def rate(
    port: int, connections: int, size: int, seconds: float, core: int
) -> tuple[float, float]:
    """Run the client; return messages a second, and CPU seconds for each."""
    arguments = [str(value) for value in (port, connections, size, seconds, core)]
    command = [sys.executable, "-I", "-S", "-c", CLIENT, *arguments]
    run = partial(subprocess.run, command, stdout=subprocess.PIPE, text=True, check=True)
    done = await anyio.to_thread.run_sync(run)
    a_second, spent = map(float, done.stdout.split())
    return a_second, spent


async def measure(
    ours: bool, connections: int, size: int, seconds: float, driver: Any, core: int
) -> tuple[float, float]:
    """Serve echoes to a client, with one kind of streams; return what the client measured."""
    async with AsyncExitStack() as stack:
        create: Any = anyio.create_tcp_listener
        if ours:
            await stack.enter_async_context(zc_anyio.open_ring(driver=driver))
            create = zc_anyio.create_tcp_listener
        listener = await stack.enter_async_context(await create(local_host="127.0.0.1"))
        tasks = await stack.enter_async_context(anyio.create_task_group())
        tasks.start_soon(listener.serve, echo)
        port = listener.extra(SocketAttribute.local_port)
        result = await rate(port, connections, size, seconds, core)
        tasks.cancel_scope.cancel()
    return result


def spread(upper: Sequence[float], lower: Sequence[float]) -> str:
    """Return the median ratio and its quartiles."""
    ratios = [one / other for one, other in zip(upper, lower, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each round of each server")
    parser.add_argument("--driver", default="auto")
    parser.add_argument("--backend", choices=BACKENDS, action="append")
    parser.add_argument("--connections", type=int, action="append")
    parser.add_argument("--size", type=int, action="append", help="bytes of a message")
    parser.add_argument(
        "--together", action="store_true", help="the client on the server's processor"
    )
    arguments = parser.parse_args()
    core = CORES[0 if arguments.together else -1]

    os.sched_setaffinity(0, CORES[:1])
    table = Table(title="Echo: messages a second, and the server's CPU time for each")
    for column in ("event loop", "connections", "bytes"):
        table.add_column(column)
    for column in ("anyio's", "ours", "ratio", "anyio's us", "ours us", "CPU ratio"):
        table.add_column(column, justify="right")
    for backend in arguments.backend or BACKENDS:
        for connections in arguments.connections or CONNECTIONS:
            for size in arguments.size or SIZES:
                results: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
                for number in range(arguments.rounds):
                    for ours in (number % 2 == 0, number % 2 != 0):
                        once = partial(
                            measure,
                            ours,
                            connections,
                            size,
                            arguments.seconds,
                            arguments.driver,
                            core,
                        )
                        results[ours].append(anyio.run(once, **BACKENDS[backend]))
                (theirs, their_cpu), (own, own_cpu) = (
                    zip(*results[ours], strict=True) for ours in (False, True)
                )
                table.add_row(
                    backend,
                    f"{connections}",
                    f"{size}",
                    f"{statistics.median(theirs):.0f}",
                    f"{statistics.median(own):.0f}",
                    spread(own, theirs),
                    f"{statistics.median(their_cpu) * 1e6:.1f}",
                    f"{statistics.median(own_cpu) * 1e6:.1f}",
                    spread(their_cpu, own_cpu),
                )
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    console.print(
        f"{time.strftime('%Y-%m-%d')}, Linux {platform.release()}, Python "
        f"{platform.python_version()}, {len(CORES)} processors; {arguments.rounds} rounds."
    )


if __name__ == "__main__":
    main()
