"""The descriptor of a stream, whoever made that: anyio, trio, or the socket module."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable
from typing import Any

import anyio
from anyio.abc import ConnectedUDPSocket, SocketStream, UDPSocket

from .._base.errors import os_error

__all__ = ["closed_error", "descriptor_of"]

ANYIO = (SocketStream, ConnectedUDPSocket, UDPSocket)


def descriptor_of(stream: Any) -> tuple[int, Callable[[], int], int]:
    """Return a stream's descriptor, or -1 once it is closed.

    And a function, and what that gives for as long as the stream has that descriptor.
    """
    plain = _plain_socket(stream)
    ssl: Any = sys.modules.get("ssl")
    # The bytes of an SSLSocket must be encrypted first, and these would not be.
    if plain is not None and not (ssl is not None and isinstance(plain, ssl.SSLSocket)):
        fd = plain.fileno()
        return fd, plain.fileno, fd
    if isinstance(stream, ANYIO):
        # asyncio closes the socket later than the transport, and uvloop's stand-in for a socket
        # goes on giving the number for ever, so the transport is asked.
        is_closing = getattr(getattr(stream, "_transport", None), "is_closing", None)
        if is_closing is not None and is_closing():
            return -1, is_closing, False
        # What SocketAttribute.raw_socket gives; but that asks the kernel for both addresses too.
        raw: Any = stream._raw_socket
        fd = raw.fileno()
        return (fd, raw.fileno, fd) if is_closing is None else (fd, is_closing, False)
    raise TypeError(
        "stream must be an anyio SocketStream or UDP socket, a trio SocketStream or socket, "
        f"or a socket.socket, not {type(stream).__name__}"
    )


def _plain_socket(stream: Any) -> Any:
    if isinstance(stream, socket.socket):
        return stream
    # Only a program that has imported trio can hand over one of its objects.
    trio: Any = sys.modules.get("trio")
    if trio is not None and isinstance(stream, trio.SocketStream):
        return stream.socket
    if trio is not None and isinstance(stream, trio.socket.SocketType):
        return stream
    return None


def closed_error(stream: Any) -> Exception:
    """Return the exception for a stream without a descriptor."""
    # asyncio closes the transport of a connection that was lost, though nobody closed the stream.
    if getattr(stream, "_closed", True):
        return anyio.ClosedResourceError()
    broken = anyio.BrokenResourceError()
    broken.__cause__ = os_error(errno.ENOTCONN, "the connection was lost")
    return broken
