"""Receiving and accepting: what streams and listeners call, and the way that needs no ring.

Whoever calls :meth:`Receiver.receive` or
:meth:`Acceptor.accept` sees to it that only one task at a time does.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import anyio
import anyio.lowlevel

from ._buffers import Buffer
from ._ring import Ring
from ._waiters import readable

__all__ = [
    "Acceptor",
    "DirectAcceptor",
    "DirectReceiver",
    "ReceivedBefore",
    "Receiver",
    "is_shortage",
    "wait_shortage",
]

T = TypeVar("T")

# No descriptor or no memory is left for a connection: it stays in the listen queue meanwhile.
SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
SHORTAGE_SECONDS = 0.1

_log = logging.getLogger("zc_anyio")


class Receiver(Protocol):
    """The receiving half of a stream.  Every call is a checkpoint."""

    async def receive(self, max_bytes: int, /) -> bytes:
        """Return what has arrived, at least one byte; ``b""`` at the end of the stream.

        A call that was cancelled has taken nothing.

        :raises OSError: the connection failed.
        :raises anyio.ClosedResourceError: :meth:`close` was called, also while this waits.
        """

    async def receive_into(self, buffer: Buffer, /) -> int:
        """Write what has arrived into a buffer; return how many bytes, 0 at the end."""

    def has_received(self) -> bool:
        """Whether something was taken from the socket, if only its end, and not received."""

    def close(self) -> bool:
        """Take nothing more, and wake a call that waits; before the socket is closed.

        Returns whether bytes that were taken from the socket have not been received.
        """


class Acceptor(Protocol):
    """What a listener takes its connections from.  Every call is a checkpoint."""

    async def accept(self) -> socket.socket:
        """Return the next connection, non-blocking; wait while none can be taken.

        :raises OSError: the socket does not listen.
        :raises anyio.ClosedResourceError: :meth:`close` was called, also while this waits.
        """

    def close(self) -> None:
        """Take no more connections, and wake a call that waits; before the socket is closed."""


class DirectReceiver:
    """Receives by non-blocking system calls, and waits with the event loop."""

    def __init__(self, ring: Ring, sock: socket.socket) -> None:
        self._recv = sock.recv
        self._recv_into = sock.recv_into
        error_queue = ring.capabilities.driver == "msg_zerocopy"
        self._readable = readable(sock.fileno(), error_queue=error_queue)
        self._closed = False
        # After less than was asked for there is most likely nothing: waiting at once saves a call.
        self._drained = True

    async def receive(self, max_bytes: int) -> bytes:
        if self._drained:
            await self._wait()
        else:
            await anyio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise anyio.ClosedResourceError
            try:
                data = self._recv(max_bytes)
            except BlockingIOError:
                await self._wait()
            else:
                self._drained = len(data) < max_bytes
                return data

    async def receive_into(self, buffer: Buffer) -> int:
        return await self.call(self._recv_into, buffer)

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a non-blocking function of the socket until it does not have to wait."""
        await anyio.lowlevel.checkpoint()
        while True:
            if self._closed:
                raise anyio.ClosedResourceError
            try:
                return function(*arguments)
            except BlockingIOError:
                await self._wait()

    async def _wait(self) -> None:
        if self._closed:
            await anyio.lowlevel.checkpoint()
            raise anyio.ClosedResourceError
        await self._readable.wait()

    def has_received(self) -> bool:
        return False

    def close(self) -> bool:
        if not self._closed:
            self._closed = True
            self._readable.close()
        return False


class ReceivedBefore:
    """A receiver that first gives what somebody else had received."""

    def __init__(self, received: bytes, receiver: Receiver) -> None:
        self._received = received
        self._receiver = receiver

    async def receive(self, max_bytes: int) -> bytes:
        if not self._received:
            return await self._receiver.receive(max_bytes)
        await anyio.lowlevel.checkpoint()
        return self._take(max_bytes)

    async def receive_into(self, buffer: Buffer) -> int:
        if not self._received:
            return await self._receiver.receive_into(buffer)
        await anyio.lowlevel.checkpoint()
        with memoryview(buffer).cast("B") as view:
            taken = self._take(view.nbytes)
            view[: len(taken)] = taken
        return len(taken)

    def _take(self, size: int) -> bytes:
        taken, self._received = self._received[:size], self._received[size:]
        return taken

    def has_received(self) -> bool:
        return bool(self._received) or self._receiver.has_received()

    def close(self) -> bool:
        unread, self._received = self._received, b""
        return self._receiver.close() or bool(unread)


class DirectAcceptor:
    """Accepts by non-blocking system calls, and waits with the event loop."""

    def __init__(self, ring: Ring, sock: socket.socket) -> None:
        self._accept = sock.accept
        self._receiver = DirectReceiver(ring, sock)

    async def accept(self) -> socket.socket:
        while True:
            try:
                connection, _ = await self._receiver.call(self._accept)
            except ConnectionAbortedError:
                # The peer has given up while it was in the queue.
                continue
            except OSError as exc:
                if not is_shortage(exc):
                    raise
                await wait_shortage(exc)
            else:
                connection.setblocking(False)
                return connection

    def close(self) -> None:
        self._receiver.close()


def is_shortage(error: OSError) -> bool:
    """Whether an error passes when other connections are closed."""
    return error.errno in SHORTAGES


_shortage_told = -1e9


async def wait_shortage(error: OSError) -> None:
    """Wait a little for descriptors or memory; log that, once a minute at most."""
    global _shortage_told
    now = anyio.current_time()
    if now - _shortage_told > 60:
        _shortage_told = now
        _log.warning("connections wait to be accepted: %s", error)
    await anyio.sleep(SHORTAGE_SECONDS)
