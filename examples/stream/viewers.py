"""A viewer of the live picture: what has been sent to it, and what of that it has taken."""

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

# Frames that a viewer may have outstanding.  With one, the round trip would bound its frame rate;
# each more is memory that a stalled viewer holds.
FRAMES_AHEAD = 2


class Viewer:
    """A connection that frames are broadcast to.

    What the peer has acknowledged is the measure: that the kernel has taken a frame says nothing.

    :ivar scope: of its handler; cancelled when the viewer is dropped.
    :ivar dropped: it was stalled for too long.
    """

    def __init__(self, stream: SocketStream) -> None:
        self.stream = stream
        self.scope = anyio.CancelScope()
        self.dropped = False
        # With anyio's own streams: one send at a time.
        self.sending = False
        self._raw: Any = stream.extra(SocketAttribute.raw_socket)
        self._acknowledged, self._sent = _position(self._raw)
        # Of each outstanding frame: where it ends, and when it was sent.
        self._frames: deque[tuple[int, float]] = deque()

    def look(self) -> None:
        """See what the peer has acknowledged by now."""
        try:
            self._acknowledged = acknowledged_on(self._raw)
        except (OSError, ValueError):
            return  # it is gone, which its handler sees
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
        """A frame was queued."""
        self._sent += size
        self._frames.append((self._sent, now))

    @property
    def unacknowledged(self) -> int:
        """Bytes on their way to it, wherever they are."""
        return self._sent - self._acknowledged

    def kernel_memory(self) -> int:
        """Return the bytes that its socket accounts for them."""
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
