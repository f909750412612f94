"""Connections that read little, or nothing."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import anyio.to_thread
from anyio.abc import SocketAttribute, SocketStream

from .waiting import wait_until

__all__ = ["connect_slow", "wait_reset"]

# Otherwise the kernel would accept megabytes for a program that reads nothing.
RECEIVE_BUFFER = 8 << 10
POLL_SECONDS = 0.5


async def connect_slow(url: str) -> SocketStream:
    """Connect with a small receive buffer.

    :raises OSError: the server cannot be reached.
    """
    parts = urlsplit(url)
    sock = socket.socket()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        await anyio.to_thread.run_sync(sock.connect, (parts.hostname, parts.port or 80))
        sock.setblocking(False)
        return await SocketStream.from_socket(sock)
    except BaseException:
        sock.close()
        raise


async def wait_reset(stream: SocketStream) -> None:
    """Wait, reading nothing, until the peer resets the connection."""
    raw: socket.socket = stream.extra(SocketAttribute.raw_socket)
    await wait_until(
        lambda: raw.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0, every=POLL_SECONDS
    )
