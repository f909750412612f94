"""Which way of waking the event loop is cheaper: the ring's descriptor, or an eventfd?

``ring fd``: COOP_TASKRUN, the event loop polls the ring itself.
``eventfd``: DEFER_TASKRUN, the kernel signals an eventfd, and completions appear when asked for.

Everything else is the same: the library's own ring, groups and reaper, over loopback TCP to a
process that reads and discards.  The two take turns, each round in a ring of its own, and the order
changes from round to round, so that other work of the machine affects both.  It reports the medians
over the rounds, with their quartiles, and the ratio eventfd / ring fd: below 1, the eventfd is
better.

Run from the root of the source tree: ``python -m benchmarks.wakeup --help``.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import anyio
from anyio.abc import SocketStream

import zc_anyio
from benchmarks.lab.receiver import receiving
from zc_anyio._ring import opening as _opening

BACKENDS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
# From this size on the works are zero-copied; smaller sends are staged or copied, as usual.
ZERO_COPIED = 64 << 10
WAYS = {"ring fd": False, "eventfd": True}


@dataclass(frozen=True, slots=True)
class Work:
    """Something to measure.

    :ivar zero_copy: the ring's policy.  Loopback would make "auto" copy, without notifications.
    :ivar connections: how many streams ``run`` is given.
    :ivar operations: how many sends it queues.
    """

    name: str
    zero_copy: Literal["auto", "always"]
    connections: int
    operations: int
    run: Callable[[list[SocketStream]], Awaitable[None]]


async def _one_group(streams: list[SocketStream], *, size: int, count: int) -> None:
    data = bytes(size)
    async with zc_anyio.send_group() as group:
        for _ in range(count):
            await group.send(streams[0], data)


async def _group_after_group(streams: list[SocketStream], *, size: int, count: int) -> None:
    data = bytes(size)
    for _ in range(count):
        async with zc_anyio.send_group() as group:
            await group.send(streams[0], data)


async def _broadcasts(streams: list[SocketStream], *, size: int, count: int) -> None:
    data = bytes(size)
    async with zc_anyio.send_group() as group:
        for _ in range(count):
            await group.broadcast(streams, data)


def works(scale: float) -> list[Work]:
    """Return what is measured; with ``scale`` 1 a round takes about 0.2 s on a slow core."""

    def work(name: str, run: Any, *, size: int, count: int, connections: int = 1) -> Work:
        count = max(1, round(count * scale))
        return Work(
            name,
            "auto" if size < ZERO_COPIED else "always",
            connections,
            count * connections,
            partial(run, size=size, count=count),
        )

    return [
        work("1 KiB, one group", _one_group, size=1 << 10, count=100_000),
        work("64 KiB, one group", _one_group, size=64 << 10, count=8_000),
        work("1 KiB, a group for each", _group_after_group, size=1 << 10, count=1_500),
        work("64 KiB, a group for each", _group_after_group, size=64 << 10, count=1_000),
        work("1 KiB to 200 peers", _broadcasts, size=1 << 10, count=150, connections=200),
        work("64 KiB to 200 peers", _broadcasts, size=64 << 10, count=40, connections=200),
    ]


@contextmanager
def _waking_by(way: str) -> Iterator[None]:
    """Have :func:`zc_anyio.open_ring` open rings that wake the event loop in one of the ways."""
    module: Any = _opening
    original = module.NativeRing
    module.NativeRing = partial(original, event_fd=WAYS[way])
    try:
        yield
    finally:
        module.NativeRing = original


@dataclass(frozen=True, slots=True)
class Round:
    """What one round took, in seconds an operation."""

    elapsed: float
    cpu: float


async def measure(work: Work, way: str, port: int) -> Round:
    """Run one round of a work."""
    streams = [await anyio.connect_tcp("127.0.0.1", port) for _ in range(work.connections)]
    try:
        with _waking_by(way):
            async with zc_anyio.open_ring(driver="io_uring", zero_copy=work.zero_copy) as ring:
                flags = ring.capabilities.setup_flags
                assert ("DEFER_TASKRUN" in flags) == WAYS[way], flags
                cpu, clock = time.process_time(), time.perf_counter()
                await work.run(streams)
                elapsed = time.perf_counter() - clock
                cpu = time.process_time() - cpu
    finally:
        for stream in streams:
            await stream.aclose()
    return Round(elapsed / work.operations, cpu / work.operations)


async def run(options: argparse.Namespace, port: int) -> None:
    """Measure everything and print the table."""
    print("| work | | ring fd, us | eventfd, us | eventfd / ring fd |")
    print("|---|---|---|---|---|")
    for work in works(options.scale):
        rounds: dict[str, list[Round]] = {way: [] for way in WAYS}
        for number in range(options.rounds):
            for way in reversed(WAYS) if number % 2 else WAYS:
                rounds[way].append(await measure(work, way, port))
        for what in ("elapsed", "cpu"):
            values = [[float(getattr(one, what)) for one in rounds[way]] for way in WAYS]
            # The ratios of pairs that ran one right after the other.
            ratios = [eventfd / ring_fd for ring_fd, eventfd in zip(*values, strict=True)]
            cells = [_spread([1e6 * value for value in column]) for column in values]
            label = f"| {work.name} | time" if what == "elapsed" else "| | CPU"
            print(f"{label} | {' | '.join(cells)} | {_spread(ratios)} |", flush=True)


def _spread(values: list[float]) -> str:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    digits = 2 if median < 10 else 1
    return f"{median:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.wakeup", description="Compare two ways to wake the event loop."
    )
    parser.add_argument("--backend", choices=BACKENDS, default="asyncio")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each way (%(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor for the work in a round")
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be 2 or more")

    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, cores[:1])
    with receiving(cores[-1]) as (_, port):
        print(
            f"{time.strftime('%Y-%m-%d')}, Linux {platform.release()}, Python "
            f"{platform.python_version()}, {options.backend}; {options.rounds} rounds of each; "
            "median (quartiles), microseconds a send\n"
        )
        anyio.run(run, options, port, **BACKENDS[options.backend])


if __name__ == "__main__":
    main()
