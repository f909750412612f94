"""What is on its way to members: one buffer to many, and how far behind each of them is.

With a ring, a broadcast is queued on all sockets in one batch, through one send group for each
room.  What waits for a member is what its socket was given, less what its peer has acknowledged, so
nothing has to be counted at each send.  Without a ring, for comparison, each member has a task that
sends by anyio's own stream.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketStream

import zc_anyio

from ..web import acknowledged

__all__ = ["Broadcaster", "MemberQueue", "open_broadcaster", "open_queue"]

# How much the kernel takes for a peer that does not read.  Further bytes wait in the program, which
# has them only once for all members.
KERNEL_BYTES = 256 << 10
# A group references what it has sent until the generation has ended and is released.
GENERATION_BYTES = 64 << 10
GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError)


class MemberQueue(ABC):
    """Frames on their way to one member.

    :ivar stream: the member's connection.
    :ivar accepted: bytes that were queued so far.
    """

    def __init__(self, stream: SocketStream) -> None:
        raw: Any = stream.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = stream
        self.accepted = 0
        self._taken = 0

    @abstractmethod
    def send(self, *frames: bytes) -> None:
        """Queue frames for this member alone; if it is gone, they are lost."""

    @abstractmethod
    def taken(self) -> int:
        """Return how many of the accepted bytes have left."""

    @abstractmethod
    async def finish(self) -> None:
        """Wait until everything has left."""

    def waiting(self) -> int:
        """Return how many bytes the member has not taken."""
        with suppress(OSError):  # closed
            self._taken = self.taken()
        return self.accepted - self._taken

    def is_over(self, limit: int) -> bool:
        """Whether more than ``limit`` bytes wait; asks the kernel only when that is possible."""
        return self.accepted - self._taken > limit and self.waiting() > limit


class Broadcaster(ABC):
    """Sends one frame to many members."""

    @abstractmethod
    async def send(self, queues: Sequence[Any], frame: bytes) -> None:
        """Queue a frame for all these members.  Waits for none of them."""


# --- over a ring ---


class RingQueue(MemberQueue):
    """A member's own send group; what it sends keeps its order with what the room's group sends."""

    def __init__(self, stream: SocketStream, group: zc_anyio.SendGroup) -> None:
        super().__init__(stream)
        self._group = group
        self._unflushed = 0
        self._before = acknowledged(stream)

    def send(self, *frames: bytes) -> None:
        with suppress(*GONE):
            self._group.send_nowait(self.stream, frames)
            size = sum(map(len, frames))
            self.accepted += size
            self._unflushed += size
            if self._unflushed > GENERATION_BYTES:
                self._group.flush()
                self._unflushed = 0

    def taken(self) -> int:
        return acknowledged(self.stream) - self._before

    async def finish(self) -> None:
        # The bytes of a socket leave in order, so what the room has sent has left before these.
        await self._group.flush().wait_released()


class RingBroadcaster(Broadcaster):
    def __init__(self, group: zc_anyio.SendGroup) -> None:
        self._group = group
        self._unflushed = 0

    async def send(self, queues: Sequence[RingQueue], frame: bytes) -> None:
        for queue in queues:
            queue.accepted += len(frame)
        await self._group.broadcast([queue.stream for queue in queues], frame)
        self._unflushed += len(frame)
        if self._unflushed > GENERATION_BYTES:
            self._group.flush()
            self._unflushed = 0
        # The members' own tasks notice failures; here they are forgotten, so as not to pile up.
        self._group.take_failures()


# --- by anyio's own streams ---


class PlainQueue(MemberQueue):
    """Frames that wait for a task, which sends one after the other."""

    def __init__(self, stream: SocketStream) -> None:
        super().__init__(stream)
        self._frames: deque[bytes] = deque()
        self._sent = 0
        self._gone = False
        self._filled = anyio.Event()
        self._emptied = anyio.Event()
        self._emptied.set()

    def send(self, *frames: bytes) -> None:
        if self._gone:
            return
        self._frames.extend(frames)
        self.accepted += sum(map(len, frames))
        self._filled.set()
        if self._emptied.is_set():
            self._emptied = anyio.Event()

    def taken(self) -> int:
        return self._sent

    async def run(self) -> None:
        """Send what is queued, until cancelled or the member is gone."""
        try:
            while True:
                await self._filled.wait()
                while self._frames:
                    frame = self._frames.popleft()
                    await self.stream.send(frame)
                    self._sent += len(frame)
                self._filled = anyio.Event()
                self._emptied.set()
        except GONE:
            self._gone = True
            self._frames.clear()
            self._emptied.set()

    async def finish(self) -> None:
        await self._emptied.wait()


class PlainBroadcaster(Broadcaster):
    async def send(self, queues: Iterable[PlainQueue], frame: bytes) -> None:
        for queue in queues:
            queue.send(frame)


# --- either ---


@asynccontextmanager
async def open_queue(
    stream: SocketStream, *, ring: zc_anyio.Ring | None, limit: int
) -> AsyncIterator[MemberQueue]:
    """Open the queue of one member; at the end a reset drops what it has not taken.

    :param limit: bytes that may wait for the member before it counts as slow.
    """
    if ring is None:
        queue = PlainQueue(stream)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(queue.run)
            yield queue
            tasks.cancel_scope.cancel()
        return
    async with zc_anyio.send_group(
        ring=ring, window=4 * limit, on_error="collect", release_timeout=0
    ) as group:
        yield RingQueue(stream, group)


@asynccontextmanager
async def open_broadcaster(ring: zc_anyio.Ring | None, *, limit: int) -> AsyncIterator[Broadcaster]:
    """Open the broadcaster of a room.

    :param limit: bytes that may wait for a member before it is dropped.  The window is several
        times that, so no member makes the room wait.
    """
    if ring is None:
        yield PlainBroadcaster()
        return
    async with zc_anyio.send_group(
        ring=ring, window=4 * limit, on_error="collect", release_timeout=0
    ) as group:
        yield RingBroadcaster(group)
