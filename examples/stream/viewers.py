"""A viewer of the live picture: what has been sent to it, and how much of it it has taken."""

from __future__ import annotations

import fcntl
import struct
import termios
from collections import deque
from typing import Any

import anyio
from anyio.abc import SocketAttribute, SocketStream

from examples.web import acknowledged_on, kernel_memory

__all__ = ["FRAMES_AHEAD", "Viewer"]

# How many frames a viewer may have outstanding.  With one, the round trip would limit its frame
# rate; each further one is memory that a stalled viewer holds.
FRAMES_AHEAD = 2


class Viewer:
    """A connection that frames are broadcast to.

    Only what the peer has acknowledged counts as taken; that the kernel took a frame says nothing.

    :ivar scope: the scope of its handler, cancelled when the viewer is dropped.
    :ivar dropped: it was stalled for too long.
    """

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self.scope = anyio.CancelScope()
        self.dropped = False
        # For anyio's own streams, which allow one send at a time.
        self.sending = False
        self._raw: Any = stream.extra(SocketAttribute.raw_socket)
        self._acknowledged, self._sent = _position(self._raw)
        # For each outstanding frame: where it ends, and when it was sent.
        self._frames: deque[tuple[int, float]] = deque()

    def look(self) -> None:
        """Find out what the peer has acknowledged by now."""
        try:
            self._acknowledged = acknowledged_on(self._raw)
        except (OSError, ValueError):
            return  # the viewer is gone, which its handler notices
        while self._frames and self._frames[0][0] <= self._acknowledged:
            self._frames.popleft()

    @property
    def is_ready(self) -> bool:
        """Whether it may be sent another frame."""
        return len(self._frames) < FRAMES_AHEAD and not self.sending

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
            return kernel_memory(self.stream)
        except (OSError, ValueError):
            return 0


def _position(raw: Any) -> tuple[int, int]:
    """Return how many bytes were acknowledged, and sent, since the connection was made."""
    while True:
        before = acknowledged_on(raw)
        (outstanding,) = struct.unpack("i", fcntl.ioctl(raw.fileno(), termios.TIOCOUTQ, bytes(4)))
        if acknowledged_on(raw) == before:
            return before, before + outstanding
