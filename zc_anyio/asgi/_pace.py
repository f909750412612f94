"""How fast a peer takes what is sent to it, as the kernel counts it."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from typing import Any

__all__ = ["Pace"]

# linux/tcp.h: tcpi_bytes_acked, since Linux 4.1.
TCPI_BYTES_ACKED = 120


class Pace:
    """Notices a peer that takes too little.

    :ivar least_rate: bytes a second.
    :param seconds: the time over which that is measured.
    """

    def __init__(self, raw: Any, least_rate: float, seconds: float) -> None:
        self._raw = raw
        self.least_rate = least_rate
        self._seconds = seconds
        self._since = 0.0
        self._taken = self._sent = 0

    def is_slow(self, now: float) -> bool:
        """Whether the peer has taken less, and all the time there was something to take.

        :param now: by ``time.monotonic``.
        """
        elapsed = now - self._since
        if elapsed < self._seconds:
            return False
        try:
            taken = self._acknowledged()
            (left,) = struct.unpack("i", fcntl.ioctl(self._raw, termios.TIOCOUTQ, bytes(4)))
        except (OSError, ValueError):  # the connection is gone
            return False
        # Some of what was sent before this time has not been taken yet.
        behind = taken < self._sent
        slow = behind and taken - self._taken < self.least_rate * elapsed
        self._since, self._taken, self._sent = now, taken, taken + left
        return slow

    def _acknowledged(self) -> int:
        info = self._raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCPI_BYTES_ACKED + 8)
        (count,) = struct.unpack_from("=Q", info, TCPI_BYTES_ACKED)
        return int(count)
