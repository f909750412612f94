"""How bytes leave a connection: through a send group, or, for comparison, by anyio's own stream."""

from __future__ import annotations

import os
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import anyio
import anyio.to_thread
from anyio.abc import SocketAttribute, SocketStream

import zc_anyio

__all__ = [
    "Outgoing",
    "Part",
    "abort",
    "acknowledged",
    "acknowledged_on",
    "kernel_memory",
    "open_outgoing",
]

# How much is flushed as one generation, and how many may be unreleased while the next is queued: a
# connection has at most 8 MiB under way.  For files these are pages of the page cache.
SHARE = 4 << 20
SHARE_SENDS = 1000
SHARES = 1
# The group itself ends a generation that has a quarter of the window.  With this window all of them
# are ended here, so waiting for these means waiting for everything.
WINDOW = 8 * SHARE
PLAIN_PIECE = 256 << 10

# linux/tcp.h: tcpi_bytes_acked, since Linux 4.1.
TCPI_BYTES_ACKED = 120
# asm-generic/socket.h and linux/sock_diag.h; Python's socket module has no names for them.
SO_MEMINFO = 55
MEMINFO_FIELDS = 9
MEMINFO_WRITE_QUEUE = 5


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a file: ``count`` bytes from ``offset`` on of an open descriptor."""

    fd: int
    offset: int
    count: int

    def __len__(self) -> int:
        """How many bytes it counts as in HTTP's framing."""
        return self.count


Body: TypeAlias = zc_anyio.Buffer | Part


class Outgoing(Protocol):
    """Bytes on their way to one peer.

    Both methods raise ``TimeoutError`` when the peer has acknowledged nothing for the limit, and
    ``anyio.BrokenResourceError`` or ``ClosedResourceError`` when it is gone.
    """

    async def send(self, data: Body) -> None:
        """Queue bytes; wait while too much is under way."""

    async def finish(self) -> None:
        """Wait until the memory of everything that was sent is released."""


class GroupOutgoing:
    """Through a send group: ``data`` must not change before :meth:`finish` has returned."""

    def __init__(
        self, stream: SocketStream, group: zc_anyio.SendGroup, stall_seconds: float
    ) -> None:
        self._stream = stream
        self._group = group
        self._stall_seconds = stall_seconds
        self._sends = self._bytes = 0
        self._unreleased: deque[zc_anyio.Generation] = deque()

    async def send(self, data: Body) -> None:
        if isinstance(data, Part):
            for start, size in _pieces(data.count, SHARE):
                await self._make_room(size)
                offset = data.offset + start
                await self._group.send_file(self._stream, data.fd, offset=offset, count=size)
        elif (total := memoryview(data).nbytes) <= SHARE:
            await self._make_room(total)
            await self._group.send(self._stream, data)
        else:
            whole = memoryview(data).cast("B")
            for start, size in _pieces(total, SHARE):
                await self._make_room(size)
                await self._group.send(self._stream, whole[start : start + size])

    async def _make_room(self, size: int) -> None:
        """Wait for the release of earlier bytes, so that queueing these does not wait.

        A wait for a release can be interrupted to see whether the peer makes progress.
        """
        if self._sends >= SHARE_SENDS or (self._sends and self._bytes + size > SHARE):
            self._flush()
        while len(self._unreleased) > SHARES:
            await self._released(self._unreleased.popleft())
        self._sends += 1
        self._bytes += size

    def _flush(self) -> None:
        self._unreleased.append(self._group.flush())
        self._sends = self._bytes = 0

    async def finish(self) -> None:
        if self._sends:
            self._flush()
        while self._unreleased:
            await self._released(self._unreleased.popleft())
        if self._group.failures:
            raise anyio.BrokenResourceError from self._group.failures[0].error

    async def _released(self, generation: zc_anyio.Generation) -> None:
        while not generation.is_released:
            before = acknowledged(self._stream)
            with anyio.move_on_after(self._stall_seconds):
                await generation.wait_released()
                continue
            if acknowledged(self._stream) == before:
                raise TimeoutError(f"the peer took nothing for {self._stall_seconds} s")


class PlainOutgoing:
    """By ``SocketStream.send``, which copies; files are read in a worker thread."""

    def __init__(self, stream: SocketStream, stall_seconds: float) -> None:
        self._stream = stream
        self._stall_seconds = stall_seconds

    async def send(self, data: Body) -> None:
        if isinstance(data, Part):
            for start, size in _pieces(data.count, PLAIN_PIECE):
                piece = await anyio.to_thread.run_sync(os.pread, data.fd, size, data.offset + start)
                if len(piece) < size:
                    raise anyio.BrokenResourceError from OSError("the file was truncated")
                await self._send(piece)
        else:
            whole = memoryview(data).cast("B")
            for start, size in _pieces(len(whole), PLAIN_PIECE):
                await self._send(bytes(whole[start : start + size]))

    async def _send(self, piece: bytes) -> None:
        with anyio.fail_after(self._stall_seconds):
            await self._stream.send(piece)

    async def finish(self) -> None:
        """Do nothing: what was sent was copied."""


def _pieces(total: int, most: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, most):
        yield start, min(most, total - start)


@asynccontextmanager
async def open_outgoing(
    stream: SocketStream, *, ring: zc_anyio.Ring | None, stall_seconds: float
) -> AsyncIterator[Outgoing]:
    """Open the outgoing half of a connection, for the length of a scope.

    :param ring: ``None`` for anyio's own stream, which copies.
    :param stall_seconds: how long a peer may acknowledge nothing.
    """
    if ring is None:
        yield PlainOutgoing(stream, stall_seconds)
        return
    # After an error, or with a stalled peer, leaving does not wait for the release: the connection
    # is reset, which also frees what the kernel keeps for a peer that reads nothing.
    async with zc_anyio.send_group(
        ring=ring, window=WINDOW, on_error="collect", release_timeout=0
    ) as group:
        yield GroupOutgoing(stream, group, stall_seconds)


# --- what the kernel knows of a connection ---


def acknowledged(stream: SocketStream) -> int:
    """Return how many bytes the peer has acknowledged since the connection was made."""
    return acknowledged_on(stream.extra(SocketAttribute.raw_socket))


def acknowledged_on(raw: Any) -> int:
    """Do what :func:`acknowledged` does, for a raw socket, whose look-up costs more than this."""
    info = raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCPI_BYTES_ACKED + 8)
    (count,) = struct.unpack_from("=Q", info, TCPI_BYTES_ACKED)
    return int(count)


def kernel_memory(stream: SocketStream) -> int:
    """Return how much memory the socket is charged for what the peer has not acknowledged.

    The kernel counts the pages of a zero-copy send as well, though they are the program's memory.
    """
    raw: Any = stream.extra(SocketAttribute.raw_socket)
    fields = struct.unpack(
        f"{MEMINFO_FIELDS}I", raw.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4 * MEMINFO_FIELDS)
    )
    return int(fields[MEMINFO_WRITE_QUEUE])


async def abort(stream: SocketStream) -> None:
    """Close a connection by a reset: nothing that is queued for the peer stays in the kernel."""
    raw: Any = stream.extra(SocketAttribute.raw_socket)
    # If it is closed already, uvloop's stand-in for a socket raises ValueError.
    with suppress(OSError, ValueError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await anyio.aclose_forcefully(stream)
