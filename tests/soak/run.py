"""One backend and one driver: rounds of random work on one ring, each followed by a look at the
process."""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio

import zc_anyio
import zc_anyio._ring.sockets as socket_table
from tests.soak import samples
from tests.soak.links import Place
from tests.soak.work import Worker, open_members, write_file

WORKERS = 8
MEMBERS = 8
ROUND_SECONDS = 2.0
# What a stalled peer holds ends with its connection, which is less than a second away.
REST_SECONDS = 10.0
WARM_UP = 1 / 4  # of the time
LEAST_ROUNDS = 3  # after the warm-up, however long they take
UNDER_WAY = ("queued", "in_flight", "held")


class SoakError(Exception):
    """A run has found a fault."""


@contextmanager
def running_peer(folder: Path) -> Iterator[tuple[Place, Any]]:
    """Run the peer in a process of its own."""
    path = folder / "socket"
    command = [sys.executable, "-m", "tests.soak.peer", str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield Place(unix=str(path), **json.loads(process.stdout.readline())), process
        finally:
            if process.poll() is None:
                process.kill()


def counters(ring: zc_anyio.Ring) -> dict[str, int]:
    statistics = ring.statistics()
    return {name: getattr(statistics, name) for name in UNDER_WAY}


async def rest(ring: zc_anyio.Ring, descriptors: int | None) -> None:
    """Wait until nothing is under way, and what was closed is gone.

    :raises SoakError: something stays.
    """
    end = anyio.current_time() + REST_SECONDS
    while any(counters(ring).values()):
        if anyio.current_time() > end:
            raise SoakError(
                f"at rest for {REST_SECONDS:.0f} s, and still under way: {counters(ring)}"
            )
        await anyio.sleep(0.02)
    # Idle sockets keep their descriptors for two ticks, transports of an event loop for a turn.
    for _ in range(50):
        await anyio.sleep(0.05)
        if descriptors is None or samples.descriptors() <= descriptors:
            break


async def soak(seconds: float, driver: Any, seed: str, folder: Path) -> dict[str, Any]:
    """Work for so long; return what was done.

    :raises SoakError: something grew, stayed, or arrived wrong.
    """
    # The ring keeps what it knows of the latest sockets; here so few that the warm-up fills that.
    socket_table.SUSPENDED_MOST = socket_table.SOCKETS_REMEMBERED = samples.KNOWN_SOCKETS
    done: dict[str, int] = {}
    taken: list[samples.Sample] = []
    file = folder / "frames"
    offsets = write_file(file)
    begin = anyio.current_time()
    warm = 1
    with running_peer(folder) as (place, process):
        async with zc_anyio.open_ring(driver=driver) as ring:
            members = await open_members(random.Random(seed), place, MEMBERS)
            try:
                workers = [
                    Worker(n + 1, place, members, file, offsets, done) for n in range(WORKERS)
                ]
                number = 0
                end = begin + seconds
                while len(taken) < warm + LEAST_ROUNDS or anyio.current_time() < end:
                    now = anyio.current_time()
                    async with anyio.create_task_group() as tasks:
                        for worker in workers:
                            rng = random.Random(f"{seed} {number} {worker.source}")
                            tasks.start_soon(worker.work, rng, now + ROUND_SECONDS)
                    await rest(ring, taken[warm].descriptors if len(taken) > warm else None)
                    taken.append(samples.take(ring))
                    if len(taken) > 1 and len(taken) - 2 != warm:
                        # Types are compared of the first that counts and of the newest.
                        taken[-2] = replace(taken[-2], types=Counter())
                    if now < begin + WARM_UP * seconds:
                        warm = len(taken)
                    number += 1
                for member in members:
                    await member.finish()
            finally:
                for member in members:
                    await member.close()
            statistics = ring.statistics()
        seen = json.loads(process.communicate(timeout=REST_SECONDS)[0])
    if seen["faults"]:
        raise SoakError("the peer: " + "; ".join(seen["faults"]))
    if grown := samples.growth(taken[warm:]):
        raise SoakError("\n".join(grown))
    apart = max((len(taken) - warm) // 10, 1)
    ends = statistics.zero_copied + statistics.copied + statistics.staged + statistics.failed
    if statistics.sends != ends:
        raise SoakError(f"{statistics.sends} sends, and {ends} ends of sends: {statistics}")
    return {
        "rounds": len(taken),
        "warm-up": warm,
        "work": done,
        "peer": seen["counts"],
        "sends": statistics.sends,
        "MiB sent": statistics.bytes_sent >> 20,
        "memory MiB": [round(sample.memory / (1 << 20), 1) for sample in taken[warm::apart]],
        "descriptors": [taken[warm].descriptors, taken[-1].descriptors],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backend", choices=["asyncio", "uvloop", "trio"])
    parser.add_argument("driver", choices=["io_uring", "msg_zerocopy", "copy"])
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", required=True)
    arguments = parser.parse_args()
    backend = "trio" if arguments.backend == "trio" else "asyncio"
    options = {"use_uvloop": True} if arguments.backend == "uvloop" else {}
    with tempfile.TemporaryDirectory(prefix="zc-soak-") as folder:
        try:
            found = anyio.run(
                soak,
                arguments.seconds,
                arguments.driver,
                arguments.seed,
                Path(folder),
                backend=backend,
                backend_options=options,
            )
        except SoakError as exc:
            sys.exit(str(exc))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
