"""The sending half of this library's own streams and UDP sockets."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, SupportsIndex, TypeVar

import anyio

from ._base.errors import os_error
from ._base.loops import uninterrupted
from ._native.lib import (
    NO_ADDRESS,
    SEND_MUTABLE,
    SENT_COPIED,
    queue_or_send,
)
from ._receiving.receiver import Receiver
from ._ring.reaper import CLOSING_SECONDS
from ._ring.ring import Ring
from ._ring.sockets import AttachedSocket
from ._sending.buffers import Buffer, Data
from ._sending.groups import send_group
from ._sending.trains import Many, Run, Segments, Trains

__all__ = ["STREAM_WINDOW", "Output"]

T = TypeVar("T")

# Bytes that a stream has accepted and the kernel has not taken; the kernel's own buffers bound what
# it has taken.  A single larger send is admitted on its own.
STREAM_WINDOW = 1 << 20
# A changeable buffer of this size at most is copied, so that its owner need not wait for the peer.
COPIED_AT_MOST = 64 << 10
# A send that leaves alone has a turn and a notification of its own, so it is copied below this many
# times the threshold.  Measured, see docs/design.md.
ALONE_THRESHOLDS = 16


class Output(Trains):
    """A context and an attached socket for as long as a stream is open.

    A send that would be copied anyway is sent at once if the socket has nothing queued; every other
    send goes through the ring.

    :raises OSError: no descriptor is left for the ring's duplicate.
    """

    def __init__(self, ring: Ring, stream: object, sock: socket.socket) -> None:
        super().__init__()
        self._attached: AttachedSocket = ring._sockets.keep(stream, sock)
        self._socket = sock
        self._is_stream = sock.type != socket.SOCK_DGRAM
        self._is_tcp = self._is_stream and sock.family != socket.AF_UNIX
        self._start(ring, tag=0, window=STREAM_WINDOW, zero_copy=None)
        self._native = ring._native
        # Held sends do not count: they would limit a stream to one window per round trip.
        self._native.until_taken(self._context.handle)
        # With "always" small sends are staged instead of handed over by the call.  They leave with
        # the call all the same, since the program may keep the event loop to itself.
        self._leaves_at_once = ring._zero_copy == "always"
        small = ring._threshold
        if ring._zero_copy == "auto":
            small *= ALONE_THRESHOLDS
            self._native.copy_alone(self._context.handle, small)
        self._is_small = min(COPIED_AT_MOST, small)
        self._scope: anyio.CancelScope | None = None
        self.closed = False

    # --- what Queueing asks for ---

    def _check(self) -> None:
        if self.closed:
            raise anyio.ClosedResourceError
        self._ring.check()

    def _attach(self, stream: object, *, unconnected: bool = False) -> AttachedSocket:  # noqa: ARG002
        return self._attached

    def _on_failed(self, ident: int, error: int) -> None:
        """Do nothing: the socket remembers what broke it, and a datagram that failed is counted."""

    # --- sending ---

    @uninterrupted
    def offer(self, data: Buffer, to: Any = NO_ADDRESS) -> bool:
        """Send or queue a buffer that nobody changes; ``False`` if the window is full.

        :param to: the packed address of a datagram.
        :raises anyio.ClosedResourceError: the stream was closed.
        :raises anyio.BrokenResourceError: the socket is broken; its cause is the ``OSError``.
        """
        if self.closed:
            raise anyio.ClosedResourceError
        self._ring.check()
        pinned: Any
        reference: object
        if type(data) is bytes:
            pinned = reference = data
            size = len(data)
            flags = 0
        else:
            pinned, size, flags, reference = self._pin(data)
        if not size and self._is_stream:
            return True
        sent = queue_or_send(
            self._native.ring,
            self._context.handle,
            self._attached.handle,
            pinned,
            size,
            flags,
            to,
            len(to) if to else 0,
        )
        if sent == SENT_COPIED:
            return True
        if sent < 0:
            return self._failed(-sent)
        self._queued(sent, reference)
        return True

    async def send_segments(self, data: Data, segment_size: SupportsIndex, to: Any) -> None:
        """Queue what lies in a buffer as datagrams of one size; a changeable buffer is copied.

        Raises what :meth:`offer` raises.
        """
        await self._send_segments(self, data, segment_size, to)

    async def send_many(
        self, batches: Iterable[list[T]], in_runs: Callable[[list[T]], list[Run]]
    ) -> None:
        """Queue datagrams; what can change is copied.

        :param in_runs: takes together those of a batch that go to one address.

        Raises what :meth:`offer` raises.
        """
        await self._send_many(self, batches, in_runs)

    def _pin_all(self, parts: Sequence[Buffer]) -> tuple[list[Any], list[int], int, list[object]]:
        pinned = super()._pin_all(parts)
        if pinned[2] & SEND_MUTABLE:
            pinned = super()._pin_all([self._fixed(part) for part in parts])
        return pinned

    def _fixed(self, data: Buffer) -> Buffer:
        _, _, flags, _ = self._pin(data)
        return memoryview(data).tobytes() if flags & SEND_MUTABLE else data

    @uninterrupted
    def _queue_many(self, socket: AttachedSocket, many: Many) -> bool:
        sent, taken = many.datagrams.queue_or_send_many(
            self._native.ring, self._context.handle, socket.handle, many.left, many.flags
        )
        if sent < 0:
            return self._refused(sent, socket)
        queued = many.left[:taken]
        many.left = many.left[taken:]
        if sent != SENT_COPIED:
            self._queued(sent, many.references[queued.start : queued.stop])
        return True

    @uninterrupted
    def _queue_segments(self, socket: AttachedSocket, segments: Segments) -> bool:
        if segments.next_run() != segments.left or segments.left.start:
            return super()._queue_segments(socket, segments)
        sent = segments.datagrams.queue_or_send_segments(
            self._native.ring, self._context.handle, socket.handle, segments.size, segments.flags
        )
        if sent < 0:
            return self._refused(sent, socket)
        segments.left = range(0)
        if sent != SENT_COPIED:
            self._queued(sent, segments.references)
        return True

    def offer_parts(self, stream: object, parts: Sequence[bytes]) -> bool:
        """Queue several buffers as one send; ``False`` if the window is full."""
        return self._queue(stream, parts)

    def _push(self, sent: int) -> None:
        if sent & SENT_COPIED:
            if self._leaves_at_once:
                self._ring._reaper.turn()
            else:
                super()._push(sent)
            return
        # It gets a generation of its own, so that the reference goes as soon as the kernel lets go.
        # It gets a turn of its own, since it is large enough to be worth one.
        self._context.flush(even_empty=False)
        self._ring._reaper.turn()

    def unchangeable(self, data: Buffer) -> Buffer | None:
        """Return a buffer for :meth:`offer`, or ``None`` if only :meth:`send_held` can send it.

        :raises TypeError: it is not a buffer.
        :raises BufferError: it is not C-contiguous.
        """
        _, size, flags, _ = self._pin(data)
        if not flags & SEND_MUTABLE:
            return data
        return memoryview(data).tobytes() if size <= self._is_small else None

    async def send_held(self, stream: object, data: Buffer) -> None:
        """Send a buffer that its owner may change, and wait until the kernel lets go of it.

        If this is cancelled, or the stream is closed meanwhile, the send is taken back; see
        :func:`send_group` for what that means.
        """
        self._scope = anyio.CancelScope()
        try:
            with self._scope:
                async with send_group(ring=self._ring, on_error="collect") as group:
                    await group.send(stream, data)
                for failure in group.failures:
                    raise anyio.BrokenResourceError from failure.error
        finally:
            self._scope = None
        self._check()

    def _refused(self, result: int, socket: AttachedSocket) -> bool:  # noqa: ARG002
        return self._failed(-result)

    def _failed(self, number: int) -> bool:
        if number == errno.EAGAIN:
            return False
        if self._native.socket_error(self._attached.handle):
            # Its connection has to be shut down.
            self._ring._reaper.submit_soon()
            raise self._ring._sockets.broken(self._attached)
        raise anyio.BrokenResourceError from os_error(number)

    def lost_connection(self) -> OSError | None:
        """Return why sending has failed, if the failure may have ended the connection."""
        if self.closed or self._ring._closed:
            return None
        # The completion of the failed send may not have been reaped yet.
        self._ring._reaper.turn()
        number = self._native.socket_error(self._attached.handle)
        # A send that was cut short on this side says nothing about the peer.
        return os_error(number) if number not in (0, errno.ECANCELED) else None

    # --- waiting ---

    async def wait_window(self) -> None:
        """Wait until a buffer that was refused fits."""
        await self._wait_window()
        self._check()

    async def wait_room(self) -> None:
        """Wait until the window is not full, or the socket is broken."""
        while self._native.context_statistics(
            self._context.handle
        ).unreleased_bytes >= STREAM_WINDOW and not self._native.socket_error(
            self._attached.handle
        ):
            await self._wait_turn()

    async def wait_sent(self) -> None:
        """Wait until the kernel has taken all bytes of the socket, whoever queued them.

        :raises anyio.BrokenResourceError: the socket is broken.
        """
        while self._native.has_unsent(self._attached.handle):
            await self._wait_turn()
        if self._native.socket_error(self._attached.handle):
            raise self._ring._sockets.broken(self._attached)

    async def _wait_turn(self) -> None:
        await self._ring._reaper.wait_turn()
        self._check()
        if self._ring._reaper.stopped is not None:
            raise RuntimeError("the ring has stopped") from self._ring._reaper.stopped

    # --- the end ---

    def adopt(self, stream: object, sock: socket.socket) -> None:
        """Go on with another descriptor of the same socket; the ring's duplicate stays."""
        self._socket = sock
        self._ring._sockets.keep(stream, sock)

    def close(self, name: object, *, reset: bool = False) -> None:
        """Accept nothing more; what was accepted goes out, then the ring's duplicate is closed.

        To be called before the stream's own descriptor is closed.

        :param name: the object for which later failures are reported.
        :param reset: drop what was accepted and has not arrived.
        """
        self.closed = True
        if self._ring._closed or self._ring.is_foreign():
            return
        if self._scope is not None:
            self._scope.cancel()
        if reset:
            self._native.reset_socket(self._attached.handle, errno.ECONNRESET)
        self._context.flush(even_empty=False)
        self._context.close()
        if not self._ring._sockets.let_go(self._attached, name) and self._is_tcp:
            # A closed connection must not wait for ever for a peer that takes nothing.
            with suppress(OSError):  # it has failed already
                self._socket.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, CLOSING_SECONDS * 1000
                )

    def reset(self) -> None:
        """Reset the connection: what was accepted and has not arrived fails, and is dropped."""
        if self.closed or self._ring._closed or self._ring.is_foreign():
            return
        self._native.reset_socket(self._attached.handle, errno.ECONNRESET)
        self._ring._reaper.turn()

    def drop(self, receiver: Receiver) -> None:
        """Close a stream that was dropped without being closed, in whatever thread that happens."""
        self._ring.call_in_own_thread(partial(self._close_dropped, receiver), self._socket.close)

    def _close_dropped(self, receiver: Receiver) -> None:
        # It raises when the event loop has ended: then there is nobody to wake.
        with suppress(RuntimeError):
            receiver.close()
        self.close(self._socket)
        self._socket.close()
