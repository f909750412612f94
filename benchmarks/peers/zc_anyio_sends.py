"""zc_anyio as a program uses it, with defaults: streams in a send group of the ambient ring."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import repeat
from typing import TypeAlias

import anyio
import anyio.lowlevel
from anyio.abc import SocketStream

import zc_anyio
from benchmarks.peers.huge_pages import why_no_huge_pages
from benchmarks.peers.peer import BACKENDS, Job, Send, peer

# Memory of a pool: enough that some can be held while more is queued.
POOL_BYTES = 16 << 20
POOL_MOST, POOL_LEAST = 256, 24
# Of a buffer with many datagrams.
TRAINS_BYTES = 1 << 20


@asynccontextmanager
async def _open(
    job: Job, driver: zc_anyio.Driver = "auto"
) -> AsyncIterator[tuple[zc_anyio.Ring, list[SocketStream]]]:
    """Open a ring, and streams as anyio makes them."""
    streams = [await SocketStream.from_socket(sock) for sock in job.sockets]
    try:
        # What is held at the end, as with stalled peers, is not waited for.
        async with zc_anyio.open_ring(driver=driver, drain_timeout=0) as ring:
            yield ring, streams
    finally:
        for stream in streams:
            await anyio.aclose_forcefully(stream)
    statistics = ring.statistics()
    for name in ("zero_copied", "copied", "staged", "requests", "submits"):
        job.notes[name] = getattr(statistics, name)


@asynccontextmanager
async def _stream(job: Job, driver: zc_anyio.Driver = "auto") -> AsyncIterator[Send]:
    payload = job.payload
    async with _open(job, driver) as (_, [stream]):

        async def send(count: int) -> None:
            async with zc_anyio.send_group() as group:
                for _ in range(count):
                    await group.send(stream, payload)

        yield send


@asynccontextmanager
async def _pool(job: Job, huge_pages: bool = False) -> AsyncIterator[Send]:
    size = len(job.payload)
    count = min(POOL_MOST, max(POOL_LEAST, POOL_BYTES // size))
    async with (
        _open(job) as (_, [stream]),
        zc_anyio.open_buffer_pool(
            buffer_size=size, count=count, huge_pages="always" if huge_pages else "auto"
        ) as pool,
    ):
        # Filled once: the other peers also send the same memory again and again.
        for view in [await pool.acquire() for _ in range(count)]:
            view[:] = job.payload
            pool.release(view)

        async def send(count: int) -> None:
            async with zc_anyio.send_group() as group:
                for _ in range(count):
                    if not pool.free:
                        # Buffers come back with their generation, which is ended here.
                        group.flush()
                    await group.send(stream, await pool.acquire())

        yield send


@asynccontextmanager
async def _flushed(job: Job) -> AsyncIterator[Send]:
    """One send at a time: each is on its way before the next is queued."""
    payload = job.payload
    async with _open(job) as (_, [stream]):

        async def send(count: int) -> None:
            async with zc_anyio.send_group() as group:
                for _ in range(count):
                    await group.send(stream, payload)
                    group.flush()
                    await anyio.lowlevel.checkpoint()

        yield send


@asynccontextmanager
async def _group_each(job: Job) -> AsyncIterator[Send]:
    """One send at a time, until its buffer is free again: a group for each."""
    payload = job.payload
    async with _open(job) as (_, [stream]):

        async def send(count: int) -> None:
            for _ in range(count):
                async with zc_anyio.send_group() as group:
                    await group.send(stream, payload)

        yield send


@asynccontextmanager
async def _broadcast(job: Job) -> AsyncIterator[Send]:
    payload = job.payload
    async with _open(job) as (_, streams):

        async def send(count: int) -> None:
            async with zc_anyio.send_group() as group:
                for _ in range(count):
                    await group.broadcast(streams, payload)

        yield send


async def _queue_all(
    group: zc_anyio.SendGroup,
    ring: zc_anyio.Ring,
    streams: list[SocketStream],
    data: zc_anyio.Buffer,
) -> None:
    """Queue until the kernel has taken everything, which the peers never acknowledge."""
    await group.broadcast(streams, data)
    group.flush()
    while (counters := ring.statistics()).queued or counters.in_flight:
        await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def _stalled(job: Job) -> AsyncIterator[Send]:
    async with _open(job) as (ring, streams):
        with anyio.CancelScope() as scope:
            async with zc_anyio.send_group() as group:
                yield lambda _count: _queue_all(group, ring, streams, job.payload)
                scope.cancel()
                await anyio.lowlevel.checkpoint()


@asynccontextmanager
async def _stalled_pool(job: Job) -> AsyncIterator[Send]:
    async with (
        _open(job) as (ring, streams),
        zc_anyio.open_buffer_pool(buffer_size=len(job.payload), count=1) as pool,
    ):
        buffer = await pool.acquire()
        buffer[:] = job.payload
        with anyio.CancelScope() as scope:
            async with zc_anyio.send_group() as group:
                yield lambda _count: _queue_all(group, ring, streams, buffer)
                scope.cancel()
                await anyio.lowlevel.checkpoint()


Queue: TypeAlias = Callable[[zc_anyio.SendGroup, socket.socket, bytes, int], Awaitable[None]]


async def _each(group: zc_anyio.SendGroup, sock: socket.socket, payload: bytes, count: int) -> None:
    for _ in range(count):
        await group.send(sock, payload)


async def _many(group: zc_anyio.SendGroup, sock: socket.socket, payload: bytes, count: int) -> None:
    """Queue datagrams in buffers of their own."""
    await group.send_many(sock, repeat(payload, count))


async def _segments(
    group: zc_anyio.SendGroup, sock: socket.socket, payload: bytes, count: int
) -> None:
    """Queue datagrams that lie one behind another in one buffer."""
    whole = TRAINS_BYTES // len(payload)
    data = payload * whole
    for done in range(0, count, whole):
        part = data if count - done >= whole else payload * (count - done)
        await group.send_segments(sock, part, len(payload))


@asynccontextmanager
async def _datagrams(job: Job, queue: Queue = _each) -> AsyncIterator[Send]:
    [sock] = job.sockets
    async with zc_anyio.open_ring() as ring:

        async def send(count: int) -> None:
            async with zc_anyio.send_group() as group:
                await queue(group, sock, job.payload, count)

        yield send
        statistics = ring.statistics()
        for name in ("zero_copied", "copied", "requests"):
            job.notes[name] = getattr(statistics, name)


@asynccontextmanager
async def _datagram_pool(job: Job) -> AsyncIterator[Send]:
    [sock] = job.sockets
    size = len(job.payload)
    async with (
        zc_anyio.open_ring() as ring,
        zc_anyio.open_buffer_pool(buffer_size=size, count=POOL_MOST) as pool,
    ):

        async def send(count: int) -> None:
            async with zc_anyio.send_group() as group:
                for _ in range(count):
                    if not pool.free:
                        group.flush()
                    await group.send(sock, await pool.acquire())

        yield send
        job.notes["zero_copied"] = ring.statistics().zero_copied


@asynccontextmanager
async def _empty_group(_job: Job) -> AsyncIterator[Send]:
    async with zc_anyio.open_ring():

        async def send(count: int) -> None:
            for _ in range(count):
                async with zc_anyio.send_group():
                    pass

        yield send


def _why_no_driver(driver: zc_anyio.Driver) -> Callable[[dict[str, str]], str | None]:
    def why_not(_options: dict[str, str]) -> str | None:
        async def attempt() -> str | None:
            try:
                async with zc_anyio.open_ring(driver=driver):
                    return None
            except zc_anyio.DriverUnavailable as exc:
                return str(exc)

        return anyio.run(attempt)

    return why_not


for _backend in BACKENDS:
    _ours = f"zc_anyio on {_backend}"
    peer(_ours, "stream", backend=_backend)(_stream)
    peer(f"{_ours}, pool", "stream", backend=_backend)(_pool)
    peer(f"{_ours}, huge pages", "stream", backend=_backend, why_not=why_no_huge_pages)(
        partial(_pool, huge_pages=True)
    )
    peer(f"{_ours}, flush after each", "one at a time", backend=_backend)(_flushed)
    peer(f"{_ours}, group for each", "one at a time", backend=_backend)(_group_each)
    peer(_ours, "broadcast", backend=_backend)(_broadcast)
    peer(_ours, "datagram", backend=_backend)(_datagrams)
    peer(f"{_ours}, pool", "datagram", backend=_backend)(_datagram_pool)
    peer(f"{_ours}, send_segments", "datagram", backend=_backend)(
        partial(_datagrams, queue=_segments)
    )
    peer(f"{_ours}, send_many", "datagram", backend=_backend)(partial(_datagrams, queue=_many))
    peer(_ours, "stalled", backend=_backend)(_stalled)
    peer(f"{_ours}, pool", "stalled", backend=_backend)(_stalled_pool)
    peer(_ours, "empty group", backend=_backend)(_empty_group)
_drivers: tuple[zc_anyio.Driver, ...] = ("io_uring", "msg_zerocopy", "copy")
for _driver in _drivers:
    peer(f"zc_anyio by {_driver}", "driver", backend="trio", why_not=_why_no_driver(_driver))(
        partial(_stream, driver=_driver)
    )
