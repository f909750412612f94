"""Running rounds: peers take turns, so that other work of the machine affects all of them alike.

A round has connections, an event loop and a ring of its own.  It ends when the receiver has
everything, by the receiver's count; if that differs from what the peer claims, the round fails.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from socket import socket
from typing import TypeAlias

import anyio

from benchmarks.lab.place import Place
from benchmarks.measure.counting import Device, Memory, Miscount, acknowledged
from benchmarks.peers.peer import BACKENDS, Job, Outside, Peer

__all__ = [
    "Case",
    "Measure",
    "Result",
    "Round",
    "Settings",
    "measure_datagrams",
    "measure_entering",
    "measure_queueing",
    "measure_sending",
    "rounds",
]

# If nothing more is acknowledged for this long, the peer has not sent what it claims.
SILENT_SECONDS = 2.0
ROUND_SECONDS = 60.0
# Calibrating ends when a round takes this share of its intended time.
LONG_ENOUGH = 0.3


@dataclass(frozen=True, slots=True)
class Case:
    """What to send in one comparison.

    :ivar size: bytes of one send; 0 if nothing is sent.
    """

    name: str
    size: int
    connections: int = 1


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure.

    :ivar rounds: rounds of each peer, after one for warming up and calibrating.
    :ivar seconds: how long a round should take; ``None``: each sends as little as it can.
    :ivar core: the core on which everything that sends runs.
    :ivar options: options for peers, by name.
    """

    rounds: int
    seconds: float | None
    core: int
    options: dict[str, str]


@dataclass(frozen=True, slots=True)
class Round:
    """What one round took.

    :ivar operations: how many sends, or other operations, were done.
    :ivar bytes: bytes that arrived.
    :ivar memory: bytes taken, by MemAvailable and by the socket counters, or ``None``.
    :ivar notes: the peer's own counters.
    """

    operations: int
    bytes: int
    seconds: float
    cpu_seconds: float
    memory: tuple[int, int] | None = None
    notes: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Result:
    """All rounds of a peer in a case; or why there are none."""

    peer: str
    rounds: list[Round] = field(default_factory=list)
    failure: str | None = None
    skipped: str | None = None


# Runs one round with a number of sends to each connection.
Measure: TypeAlias = Callable[[Peer, Case, Place, Settings, int], Round]


def rounds(
    measure: Measure, peers: list[Peer], case: Case, place: Place, settings: Settings
) -> Iterator[list[Result]]:
    """Measure a case; yield the results so far after each round of each peer."""
    results = {peer.name: Result(peer.name) for peer in peers}
    counts: dict[str, int] = {}
    for number in range(settings.rounds + 1):
        # No peer always comes after the same one.
        for peer in peers[number % len(peers) :] + peers[: number % len(peers)]:
            result = results[peer.name]
            if result.failure or result.skipped:
                continue
            try:
                if number == 0:
                    result.skipped = peer.why_not({**settings.options, "place": place.name})
                    if result.skipped is None:
                        counts[peer.name] = _calibrate(measure, peer, case, place, settings)
                else:
                    done = measure(peer, case, place, settings, counts[peer.name])
                    result.rounds.append(done)
            except Exception as exc:
                result.failure = f"{type(exc).__name__}: {exc}"
            yield list(results.values())


