"""What is on its way to members: one buffer to many, and how far behind each of them is.

A broadcast is queued on all sockets in one batch, through one send group for each room.  What waits
for a member is what its socket was given, less what its peer has acknowledged, so nothing has to be
counted at each send.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketStream

import zc_anyio

from ..serving import acknowledged, position

__all__ = ["Broadcaster", "MemberQueue", "open_broadcaster", "open_queue"]

# How much the kernel takes for a peer that does not read.  Further bytes wait in the program, which
# has them only once for all members.
KERNEL_BYTES = 256 << 10
# A group references what it has sent until the generation has ended and is released.
GENERATION_BYTES = 64 << 10
GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError)


class MemberQueue:
    """Frames on their way to one member, by a send group of its own.

    What it sends keeps its order with what the room's group and the server send.

    :ivar stream: the member's connection.
    :ivar accepted: bytes that were queued so far.
    """

    def __init__(self, stream: SocketStream, group: zc_anyio.SendGroup) -> None:
        self._raw: Any = stream.extra(SocketAttribute.raw_socket)
        self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
        self._raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = stream
        self.accepted = 0
        self._group = group
        self._unflushed = 0
        self._taken = 0
        _, self._before = position(self._raw)

    def send(self, *frames: bytes) -> None:
        """Queue frames for this member alone; if it is gone, they are lost."""
        with suppress(*GONE):
            self._group.send_nowait(self.stream, frames)
            size = sum(map(len, frames))
            self.accepted += size
            self._unflushed += size
            if self._unflushed > GENERATION_BYTES:
                self._group.flush()
                self._unflushed = 0

    def waiting(self) -> int:
        """Return how many bytes the member has not taken."""
        with suppress(OSError, ValueError):  # closed
            self._taken = acknowledged(self._raw) - self._before
        if self._taken > self.accepted:
            # The server has sent something as well, such as pings.
            self._before += self._taken - self.accepted
            self._taken = self.accepted
        return self.accepted - self._taken

    def is_over(self, limit: int) -> bool:
        """Whether more than ``limit`` bytes wait; asks the kernel only when that is possible."""
        return self.accepted - self._taken > limit and self.waiting() > limit

    async def finish(self) -> None:
        """Wait until everything has left, what the room has sent as well."""
        await self._group.flush().wait_released()


class Broadcaster:
    """Sends one frame to many members."""

    def __init__(self, group: zc_anyio.SendGroup) -> None:
        self._group = group
        self._unflushed = 0

    async def send(self, queues: Sequence[MemberQueue], frame: bytes) -> None:
        """Queue a frame for all these members.  Waits for none of them."""
        for queue in queues:
            queue.accepted += len(frame)
        await self._group.broadcast([queue.stream for queue in queues], frame)
        self._unflushed += len(frame)
        if self._unflushed > GENERATION_BYTES:
            self._group.flush()
            self._unflushed = 0
        # The members' own tasks notice failures; here they are forgotten, so as not to pile up.
        self._group.take_failures()


@asynccontextmanager
async def open_queue(stream: SocketStream, *, limit: int) -> AsyncIterator[MemberQueue]:
    """Open the queue of one member; at the end a reset drops what it has not taken.

    :param limit: bytes that may wait for the member before it counts as slow.
    """
    async with zc_anyio.send_group(
        window=4 * limit, on_error="collect", release_timeout=0
    ) as group:
        yield MemberQueue(stream, group)


@asynccontextmanager
async def open_broadcaster(*, limit: int) -> AsyncIterator[Broadcaster]:
    """Open the broadcaster of a room.

    :param limit: bytes that may wait for a member before it is dropped.  The window is several
        times that, so no member makes the room wait.
    """
    async with zc_anyio.send_group(
        window=4 * limit, on_error="collect", release_timeout=0
    ) as group:
        yield Broadcaster(group)
