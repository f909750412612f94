"""Taking the socket out of anyio's objects, which made it by resolving, racing and binding."""

from __future__ import annotations

import os
import socket
from typing import Any

import anyio
from anyio.abc import SocketAttribute

__all__ = ["take_socket"]


async def take_socket(made: Any) -> tuple[socket.socket, list[Any]]:
    """Take the socket out of an anyio stream, listener or UDP socket, and close that object.

    :return: the socket, non-blocking; and what the object had received and not given to anybody:
        chunks of bytes, or of a UDP socket packets.
    :raises anyio.ClosedResourceError: it is closed.
    :raises anyio.BusyResourceError: bytes that it has accepted are not sent.
    """
    # TCP and UDP have a transport on asyncio and uvloop, whose stand-in for a socket goes on giving
    # the number of a descriptor that is closed.
    transport = getattr(made, "_transport", None)
    raw = made.extra(SocketAttribute.raw_socket)
    if raw.fileno() < 0 or (transport is not None and transport.is_closing()):
        raise anyio.ClosedResourceError
    received: list[Any] = []
    if transport is not None:
        if transport.get_write_buffer_size():
            raise anyio.BusyResourceError("writing to")
        received.extend(made._protocol.read_queue)
    sock = socket.socket(fileno=os.dup(raw.fileno()))
    try:
        sock.setblocking(False)
        if transport is not None:
            # Closing it would shut the connection down.
            transport.abort()
        with anyio.CancelScope(shield=True):
            await made.aclose()
    except BaseException:
        sock.close()
        raise
    return sock, received
