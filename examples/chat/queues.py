"""What is on its way to members: one buffer to many, and how far behind each of them is.

A broadcast is queued on all sockets in one batch, through one send group for each room.  What waits
for a member is what its socket was given, less what its peer has acknowledged, so nothing has to be
counted at each send.

Over TLS a peer acknowledges records, which are larger than what was sent by a little that nobody
tells, or no send group takes the stream.  So a task for each member writes what is queued for it.
What waits is then what this task has not written; the kernel takes more for such a member than
``KERNEL_BYTES``, as it thinks fit.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketStream
from starlette.websockets import WebSocket, WebSocketDisconnect

import zc_anyio

from ..serving import acknowledged, position

__all__ = ["Broadcaster", "MemberQueue", "open_broadcaster", "open_queue"]

# How much the kernel takes for a peer that does not read.  Further bytes wait in the program, which
# has them only once for all members.
KERNEL_BYTES = 256 << 10
# A group references what it has sent until the generation has ended and is released.
GENERATION_BYTES = 64 << 10
# Of a frame that the server makes, by the first byte of its size (RFC 6455, 5.2); otherwise 2.
HEAD_BYTES = {126: 4, 127: 10}
GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError)


class MemberQueue(ABC):
    """Frames on their way to one member.

    :ivar accepted: bytes that were queued so far.
    """

    def __init__(self) -> None:
        self.accepted: int = 0
        self._taken: int = 0

    @abstractmethod
    def send(self, *frames: bytes) -> None:
        """Queue frames for this member alone; if it is gone, they are lost."""

    @abstractmethod
    def waiting(self) -> int:
        """Return how many bytes the member has not taken."""

    def is_over(self, limit: int) -> bool:
        """Whether more than ``limit`` bytes wait; asks the kernel only when that is possible."""
        return self.accepted - self._taken > limit and self.waiting() > limit

    @abstractmethod
    async def written(self) -> None:
        """Wait until what the server sends next comes after all that is queued."""

    @abstractmethod
    async def finish(self) -> None:
        """Wait until everything has left, what the room has sent as well."""


class GroupQueue(MemberQueue):
    """Frames on their way to one member, by a send group of its own.

    What it sends keeps its order with what the room's group and the server send.

    :ivar stream: the member's connection.
    """

    def __init__(self, stream: SocketStream, group: zc_anyio.SendGroup) -> None:
        super().__init__()
        self._raw: Any = stream.extra(SocketAttribute.raw_socket)
        self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
        self._raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = stream
        self._group = group
        self._unflushed = 0
        _, self._before = position(self._raw)

    def send(self, *frames: bytes) -> None:
        with suppress(*GONE):
            self._group.send_nowait(self.stream, frames)
            size = sum(map(len, frames))
            self.accepted += size
            self._unflushed += size
            if self._unflushed > GENERATION_BYTES:
                self._group.flush()
                self._unflushed = 0

    def waiting(self) -> int:
        with suppress(OSError, ValueError):  # closed
            self._taken = acknowledged(self._raw) - self._before
        if self._taken > self.accepted:
            # The server has sent something as well, such as pings.
            self._before += self._taken - self.accepted
            self._taken = self.accepted
        return self.accepted - self._taken

    async def written(self) -> None:
        """Do nothing: the stream keeps the order of what groups and others send."""

    async def finish(self) -> None:
        await self._group.flush().wait_released()


class WrittenQueue(MemberQueue):
    """Frames on their way to one member over TLS, which :meth:`write` writes one by one."""

    def __init__(self, websocket: WebSocket) -> None:
        super().__init__()
        self._websocket = websocket
        self._frames: deque[bytes] = deque()
        self._changed = anyio.Event()

    def send(self, *frames: bytes) -> None:
        self._frames.extend(frames)
        self.accepted += sum(map(len, frames))
        self._tell()

    def waiting(self) -> int:
        return self.accepted - self._taken

    async def written(self) -> None:
        while self._frames:
            await self._changed.wait()

    async def finish(self) -> None:
        await self.written()

    async def write(self) -> None:
        """Write what is queued, until the member is gone."""
        with suppress(WebSocketDisconnect):
            while True:
                while self._frames:
                    frame = self._frames[0]
                    text = frame[HEAD_BYTES.get(frame[1], 2) :].decode()
                    await self._websocket.send_text(text)
                    self._taken += len(self._frames.popleft())
                self._tell()
                await self._changed.wait()
        self._frames.clear()
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


class Broadcaster:
    """Sends one frame to many members."""

    def __init__(self, group: zc_anyio.SendGroup) -> None:
        self._group = group
        self._unflushed = 0

    async def send(self, queues: Sequence[MemberQueue], frame: bytes) -> None:
        """Queue a frame for all these members.  Waits for none of them."""
        streams = []
        for queue in queues:
            if isinstance(queue, GroupQueue):
                queue.accepted += len(frame)
                streams.append(queue.stream)
            else:
                queue.send(frame)
        await self._group.broadcast(streams, frame)
        self._unflushed += len(frame)
        if self._unflushed > GENERATION_BYTES:
            self._group.flush()
            self._unflushed = 0
        # The members' own tasks notice failures; here they are forgotten, so as not to pile up.
        self._group.take_failures()


@asynccontextmanager
async def open_queue(websocket: WebSocket, *, limit: int) -> AsyncIterator[MemberQueue]:
    """Open the queue of one member; at the end a reset drops what it has not taken.

    :param limit: bytes that may wait for the member before it counts as slow.
    """
    extensions = websocket.scope["extensions"]
    if "tls" in extensions:
        async with anyio.create_task_group() as tasks:
            written = WrittenQueue(websocket)
            tasks.start_soon(written.write)
            yield written
            tasks.cancel_scope.cancel()
        return
    async with zc_anyio.send_group(
        window=4 * limit, on_error="collect", release_timeout=0
    ) as group:
        yield GroupQueue(extensions["zc_anyio"]["stream"], group)


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
