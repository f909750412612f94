"""Taking over streams and listeners that anyio has made."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, overload

from anyio.abc import SocketListener, SocketStream
from anyio.streams.stapled import MultiListener

from .._base.takeover import take_socket
from .._ring.opening import require_ring
from .._ring.ring import Ring
from .._seqpacket import make_unix_stream
from ..listeners import ZeroCopySocketListener
from ..streams import ZeroCopySocketStream

if TYPE_CHECKING:
    import trio.abc

__all__ = ["as_trio_stream", "take_over", "wrap_listener", "wrap_stream"]


async def wrap_stream(stream: SocketStream, *, ring: Ring | None = None) -> ZeroCopySocketStream:
    """Take over the connection of an anyio socket stream, and what it has received already.

    The anyio stream is closed by this; tasks that are using it get
    :exc:`anyio.ClosedResourceError`.  A cancel scope does not interrupt the call.

    :param stream: one of anyio's, TCP or UNIX.
    :param ring: the ambient ring by default.
    :raises TypeError: it is not a socket stream; of a TLS stream, wrap the transport.
    :raises anyio.ClosedResourceError: the stream is closed.
    :raises anyio.BusyResourceError: bytes that the stream has accepted are not sent yet.
    :raises RuntimeError: no ring is open.
    """
    ring = require_ring(ring)
    _expect(stream, SocketStream, ZeroCopySocketStream)
    return await take_over(stream, ring)


@overload
async def wrap_listener(
    listener: SocketListener, *, ring: Ring | None = ...
) -> ZeroCopySocketListener: ...


@overload
async def wrap_listener(
    listener: MultiListener[SocketStream], *, ring: Ring | None = ...
) -> MultiListener[SocketStream]: ...


async def wrap_listener(
    listener: SocketListener | MultiListener[SocketStream], *, ring: Ring | None = None
) -> ZeroCopySocketListener | MultiListener[SocketStream]:
    """Take over the socket of an anyio listener, or those of a ``MultiListener``.

    The anyio listener is closed by this.  A cancel scope does not interrupt the call.

    :param listener: one of anyio's, TCP or UNIX.
    :param ring: the ambient ring by default.
    :return: a :class:`ZeroCopySocketListener`, or a ``MultiListener`` of them.
    :raises TypeError: it is not a socket listener.
    :raises anyio.ClosedResourceError: the listener is closed.
    :raises RuntimeError: no ring is open.
    """
    ring = require_ring(ring)
    if isinstance(listener, MultiListener):
        return MultiListener([await _listen(one, ring) for one in listener.listeners])
    return await _listen(listener, ring)


def as_trio_stream(stream: ZeroCopySocketStream) -> trio.abc.HalfCloseableStream:
    """Return a trio stream over a stream of this library; closing one closes both.

    It raises trio's exceptions, and is for programs that run on trio.

    :param stream: a stream of this library.
    """
    from .trio_stream import TrioStream

    return TrioStream(stream)


async def take_over(made: SocketStream, ring: Ring) -> ZeroCopySocketStream:
    """Make a stream from the socket of an anyio stream, which is closed by this."""
    sock, received = await take_socket(made)
    try:
        if sock.family == socket.AF_UNIX:
            return make_unix_stream(ring, sock)
        return ZeroCopySocketStream(ring, sock, b"".join(received))
    except BaseException:
        sock.close()
        raise


async def _listen(made: object, ring: Ring) -> ZeroCopySocketListener:
    _expect(made, SocketListener, ZeroCopySocketListener)
    sock, _ = await take_socket(made)
    return ZeroCopySocketListener(ring, sock)


def _expect(made: object, kind: type, own: type) -> None:
    if not isinstance(made, kind) or isinstance(made, own):
        raise TypeError(f"expected an anyio {kind.__name__}, not {type(made).__name__}")