def _calibrate(measure: Measure, peer: Peer, case: Case, place: Place, settings: Settings) -> int:
    """Warm up, and return how many sends a round should have."""
    if settings.seconds is None:
        measure(peer, case, place, settings, 1)
        return 2
    count = max(1, (256 << 10) // (max(1, case.size) * case.connections))
    while True:
        seconds = measure(peer, case, place, settings, count).seconds
        if seconds >= LONG_ENOUGH * settings.seconds:
            # Once more, since other work may have made it long: then a round would be too small.
            seconds = min(seconds, measure(peer, case, place, settings, count).seconds)
        if seconds >= LONG_ENOUGH * settings.seconds:
            return max(1, math.ceil(count * settings.seconds / seconds))
        count *= max(2, min(16, math.floor(LONG_ENOUGH * settings.seconds / seconds)))


@asynccontextmanager
async def _time_limit() -> AsyncIterator[None]:
    """Fail a peer that waits for ever."""
    with anyio.fail_after(ROUND_SECONDS):
        yield


class _Watch:
    """Time and CPU time (user and system, of this process) since it was made."""

    def __init__(self) -> None:
        gc.collect()
        self._cpu, self._clock = time.process_time(), time.perf_counter()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._clock, time.process_time() - self._cpu


def _run(peer: Peer, job: Job, count: int, arrived: Callable[[], int]) -> Round:
    """Send, and wait until everything has arrived.

    :param arrived: returns the bytes that the receiver has counted so far.
    """

    async def run() -> Round:
        claimed = len(job.payload) * len(job.sockets) * count
        async with _time_limit(), peer.open(job) as send:
            before = arrived()
            watch = _Watch()
            outside = await send(count)
            if outside is not None:
                return _outside(outside, len(job.payload))
            seconds, cpu = watch.read()
            counted = last = arrived() - before
            silent_since = time.monotonic()
            while counted < claimed and time.monotonic() - silent_since < SILENT_SECONDS:
                await anyio.sleep(0.0002)
                counted = arrived() - before
                seconds, cpu = watch.read()
                if counted > last:
                    last, silent_since = counted, time.monotonic()
            if counted != claimed:
                raise Miscount(claimed, counted)
        return Round(count * len(job.sockets), counted, seconds, cpu, notes=job.notes)

    return anyio.run(run, **BACKENDS[peer.backend])


def _outside(outside: Outside, size: int) -> Round:
    if outside.counted != outside.claimed:
        raise Miscount(outside.claimed, outside.counted)
    return Round(outside.counted // size, outside.counted, outside.seconds, outside.cpu_seconds)


def _job(sockets: list[socket], case: Case, settings: Settings) -> Job:
    return Job(sockets, b"\x5a" * case.size, settings.core, settings.options)


def measure_sending(peer: Peer, case: Case, place: Place, settings: Settings, count: int) -> Round:
    """Send on TCP connections; what their peers acknowledged is what arrived."""
    with place.connections(case.connections) as sockets:
        return _run(
            peer,
            _job(sockets, case, settings),
            count,
            lambda: sum(acknowledged(sock) for sock in sockets),
        )


def measure_datagrams(
    peer: Peer, case: Case, place: Place, settings: Settings, count: int
) -> Round:
    """Send datagrams; what the sink was given is what arrived."""
    with place.datagrams() as sockets:
        return _run(peer, _job(sockets, case, settings), count, Device().payload)


def measure_queueing(
    peer: Peer, case: Case, place: Place, settings: Settings, _count: int
) -> Round:
    """Send once to peers that take nothing: how long until it is queued, and in whose memory."""

    async def run(sockets: list[socket]) -> Round:
        job = _job(sockets, case, settings)
        async with _time_limit(), peer.open(job) as send:
            watch, memory = _Watch(), Memory()
            await send(1)
            seconds, cpu = watch.read()
            taken = memory.taken()
        size = case.size * case.connections
        return Round(case.connections, size, seconds, cpu, taken, job.notes)

    with place.stalled_connections(case.connections) as connected:
        return anyio.run(run, connected, **BACKENDS[peer.backend])


def measure_entering(
    peer: Peer, case: Case, _place: Place, settings: Settings, count: int
) -> Round:
    """Do what needs no connection."""

    async def run() -> Round:
        job = _job([], case, settings)
        async with _time_limit(), peer.open(job) as act:
            watch = _Watch()
            await act(count)
            seconds, cpu = watch.read()
        return Round(count, 0, seconds, cpu, notes=job.notes)

    return anyio.run(run, **BACKENDS[peer.backend])
