"""A viewer of the live picture: what has been sent to it, and how much of it it has taken."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from contextlib import suppress
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketStream
from starlette.types import Send

from zc_anyio.asgi import ClientDisconnectedError

from ..serving import acknowledged, kernel_memory, position

__all__ = ["FRAMES_AHEAD", "GroupViewer", "Viewer", "WrittenViewer"]

# How many frames a viewer may have outstanding.  With one, the round trip would limit its frame
# rate; each further one is memory that a stalled viewer holds.
FRAMES_AHEAD = 2


class Viewer(ABC):
    """A connection that gets the live picture.

    :ivar scope: the scope of its handler, cancelled when the viewer is dropped or the server stops.
    :ivar dropped: it was stalled for too long, so that its connection has to be reset.
    """

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.dropped = False

    @abstractmethod
    def look(self) -> None:
        """Find out what it has taken by now."""

    @property
    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it may be sent another frame."""

    @abstractmethod
    def waits_since(self) -> float | None:
        """Return when the oldest outstanding frame was sent."""

    @property
    @abstractmethod
    def unacknowledged(self) -> int:
        """Bytes on their way to it, wherever they are."""

    def kernel_memory(self) -> int:
        """Return how much memory its socket is charged for these bytes."""
        return 0


class GroupViewer(Viewer):
    """A connection that frames are broadcast to.

    Only what the peer has acknowledged counts as taken; that the kernel took a frame says nothing.

    :ivar chunked: its frames are chunks of HTTP/1.1; HTTP/1.0 has none.
    """

    def __init__(self, stream: SocketStream, *, chunked: bool) -> None:
        super().__init__()
        self.stream = stream
        self.chunked = chunked
        self._raw: Any = stream.extra(SocketAttribute.raw_socket)
        self._acknowledged, self._sent = position(self._raw)
        # For each outstanding frame: where it ends, and when it was sent.
        self._frames: deque[tuple[int, float]] = deque()

    def look(self) -> None:
        try:
            self._acknowledged = acknowledged(self._raw)
        except (OSError, ValueError):
            return  # the viewer is gone, which its handler notices
        while self._frames and self._frames[0][0] <= self._acknowledged:
            self._frames.popleft()

    @property
    def is_ready(self) -> bool:
        return len(self._frames) < FRAMES_AHEAD

    def waits_since(self) -> float | None:
        return self._frames[0][1] if self._frames else None

    def sent(self, size: int, now: float) -> None:
        """Note that a frame was queued."""
        self._sent += size
        self._frames.append((self._sent, now))

    @property
    def unacknowledged(self) -> int:
        return self._sent - self._acknowledged

    def kernel_memory(self) -> int:
        try:
            return kernel_memory(self._raw)
        except (OSError, ValueError):
            return 0


class WrittenViewer(Viewer):
    """A connection with TLS, which writes each frame by itself.

    Its peer acknowledges records, which are larger than frames by a little that nobody tells, so
    what the kernel has taken counts as taken.
    """

    def __init__(self, send: Send) -> None:
        super().__init__()
        self._send = send
        self._frame: tuple[bytes, float] | None = None
        self._given = anyio.Event()

    def give(self, frame: bytes, now: float) -> None:
        """Have a frame written; only if it is ready for one."""
        self._frame = frame, now
        self._given.set()

    async def write(self) -> None:
        """Write the frames that are given, until the peer is gone."""
        with suppress(ClientDisconnectedError):
            while True:
                await self._given.wait()
                self._given = anyio.Event()
                assert self._frame is not None
                body = {"type": "http.response.body", "body": self._frame[0], "more_body": True}
                try:
                    await self._send(body)
                except anyio.get_cancelled_exc_class():
                    # A record may have left in part, so nothing can follow it.
                    self.dropped = True
                    raise
                self._frame = None

    def look(self) -> None:
        """Do nothing: :meth:`write` notes it."""

    @property
    def is_ready(self) -> bool:
        return self._frame is None

    def waits_since(self) -> float | None:
        return None if self._frame is None else self._frame[1]

    @property
    def unacknowledged(self) -> int:
        return 0 if self._frame is None else len(self._frame[0])
