"""Taking the socket out of anyio's objects, which have resolved, raced or bound it."""

from __future__ import annotations

import os
import socket
from typing import Any

import anyio
from anyio.abc import SocketAttribute

__all__ = ["take_socket"]


async def take_socket(made: Any) -> tuple[socket.socket, list[Any]]:
    """Take the socket out of an anyio stream, listener or UDP socket, and close that object.

    :return: the socket, non-blocking; and what the object had received and nobody has read:
        chunks of bytes, or packets of a UDP socket.
    :raises anyio.ClosedResourceError: the object is closed.
    :raises anyio.BusyResourceError: bytes that the object has accepted are not sent yet.
    """
    # On asyncio and uvloop TCP and UDP have a transport.  uvloop's stand-in for its socket still
    # gives the number of the descriptor after that was closed.
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
