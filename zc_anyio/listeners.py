"""anyio's listeners, with streams that send through a ring."""

from __future__ import annotations

import socket
import warnings
from typing import Self

import anyio
from anyio import ResourceGuard
from anyio.abc import SocketListener
from anyio.lowlevel import checkpoint

from ._base.takeover import take_socket
from ._receiving.receiver import DirectAcceptor, is_shortage, wait_shortage
from ._ring.opening import require_ring
from ._ring.ring import Ring
from ._seqpacket import make_unix_stream
from .streams import ZeroCopySocketStream

__all__ = ["ZeroCopySocketListener"]


class ZeroCopySocketListener(SocketListener):
    """An anyio socket listener whose streams send through a ring; TCP or UNIX.

    Made by :func:`create_tcp_listener`, :func:`create_unix_listener` and :func:`wrap_listener`.
    """

    def __init__(self, ring: Ring, sock: socket.socket) -> None:
        self._closed = True
        self._ring = ring
        self._socket = sock
        self._acceptor = DirectAcceptor(ring, sock)
        self._accept_guard = ResourceGuard("accepting connections from")
        self._closed = False

    @classmethod
    async def from_socket(
        cls, sock_or_fd: socket.socket | int, *, ring: Ring | None = None
    ) -> Self:
        """Make a listener from a listening socket, which belongs to the listener from now on.

        :param sock_or_fd: a socket object or a file descriptor.
        :param ring: the ambient ring by default.
        :raises ValueError: the socket is not bound, or of another kind.
        :raises RuntimeError: no ring is open.
        """
        ring = require_ring(ring)
        made = await super().from_socket(sock_or_fd)
        sock, _ = await take_socket(made)
        return cls(ring, sock)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"fd={self._socket.fileno()}"
        return f"<{type(self).__name__} {state}>"

    @property
    def _raw_socket(self) -> socket.socket:
        return self._socket

    async def accept(self) -> ZeroCopySocketStream:
        """Wait for a connection and return its stream.

        While no descriptor or memory is left for another connection, this waits, and tries again
        ten times a second.  If cancelled, the call has taken no connection.

        :raises anyio.ClosedResourceError: the listener is closed, or was while this waited.
        :raises anyio.BrokenResourceError: the socket cannot accept; its cause is the ``OSError``.
        :raises anyio.BusyResourceError: another task is accepting.
        :raises RuntimeError: the ring is closed.
        """
        with self._accept_guard:
            while True:
                self._ring.check()
                try:
                    sock = await self._acceptor.accept()
                except OSError as exc:
                    raise anyio.BrokenResourceError from exc
                try:
                    return self._make_stream(sock)
                except OSError as exc:
                    sock.close()
                    # Any other error is one of this connection, which may have been reset.
                    if is_shortage(exc):
                        await wait_shortage(exc)
                except BaseException:
                    sock.close()
                    raise

    def _make_stream(self, sock: socket.socket) -> ZeroCopySocketStream:
        if sock.family == socket.AF_UNIX:
            return make_unix_stream(self._ring, sock)
        # As anyio does.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return ZeroCopySocketStream(self._ring, sock)

    async def aclose(self) -> None:
        """Close the listener; a task that waits in it gets :exc:`anyio.ClosedResourceError`.

        Its streams stay open.  Calling it again does nothing.  Cancellation does not prevent it.
        """
        if not self._closed:
            self._closed = True
            self._acceptor.close()
            self._socket.close()
        await checkpoint()

    def __del__(self) -> None:
        if self._closed:
            return
        try:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=1)
        finally:
            self._closed = True
            # Nothing refers to the listener, so no task waits in it.
            self._socket.close()
