"""Receiving and accepting: what streams and listeners call, and how it is done without the ring.

:func:`make_receiver` chooses the receiver of a stream.  Callers of :meth:`Receiver.receive` and
:meth:`DirectAcceptor.accept` make sure that only one task at a time calls them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import anyio
import anyio.lowlevel

from .._base.loops import AsyncioLoop, Loop
from .._ring.ring import Ring
from .._sending.buffers import Buffer
from .brief_waits import BriefWaits

__all__ = [
    "CallbackReceiver",
    "DirectAcceptor",
    "DirectReceiver",
    "ReceivedBefore",
    "Receiver",
    "is_shortage",
    "make_direct_receiver",
    "wait_shortage",
]

T = TypeVar("T")

# No descriptor or no memory is left for a connection, which stays in the listen queue meanwhile.
SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
SHORTAGE_SECONDS = 0.1

_log = logging.getLogger("zc_anyio")


class Receiver(Protocol):
    """The receiving half of a stream.  Every call is a checkpoint."""

    async def receive(self, max_bytes: int, /) -> bytes:
        """Return what has arrived, at least one byte; ``b""`` at the end of the stream.

        If cancelled, the call has taken nothing.

        :raises OSError: the connection failed.
        :raises anyio.ClosedResourceError: :meth:`close` was called, before or while this waits.
        """

    async def receive_into(self, buffer: Buffer, /) -> int:
        """Write what has arrived into a buffer; return how many bytes, 0 at the end."""

    def has_taken(self) -> bool:
        """Whether something was taken from the socket that nobody has received yet.

        It may be bytes, the end of the stream or an error.
        """

    def hand_over(self) -> bool:
        """Leave the socket to somebody else; ``False`` if something was taken or is being taken."""

    def close(self) -> bool:
        """Take nothing more, and wake a call that waits; to be called before the socket is closed.

        Returns whether bytes were taken from the socket that nobody has received.
        """


def make_direct_receiver(ring: Ring, sock: socket.socket, waits: BriefWaits) -> DirectReceiver:
    """Return a receiver that does not use the ring."""
    loop = ring._loop_calls
    # A notification of MSG_ZEROCOPY is an error event, after which uvloop never polls again.
    if isinstance(loop, AsyncioLoop) and ring.capabilities.driver != "msg_zerocopy":
        return CallbackReceiver(loop, sock, waits)
    return DirectReceiver(loop, sock, waits)


class DirectReceiver:
    """Receives by non-blocking system calls, and waits with the event loop.

    :param waits: those of a stream that sets ``sent``; by default nothing is learned from waits.
    """

    def __init__(self, loop: Loop, sock: socket.socket, waits: BriefWaits | None = None) -> None:
        self._loop = loop
        self._checkpoint = loop.checkpoint
        self._checkpoint_before = loop.checkpoint_before
        self._checkpoint_after = loop.checkpoint_after
        self._wait_readable = loop.wait_readable
        self._recv = sock.recv
        self._recv_into = sock.recv_into
        self._fd = sock.fileno()
        self._waits = waits or BriefWaits()
        self._closed = False

    async def receive(self, max_bytes: int) -> bytes:
        # This does what call() does, without its frame: it runs for every message.
        await self._checkpoint_before()
        self._check()
        try:
            data = self._recv(max_bytes)
        except BlockingIOError:
            return await self._wait(self._recv, max_bytes)
        await self._checkpoint_after()
        return data

    async def receive_into(self, buffer: Buffer) -> int:
        return await self.call(self._recv_into, buffer)

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a non-blocking function of the socket until it succeeds, waiting in between."""
        await self._checkpoint_before()
        self._check()
        try:
            result = function(*arguments)
        except BlockingIOError:
            return await self._wait(function, *arguments)
        await self._checkpoint_after()
        return result

    async def _wait(self, function: Callable[..., T], *arguments: Any) -> T:
        waits = self._waits
        awake = waits.begin()
        while True:
            try:
                if awake:
                    await self._checkpoint()
                else:
                    await self._wait_readable(self._fd)
                self._check()
                result: Any = function(*arguments)
                if waits.sent:
                    size = result if type(result) is int else len(result)
                    if awake:
                        waits.came(size)
                    else:
                        waits.woken(size)
                return cast("T", result)
            except BlockingIOError:
                awake = awake and waits.go_on()
            except Exception:
                self._check()
                raise

    def _check(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError

    def stop(self) -> None:
        """Stop watching the socket between calls."""

    def has_taken(self) -> bool:
        return False

    def hand_over(self) -> bool:
        self.stop()
        return not self.has_taken()

    def close(self) -> bool:
        if not self._closed:
            self._closed = True
            self._loop.notify_closing(self._fd)
        return self.has_taken()


class CallbackReceiver(DirectReceiver):
    """For asyncio and uvloop: the socket stays registered for as long as it is received from.

    It is read in the callback that says it is readable.  Registering it anew for each message would
    cost two system calls.
    """

    def __init__(self, loop: AsyncioLoop, sock: socket.socket, waits: BriefWaits) -> None:
        super().__init__(loop, sock, waits)
        self._add_reader = loop.loop.add_reader
        self._event_loop = loop.loop
        self._create_future = loop.loop.create_future
        # After a read of less than was asked for there is most likely nothing left, so waiting at
        # once saves a system call.
        self._drained = True
        self._registered = False
        # uvloop stops polling after an error event, such as a reset that came with data, and tells
        # nobody.  There it costs no system call to register what is registered.
        self._may_have_stopped = not isinstance(loop.loop, asyncio.SelectorEventLoop)
        self._waiter: asyncio.Future[bytes] | None = None
        self._size = 0
        # Bytes that came for a call which was cancelled at the same time.
        self._taken = b""
        self._error: OSError | None = None

    async def receive(self, max_bytes: int) -> bytes:
        data: bytes
        if not self._drained or self._closed:
            await self._checkpoint()
            self._check()
            if self._error is not None:
                raise self._error
            if self._taken:
                data, self._taken = self._taken[:max_bytes], self._taken[max_bytes:]
                return data
            try:
                data = self._recv(max_bytes)
            except BlockingIOError:
                pass
            else:
                self._drained = len(data) < max_bytes
                return data
        self._size = max_bytes
        self._waiter = waiter = self._create_future()
        if not self._registered or self._may_have_stopped:
            self._register()
        waits = self._waits
        try:
            awake = waits.begin()
            while awake:
                await self._checkpoint()
                if waiter.done():
                    break
                awake = waits.go_on()
            data = await waiter
            if awake:
                waits.came(len(data))
            else:
                waits.woken(len(data))
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._put_back(waiter)
            raise
        finally:
            self._waiter = None
        self._drained = len(data) < max_bytes
        return data

    def _on_readable(self) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            self._stop_reading()
            return
        try:
            waiter.set_result(self._recv(self._size))
        except BlockingIOError:
            pass
        except OSError as exc:
            waiter.set_exception(exc)

    def _put_back(self, waiter: asyncio.Future[bytes]) -> None:
        error = waiter.exception()
        if isinstance(error, OSError):
            self._error = error
        elif error is None:
            self._taken = waiter.result()
        self._drained = False

    def _register(self) -> None:
        try:
            self._add_reader(self._fd, self._on_readable)
        except RuntimeError:
            if not self._may_have_stopped or not self._registered:
                raise
            # uvloop has closed what it polled with, and still has it in its table.
            self._event_loop.remove_reader(self._fd)
            self._add_reader(self._fd, self._on_readable)
        self._registered = True

    def _stop_reading(self) -> None:
        if self._registered:
            self._registered = False
            if not self._event_loop.is_closed():
                self._event_loop.remove_reader(self._fd)

    async def receive_into(self, buffer: Buffer) -> int:
        self._stop_reading()
        if self._error is None and not self._taken:
            return await super().receive_into(buffer)
        with memoryview(buffer).cast("B") as view:
            data = await self.receive(view.nbytes)
            view[: len(data)] = data
            return len(data)

    def has_taken(self) -> bool:
        return bool(self._taken) or self._error is not None

    def stop(self) -> None:
        self._stop_reading()

    def close(self) -> bool:
        self._stop_reading()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(anyio.ClosedResourceError())
        return super().close()


class ReceivedBefore:
    """A receiver that first returns bytes that were received before it was made."""

    def __init__(self, received: bytes, receiver: Receiver) -> None:
        self._received = received
        self._receiver = receiver

    async def receive(self, max_bytes: int) -> bytes:
        if not self._received:
            return await self._receiver.receive(max_bytes)
        await anyio.lowlevel.checkpoint()
        taken, self._received = self._received[:max_bytes], self._received[max_bytes:]
        if not taken:
            raise anyio.ClosedResourceError
        return taken

    async def receive_into(self, buffer: Buffer) -> int:
        if not self._received:
            return await self._receiver.receive_into(buffer)
        with memoryview(buffer).cast("B") as view:
            taken = await self.receive(view.nbytes)
            view[: len(taken)] = taken
            return len(taken)

    def has_taken(self) -> bool:
        return bool(self._received) or self._receiver.has_taken()

    def hand_over(self) -> bool:
        return not self._received and self._receiver.hand_over()

    def close(self) -> bool:
        unread, self._received = self._received, b""
        return self._receiver.close() or bool(unread)


class DirectAcceptor:
    """Accepts by non-blocking system calls, and waits with the event loop."""

    def __init__(self, ring: Ring, sock: socket.socket) -> None:
        self._accept = sock.accept
        self._receiver = DirectReceiver(ring._loop_calls, sock)

    async def accept(self) -> socket.socket:
        """Return the next connection, non-blocking; wait while none can be taken.

        :raises OSError: the socket does not listen.
        :raises anyio.ClosedResourceError: :meth:`close` was called, before or while this waits.
        """
        while True:
            try:
                connection, _ = await self._receiver.call(self._accept)
            except ConnectionAbortedError:
                # The peer gave up while its connection was in the queue.
                continue
            except OSError as exc:
                if not is_shortage(exc):
                    raise
                await wait_shortage(exc)
            else:
                connection.setblocking(False)
                return connection

    def close(self) -> None:
        """Accept nothing more, and wake a waiting call; call this before closing the socket."""
        self._receiver.close()


def is_shortage(error: OSError) -> bool:
    """Whether an error goes away when other connections are closed."""
    return error.errno in SHORTAGES


_shortage_told = -1e9


async def wait_shortage(error: OSError) -> None:
    """Wait a little for descriptors or memory; log it, at most once a minute."""
    global _shortage_told
    now = anyio.current_time()
    if now - _shortage_told > 60:
        _shortage_told = now
        _log.warning("connections wait to be accepted: %s", error)
    await anyio.sleep(SHORTAGE_SECONDS)
