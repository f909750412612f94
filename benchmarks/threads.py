"""Two threads with a ring each, on a free-threaded Python: how much more do they send than one?

Each queues sends of one size on a TCP connection of its own, in a group, as fast as it can, on a
core of its own.  Rounds of one thread (the main one) and of two take turns.  It reports the medians
over the rounds, with their quartiles:

``time``: sends a second of two, divided by those of one.  The most is 2, with two cores that nobody
else uses, and peers that need no time on them.
``CPU``: twice the CPU time of a send of one, divided by that of a send of two.  It is less than 2
if they slow each other down (by memory that both write to), but not if the cores have other work.

``--ways threads processes`` measures processes as well: there only the kernel and the processor can
make one slow the other down.

Run with a free-threaded Python, best in the lab, where peers cost next to nothing:

    python -m benchmarks.lab python -m benchmarks.threads --lab
"""

from __future__ import annotations

import argparse
import os
import platform
import socket
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import anyio

import zc_anyio
from benchmarks.lab.place import LAB, loopback

BACKENDS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
BYTES = 256 << 20
# With small sends only their number matters.
SENDS = 100_000
SIZES = [256, 4 << 10, 16 << 10, 64 << 10]


@dataclass(frozen=True, slots=True)
class Sender:
    """One thread's work."""

    peer: tuple[str, int]
    size: int
    count: int
    backend: str

    def __call__(self, start: float, core: int) -> tuple[float, float, float]:
        """Send on a core, from a given time on; return begin, end and CPU seconds."""
        # For this thread only.  Otherwise the kernel lets short threads share a core for a while.
        os.sched_setaffinity(0, {core})
        return anyio.run(self.send, start, **BACKENDS[self.backend])

    async def send(self, start: float) -> tuple[float, float, float]:
        data = bytes(self.size)
        with socket.create_connection(self.peer) as sock:
            sock.setblocking(False)
            async with zc_anyio.open_ring() as ring:
                await self.queue(sock, data, self.count // 20)
                await anyio.sleep(max(0, start - time.monotonic()))
                begun, cpu = time.monotonic(), time.thread_time()
                await self.queue(sock, data, self.count)
                cpu, ended = time.thread_time() - cpu, time.monotonic()
                assert ring.statistics().failed == 0
        return begun, ended, cpu

    async def queue(self, sock: socket.socket, data: bytes, count: int) -> None:
        async with zc_anyio.send_group() as group:
            for _ in range(count):
                await group.send(sock, data)


def measure(sender: Sender, executor: Executor | None, cores: list[int]) -> tuple[float, float]:
    """Return seconds and CPU seconds a send: for two at once with an executor, else for one."""
    start = time.monotonic() + 1
    done = (
        list(executor.map(sender, [start, start], cores)) if executor else [sender(start, cores[0])]
    )
    begun, ended, cpu = zip(*done, strict=True)
    count = len(done) * sender.count
    return (max(ended) - min(begun)) / count, sum(cpu) / count


@contextmanager
def executors(ways: list[str]) -> Iterator[dict[str, Executor]]:
    """Make the executors that run two senders at once, by their names."""
    make: dict[str, Callable[[], Executor]] = {
        "threads": partial(ThreadPoolExecutor, 2),
        "processes": partial(ProcessPoolExecutor, 2, mp_context=get_context("spawn")),
    }
    with ExitStack() as stack:
        yield {way: stack.enter_context(make[way]()) for way in ways}


def spread(values: list[float]) -> str:
    """Return the median, with quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def compare(executor: Executor, way: str, sender: Sender, rounds: int, cores: list[int]) -> str:
    """Return a line of the table."""
    times, costs, costs_alone = [], [], []
    for number in range(rounds):
        order = (None, executor) if number % 2 else (executor, None)
        found = {used: measure(sender, used, cores) for used in order}
        alone, cost_alone = found[None]
        both, cost_of_both = found[executor]
        times.append(alone / both)
        costs.append(2 * cost_alone / cost_of_both)
        costs_alone.append(1e6 * cost_alone)
    cells = [f"{sender.size} B", way, spread(costs_alone), spread(times), spread(costs)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.threads", description="Compare two threads with one."
    )
    parser.add_argument("--backend", choices=BACKENDS, default="asyncio")
    parser.add_argument("--lab", action="store_true", help="send to the lab's peer")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each (%(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor for the work in a round")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="bytes a send")
    parser.add_argument("--ways", nargs="+", choices=["threads", "processes"], default=["threads"])
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error("--rounds must be 2 or more")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("there is one core only")
    gil = "without a GIL" if sysconfig.get_config_var("Py_GIL_DISABLED") else "with a GIL"
    if getattr(sys, "_is_gil_enabled", lambda: True)():
        gil = "with a GIL"

    with ExitStack() as stack:
        place = LAB if options.lab else stack.enter_context(loopback(cores[-1]))
        print(
            f"{time.strftime('%Y-%m-%d')}, Linux {platform.release()}, Python "
            f"{platform.python_version()} {gil}, {options.backend}, {place.name}, load "
            f"{os.getloadavg()[0]:.0f}; {options.rounds} rounds of each; median (quartiles)\n\n"
            "| send | two | CPU us of one | time, two / one | CPU, two / one |\n"
            "|---|---|---|---|---|"
        )
        for size in options.sizes:
            count = max(20, int(options.scale * min(SENDS, BYTES // size)))
            sender = Sender(place.peer, size, count, options.backend)
            for way, executor in stack.enter_context(executors(options.ways)).items():
                print(compare(executor, way, sender, options.rounds, cores[:2]), flush=True)


if __name__ == "__main__":
    main()
