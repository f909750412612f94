"""A viewer of the live picture: what has been sent to it, and how much of it it has taken."""

from __future__ import annotations

from collections import deque
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketStream

from ..serving import acknowledged, kernel_memory, position

__all__ = ["FRAMES_AHEAD", "Viewer"]

# How many frames a viewer may have outstanding.  With one, the round trip would limit its frame
# rate; each further one is memory that a stalled viewer holds.
FRAMES_AHEAD = 2


class Viewer:
    """A connection that frames are broadcast to.

    Only what the peer has acknowledged counts as taken; that the kernel took a frame says nothing.

    :ivar chunked: its frames are chunks of HTTP/1.1; HTTP/1.0 has none.
    :ivar scope: the scope of its handler, cancelled when the viewer is dropped or the server stops.
    :ivar dropped: it was stalled for too long.
    """

    def __init__(self, stream: SocketStream, *, chunked: bool) -> None:
        self.stream = stream
        self.chunked = chunked
        self.scope = anyio.CancelScope()
        self.dropped = False
        self._raw: Any = stream.extra(SocketAttribute.raw_socket)
        self._acknowledged, self._sent = position(self._raw)
        # For each outstanding frame: where it ends, and when it was sent.
        self._frames: deque[tuple[int, float]] = deque()

    def look(self) -> None:
        """Find out what the peer has acknowledged by now."""
        try:
            self._acknowledged = acknowledged(self._raw)
        except (OSError, ValueError):
            return  # the viewer is gone, which its handler notices
        while self._frames and self._frames[0][0] <= self._acknowledged:
            self._frames.popleft()

    @property
    def is_ready(self) -> bool:
        """Whether it may be sent another frame."""
        return len(self._frames) < FRAMES_AHEAD

    def waits_since(self) -> float | None:
        """Return when the oldest outstanding frame was sent."""
        return self._frames[0][1] if self._frames else None

    def sent(self, size: int, now: float) -> None:
        """Note that a frame was queued."""
        self._sent += size
        self._frames.append((self._sent, now))

    @property
    def unacknowledged(self) -> int:
        """Bytes on their way to it, wherever they are."""
        return self._sent - self._acknowledged

    def kernel_memory(self) -> int:
        """Return how much memory its socket is charged for these bytes."""
        try:
            return kernel_memory(self._raw)
        except (OSError, ValueError):
            return 0
