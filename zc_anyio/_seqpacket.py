"""UNIX streams by their kind: bytes, through the ring, or messages, without it."""

from __future__ import annotations

import socket

import anyio

from ._ring.ring import Ring
from ._sending.buffers import Buffer
from .streams import ZeroCopyUNIXSocketStream

__all__ = ["make_unix_stream"]


class SeqpacketStream(ZeroCopyUNIXSocketStream):
    """A UNIX stream of ``SOCK_SEQPACKET``: what one call sends, one call receives.

    It sends without the ring, which has no messages that keep their order; send groups refuse it.
    """

    async def send(self, item: Buffer) -> None:
        """Send a message no larger than the socket's send buffer; an empty one is not sent.

        If cancelled, the call has sent nothing.

        Raises what :meth:`ZeroCopySocketStream.send` raises.  A message that is too large raises
        :exc:`anyio.BrokenResourceError`, after which the stream is still usable.
        """
        with self._sending, memoryview(item) as view:
            await self._checkpoint_before()
            self._output._check()
            if self._eof_sent:
                raise anyio.ClosedResourceError("the end of the stream was sent")
            if view.nbytes:
                await self._send_past_ring(item, [])
            await self._checkpoint_after()


def make_unix_stream(ring: Ring, sock: socket.socket) -> ZeroCopyUNIXSocketStream:
    """Return the stream of a connected UNIX socket, by its kind."""
    if sock.type == socket.SOCK_SEQPACKET:
        return SeqpacketStream(ring, sock)
    return ZeroCopyUNIXSocketStream(ring, sock)
