"""The sending side: the same bytes in three ways, each measured."""

from __future__ import annotations

import hashlib
import mmap
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import SocketStream

import zc_anyio

from .server import Received, Server, header

CHUNK_SIZE = 1 << 20
PROGRESS_SECONDS = 0.1
# After the last byte was taken, a receiver only has to read and hash what is left.
ANSWER_SECONDS = 60.0

# Called with the number of bytes sent so far.
Progress = Callable[[int], None]


class Payload:
    """The beginning of a file as one buffer, in chunks that are views of it.

    The file is mapped, not read: chunks of it need no memory beyond the page cache, where the
    kernel reads them, whether it copies or not.
    """

    def __init__(self, path: Path, limit: int) -> None:
        """Map ``path``.

        :raises ValueError: the file is empty.
        :raises OSError: the file cannot be opened.
        """
        with path.open("rb") as file:
            size = min(path.stat().st_size, limit)
            if size == 0:
                raise ValueError(f"{path} is empty")
            self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        self.size = size

    def chunks(self, count: int, each: int = CHUNK_SIZE) -> list[memoryview]:
        """Return the first ``count`` bytes, or as many as there are, in views of ``each`` bytes."""
        view = memoryview(self._map)[:count]
        return [view[at : at + each] for at in range(0, len(view), each)]

    def sha256(self, count: int) -> str:
        """Return the digest of the first ``count`` bytes, in hexadecimal."""
        digest = hashlib.sha256()
        for chunk in self.chunks(count):
            digest.update(chunk)
        return digest.hexdigest()

    def forget_pages(self) -> None:
        """Unmap the pages touched so far; they stay in the page cache."""
        self._map.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True, slots=True)
class Measured:
    """What one way of sending cost, and what arrived.

    :ivar size: bytes sent, over all connections.
    :ivar seconds: from the first send until the last receiver had everything.
    :ivar cpu_seconds: CPU time of this process, user and system.
    :ivar peak_memory: most bytes of this process that were resident; ``None``: not known.
    :ivar size_each: bytes that every receiver should have got.
    :ivar sha256: the digest of these.
    :ivar statistics: counters of the ring; ``None`` if none was used.
    """

    way: str
    connections: int
    size: int
    seconds: float
    cpu_seconds: float
    peak_memory: int | None
    size_each: int
    sha256: str
    received: list[Received]
    statistics: zc_anyio.RingStatistics | None


# --- the three ways ---


async def by_anyio(server: Server, payload: Payload, progress: Progress) -> Measured:
    """anyio's own ``stream.send``, chunk after chunk."""
    async with _connected(server, connections=1) as streams:
        measure = _Measure(payload)
        sent = 0
        for chunk in payload.chunks(payload.size):
            # It is typed as bytes, but takes any buffer on every backend.
            await streams[0].send(chunk)  # type: ignore[arg-type]
            sent += len(chunk)
            progress(sent)
        received = await _end(server, streams)
        return measure.end("stream.send", payload.size, received, None)


async def by_group(
    server: Server, payload: Payload, progress: Progress, *, driver: Any
) -> Measured:
    """A send group over one of anyio's streams."""
    async with _connected(server, connections=1) as streams:
        measure = _Measure(payload)
        async with _ring(driver, progress) as ring:
            async with zc_anyio.send_group() as group:
                for chunk in payload.chunks(payload.size):
                    await group.send(streams[0], chunk)
            # From here on the kernel reads no chunk any more.
        received = await _end(server, streams)
        return measure.end("send group", payload.size, received, ring.statistics())


async def by_broadcast(
    server: Server,
    payload: Payload,
    progress: Progress,
    *,
    driver: Any,
    connections: int,
    slow: int,
    count: int,
) -> Measured:
    """One buffer to many connections, of which ``slow`` read slowly."""
    async with _connected(server, connections=connections, slow=slow) as streams:
        measure = _Measure(payload)
        async with _ring(driver, progress) as ring:
            async with zc_anyio.send_group() as group:
                for chunk in payload.chunks(count):
                    await group.broadcast(streams, chunk)
        received = await _end(server, streams)
        return measure.end(f"broadcast ({slow} slow)", count, received, ring.statistics())


# --- what they have in common ---


@asynccontextmanager
async def _connected(
    server: Server, *, connections: int, slow: int = 0
) -> AsyncGenerator[list[SocketStream], None]:
    async with AsyncExitStack() as stack:
        streams = []
        for number in range(connections):
            stream = await anyio.connect_tcp("127.0.0.1", server.port)
            streams.append(await stack.enter_async_context(stream))
            await stream.send(header(number, slow=number < slow))
        yield streams


@asynccontextmanager
async def _ring(driver: Any, progress: Progress) -> AsyncGenerator[zc_anyio.Ring, None]:
    """Open a ring, and report what it has sent while the scope lasts."""

    async def report() -> None:
        while True:
            progress(ring.statistics().bytes_sent)
            await anyio.sleep(PROGRESS_SECONDS)

    async with zc_anyio.open_ring(driver=driver) as ring, anyio.create_task_group() as tasks:
        tasks.start_soon(report)
        yield ring
        tasks.cancel_scope.cancel()
        progress(ring.statistics().bytes_sent)


async def _end(server: Server, streams: list[SocketStream]) -> list[Received]:
    """End the streams, and return what each receiver got."""
    for stream in streams:
        await stream.send_eof()
    with anyio.fail_after(ANSWER_SECONDS):
        received = [await server.received() for _ in streams]
    return sorted(received, key=lambda one: one.connection)


class _Measure:
    """Clocks that start when this object is made."""

    def __init__(self, payload: Payload) -> None:
        self._payload = payload
        payload.forget_pages()
        _reset_peak_memory()
        self._cpu = time.process_time()
        self._clock = time.perf_counter()

    def end(
        self,
        way: str,
        size_each: int,
        received: list[Received],
        statistics: zc_anyio.RingStatistics | None,
    ) -> Measured:
        seconds = time.perf_counter() - self._clock
        cpu_seconds = time.process_time() - self._cpu
        peak_memory = _peak_memory()
        return Measured(
            way=way,
            connections=len(received),
            size=size_each * len(received),
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            peak_memory=peak_memory,
            size_each=size_each,
            sha256=self._payload.sha256(size_each),
            received=received,
            statistics=statistics,
        )


def _reset_peak_memory() -> None:
    """Reset the peak; if the kernel refuses, it is that of the whole run."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_memory() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), None)
