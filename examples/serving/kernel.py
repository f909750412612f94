"""What the kernel knows about the peer of a connection."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from typing import Any

__all__ = ["acknowledged", "kernel_memory", "position"]

# linux/tcp.h: tcpi_bytes_acked, since Linux 4.1.
TCPI_BYTES_ACKED = 120
# asm-generic/socket.h and linux/sock_diag.h; Python's socket module has no names for them.
SO_MEMINFO = 55
MEMINFO_FIELDS = 9
MEMINFO_WRITE_QUEUE = 5


def acknowledged(raw: Any) -> int:
    """Return how many bytes the peer has acknowledged since the connection was made.

    :param raw: the raw socket.
    :raises OSError: it is closed.
    """
    info = raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCPI_BYTES_ACKED + 8)
    (count,) = struct.unpack_from("=Q", info, TCPI_BYTES_ACKED)
    return int(count)


def position(raw: Any) -> tuple[int, int]:
    """Return how many bytes were acknowledged, and sent, since the connection was made.

    :raises OSError: the socket is closed.
    """
    while True:
        before = acknowledged(raw)
        (outstanding,) = struct.unpack("i", fcntl.ioctl(raw.fileno(), termios.TIOCOUTQ, bytes(4)))
        if acknowledged(raw) == before:
            return before, before + outstanding


def kernel_memory(raw: Any) -> int:
    """Return how much memory the socket is charged for what the peer has not acknowledged.

    The kernel counts the pages of a zero-copy send as well, though they are the program's memory.

    :raises OSError: the socket is closed.
    """
    fields = struct.unpack(
        f"{MEMINFO_FIELDS}I", raw.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4 * MEMINFO_FIELDS)
    )
    return int(fields[MEMINFO_WRITE_QUEUE])
