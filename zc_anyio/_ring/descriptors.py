"""The descriptor of a stream of anyio, trio or the socket module."""

from __future__ import annotations

import errno
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import anyio
from anyio.abc import ConnectedUDPSocket, SocketStream, UDPSocket

from .._base.errors import os_error

__all__ = ["EncryptedByKernel", "closed_error", "descriptor_of"]


class EncryptedByKernel(ABC):
    """A TLS stream whose plaintext goes to its socket, since the kernel encrypts it."""

    @property
    @abstractmethod
    def _raw_socket(self) -> socket.socket: ...


KNOWN = (SocketStream, ConnectedUDPSocket, UDPSocket, EncryptedByKernel)


def descriptor_of(stream: Any) -> tuple[int, Callable[[], int], int]:
    """Return a stream's descriptor, or -1 if it is closed, and what tells whether it still has it.

    The second part is a function, the third what it returns for as long as the stream has the
    descriptor.
    """
    plain = _plain_socket(stream)
    ssl: Any = sys.modules.get("ssl")
    # An SSLSocket is refused: its bytes have to be encrypted first, and here they would not be.
    if plain is not None and not (ssl is not None and isinstance(plain, ssl.SSLSocket)):
        fd = plain.fileno()
        return fd, plain.fileno, fd
    if isinstance(stream, KNOWN):
        # asyncio closes the socket later than the transport, and uvloop's stand-in for a socket
        # gives the number even after that, so the transport is asked.
        is_closing = getattr(getattr(stream, "_transport", None), "is_closing", None)
        if is_closing is not None and is_closing():
            return -1, is_closing, False
        # The same as SocketAttribute.raw_socket, which would ask the kernel for both addresses too.
        raw: Any = stream._raw_socket
        if (
            ssl is not None
            and isinstance(raw, ssl.SSLSocket)
            and not isinstance(stream, EncryptedByKernel)
        ):
            raise TypeError(f"{stream!r} is in use by TLS: send to the TLS stream")
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
    # asyncio closes the transport of a lost connection, although nobody has closed the stream.
    if getattr(stream, "_closed", True):
        return anyio.ClosedResourceError()
    broken = anyio.BrokenResourceError()
    broken.__cause__ = os_error(errno.ENOTCONN, "the connection was lost")
    return broken
