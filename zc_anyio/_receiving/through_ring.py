"""Receiving through an io_uring.

One operation of a receiver stays armed and brings bytes for as long as they are taken, and one turn
reports what came for all sockets.  That pays when many tasks wait.  When few do, each wake-up
brings one message, and waiting for the socket itself costs less: no second task has to run.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from .._base.errors import os_error
from .._base.loops import Waiter
from .._native.lib import (
    RX_POLL,
    RX_RECEIVE,
    rx_consume,
    rx_data,
    rx_is_bulk,
    rx_ready,
    unpack,
)
from .._ring.ring import Ring
from .brief_waits import BriefWaits
from .receiver import CallbackReceiver, Receiver, make_direct_receiver

if TYPE_CHECKING:
    from .._sending.buffers import Buffer

__all__ = ["RingReceiver", "make_receiver"]

T = TypeVar("T")

# What rx_ready() answers when nothing has come.
NOT_YET, NOT_ARMED = -errno.EAGAIN, -errno.ENODATA

# When this many tasks wait already, further ones wait through the ring.
MANY = 4
# After this many small pieces in a row a stream that got large ones no longer counts as bulk.
SMALL, SMALL_IN_A_ROW = 4096, 8


def make_receiver(ring: Ring, sock: socket.socket, waits: BriefWaits) -> Receiver:
    """Return the receiver of a connected stream socket."""
    if ring._receives:
        return RingReceiver(ring, sock, waits)
    return make_direct_receiver(ring, sock, waits)


class RingReceiver:
    """Receives through the ring when many streams wait, and directly when few do."""

    def __init__(self, ring: Ring, sock: socket.socket, waits: BriefWaits) -> None:
        self._ring = ring
        self._fd = sock.fileno()
        self._handle: Any = None
        self._ident = 0
        self._event: Waiter | None = None
        self._new_waiter = ring._loop_calls.new_waiter
        self._wake = ring._loop_calls.wake
        self._closed = False
        self._recv = sock.recv
        self._recv_into = sock.recv_into
        self._direct = make_direct_receiver(ring, sock, waits)
        # Then the event loop reports bytes more cheaply than a poll through the ring does.
        self._stays_registered = isinstance(self._direct, CallbackReceiver)
        # Bytes that the ring had brought when it ended.
        self._left = b""
        self._checkpoint = ring._loop_calls.checkpoint
        self._small_in_a_row = 0

    async def receive(self, max_bytes: int) -> bytes:
        if self._is_awaited():
            await self._wait_told()
        elif self._is_direct():
            data = await self._receive_directly(self._direct.receive, max_bytes)
            self._note_size(len(data))
            return data
        else:
            await self._checkpoint()
        while (taken := self._take(max_bytes)) is None:
            await self._wait()
        return taken

    async def receive_into(self, buffer: Buffer) -> int:
        if self._is_direct():
            got = await self._receive_directly(self._direct.receive_into, buffer)
            self._note_size(got)
            return got
        await self._checkpoint()
        with memoryview(buffer).cast("B") as view:
            while True:
                if self._brings() or self._left:
                    data = self._take(view.nbytes)
                    if data is not None:
                        view[: len(data)] = data
                        return len(data)
                elif (size := self._try(self._recv_into, view)) is not None:
                    return size
                await self._wait()

    def _is_direct(self) -> bool:
        """Whether to receive without the ring: few tasks wait, or the pieces are large.

        Changing to direct receiving is possible while nothing comes through the ring.  Changing
        back is possible when everything that was taken from the socket directly has been received.
        """
        ring, handle = self._ring, self._handle
        if handle is None:
            if self._left:
                return False
            is_better = ring._receiving < MANY or not ring._receives
        elif self._stays_registered and rx_is_bulk(handle) and rx_ready(handle) == NOT_ARMED:
            is_better = self._small_in_a_row < SMALL_IN_A_ROW
        else:
            return False
        if is_better or self._direct.has_taken():
            return True
        self._direct.stop()
        return False

    def _note_size(self, size: int) -> None:
        self._small_in_a_row = self._small_in_a_row + 1 if size < SMALL else 0

    async def _receive_directly(self, receive: Callable[[Any], Awaitable[T]], argument: Any) -> T:
        self._ring._receiving += 1
        try:
            return await receive(argument)
        finally:
            self._ring._receiving -= 1

    def _is_awaited(self) -> bool:
        """Whether nothing has come, and an armed operation will report what comes."""
        return self._handle is not None and rx_ready(self._handle) == NOT_YET

    def _brings(self) -> bool:
        """Whether bytes come through the ring, so that none may be read directly."""
        return self._handle is not None and rx_ready(self._handle) != NOT_ARMED

    def _take(self, most: int) -> bytes | None:
        """Return what has come: ``b""`` at the end, ``None`` if nothing has come yet."""
        handle = self._handle
        if handle is not None:
            size = rx_ready(handle)
            if size == 0:
                return b""
            if size > 0:
                data: bytes = unpack(rx_data(handle), min(size, most))
                rx_consume(handle, len(data))
                return data
            if size == NOT_YET:
                return None
            if size != NOT_ARMED:
                raise os_error(-size)
        elif self._left:
            taken, self._left = self._left[:most], self._left[most:]
            return taken
        received = self._try(self._recv, most)
        if received is not None:
            self._note_size(len(received))
        return received

    def _try(self, function: Callable[..., T], argument: Any) -> T | None:
        if self._closed:
            raise anyio.ClosedResourceError
        try:
            return function(argument)
        except BlockingIOError:
            return None

    def _arm(self, what: int) -> None:
        if self._handle is None:
            self._ident, self._handle = self._ring._reaper.add_receiver(self, self._fd)
        self._ring._native.arm(self._handle, what)
        self._ring._reaper.submit_soon()

    async def _wait(self) -> None:
        if self._closed:
            await self._checkpoint()
            raise anyio.ClosedResourceError
        if not self._is_awaited():
            ring, handle = self._ring, self._handle
            if not ring._receives:
                await ring._loop_calls.wait_readable(self._fd)
                if self._closed:
                    raise anyio.ClosedResourceError
                return
            bulk = handle is not None and rx_is_bulk(handle)
            if bulk and self._small_in_a_row < SMALL_IN_A_ROW:
                self._arm(RX_POLL)
            else:
                self._small_in_a_row = 0
                self._arm(RX_RECEIVE)
        await self._wait_told()

    async def _wait_told(self) -> None:
        ring = self._ring
        ring._receiving += 1
        try:
            self._event = event = self._new_waiter()
            await event
        finally:
            ring._receiving -= 1
        if self._closed:
            raise anyio.ClosedResourceError

    def on_ready(self) -> None:
        """Something was brought, or the operation has ended."""
        if self._event is not None:
            self._wake(self._event)
            self._event = None

    def on_ring_stopped(self) -> None:
        """The ring brings nothing more; take over what it has brought."""
        handle = self._handle
        if handle is not None and (size := rx_ready(handle)) > 0:
            self._left = unpack(rx_data(handle), size)
        self._handle = None
        self.on_ready()

    def has_taken(self) -> bool:
        handle = self._handle
        if handle is not None and rx_ready(handle) not in (NOT_YET, NOT_ARMED):
            return True
        return bool(self._left) or self._direct.has_taken()

    def hand_over(self) -> bool:
        # An operation that is armed would go on taking.
        return not (self._is_awaited() or self.has_taken()) and self._direct.hand_over()

    def close(self) -> bool:
        handle = self._handle
        unread = bool(self._left) or (handle is not None and rx_ready(handle) > 0)
        self._closed = True
        if handle is not None and not self._ring.is_foreign():
            self._ring._reaper.remove_receiver(self._ident, handle)
        self._handle = None
        self.on_ready()
        return self._direct.close() or unread
