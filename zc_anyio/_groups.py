"""Send groups: a tx context for the length of a scope."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from time import monotonic
from types import TracebackType
from typing import Any, Literal

import anyio
import anyio.lowlevel
from anyio import CancelScope, Event
from anyio.streams.memory import MemoryObjectReceiveStream
from typing_extensions import Self

from ._buffers import Buffer, Data, pin
from ._contexts import Context, Generation
from ._errors import os_error
from ._events import GroupStatistics, Notification, SendFailure
from ._lib import SENT_KICK, SENT_SHIFT, SENT_TURN, broadcast, queue, queue_vector
from ._ring import Ring, ZeroCopy, current_ring, open_ring
from ._sockets import AttachedSocket

__all__ = ["SendGroup", "send_group"]

DEFAULT_WINDOW = 16 << 20
# A task that never finds its window full gives the others a turn this often.
YIELD_SECONDS = 0.001
# A cancelled group waits this long for the buffers that its caller can change, then resets.
CANCEL_GRACE_SECONDS = 0.1

_tags = itertools.count(1)


class SendGroup:
    """Sends whose buffers are released by the time the scope is left; see :func:`send_group`."""

    def __init__(
        self,
        *,
        ring: Ring | None,
        tag: int | None,
        zero_copy: ZeroCopy | None,
        window: int,
        on_error: Literal["raise", "collect"],
        release_timeout: float | None,
    ) -> None:
        self.tag: int = next(_tags) if tag is None else tag
        self._ring_argument = ring
        self._zero_copy = zero_copy
        self._window = window
        self._collect = on_error == "collect"
        self._release_timeout = release_timeout
        self._stack = AsyncExitStack()
        self._entered = self._left = False
        self._failures: dict[object, SendFailure] = {}
        self._raised: set[object] = set()
        self._yield_at = 0.0

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError("a send group can be entered once")
        self._entered = True
        ring = self._ring_argument or current_ring()
        if ring is None:
            ring = await self._stack.enter_async_context(open_ring())
        ring.check_loop()
        self._ring = ring
        self._context: Context = ring.new_context(
            tag=self.tag, window=self._window, zero_copy=self._zero_copy, on_failed=self._on_failed
        )
        self._core = ring._native.core
        self._references = self._context.references
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        async with self._stack:
            self._left = True
            if self._ring._closed:
                raise RuntimeError("the ring was closed while a send group was open on it")
            try:
                if exc is not None and isinstance(exc, anyio.get_cancelled_exc_class()):
                    await self._abandon()
                else:
                    await self._release()
            finally:
                self._context.close()
        unraised = [f for stream, f in self._failures.items() if stream not in self._raised]
        if unraised and not self._collect and exc is None:
            raise ExceptionGroup(
                f"sends of a group failed on {len(unraised)} socket(s)",
                [_broken(failure.error) for failure in unraised],
            )

    # --- sending ---

    async def send(self, stream: object, data: Data) -> None:
        """Queue one send; the kernel may read ``data`` from now on, until it is released.

        Waits while the window is full.  Cancellation is noticed there, and whenever a millisecond
        has passed without yielding to other tasks; a cancelled call has queued nothing.

        :param stream: an anyio ``SocketStream`` or ``ConnectedUDPSocket``, a trio ``SocketStream``
            or socket, or a connected ``socket.socket``.
        :param data: a C-contiguous buffer, or a sequence of them to be gathered as one send.
        :raises TypeError: ``data`` is a ``str``, or has no buffer; ``stream`` is no socket.
        :raises BufferError: a buffer is not C-contiguous.
        :raises anyio.ClosedResourceError: the stream is closed, or the group was left.
        :raises anyio.BrokenResourceError: an earlier send broke the socket; from its ``OSError``.
        :raises OSError: a datagram that is too large (``EMSGSIZE``), a UDP socket without a peer.
        """
        while not self._queue(stream, data):
            await self._wait_window()
        if monotonic() >= self._yield_at:
            await anyio.lowlevel.checkpoint()
            self._yield_at = monotonic() + YIELD_SECONDS

    def send_nowait(self, stream: object, data: Data) -> None:
        """Queue one send, or raise :exc:`anyio.WouldBlock` if the window is full.

        Raises what :meth:`send` raises.
        """
        if not self._queue(stream, data):
            raise anyio.WouldBlock

    def _queue(self, stream: object, data: Data) -> bool:
        """Queue a send; ``False``: the window is full."""
        self._check()
        socket = self._ring._sockets.attach(stream)
        reference: object
        if type(data) is bytes:
            if not data and not socket.datagram:
                return True
            sent = queue(self._core, self._context.handle, socket.handle, data, len(data), 0)
            reference = data
        elif isinstance(data, list | tuple):
            pins, sizes, flags = _pin_all(data)
            if not socket.datagram and not any(sizes):
                return True
            sent = queue_vector(
                self._core, self._context.handle, socket.handle, pins, sizes, flags
            )
            reference = pins
        else:
            pinned, size, flags = pin(data)
            if not size and not socket.datagram:
                return True
            sent = queue(
                self._core, self._context.handle, socket.handle, pinned, size, flags
            )
            reference = pinned
        if sent < 0:
            return self._refused(sent, stream, socket)
        self._queued(sent, reference)
        return True

    def _queued(self, sent: int, reference: object) -> None:
        """Keep the reference of what was queued, and see to it that it leaves."""
        try:
            self._references[sent >> SENT_SHIFT].append(reference)
        except KeyError:
            self._references[sent >> SENT_SHIFT] = [reference]
        if sent & SENT_TURN:
            self._ring._reaper.turn()
        elif sent & SENT_KICK:
            self._ring._reaper.submit_soon()

    def _refused(self, result: int, stream: object, socket: AttachedSocket) -> bool:
        if result == -errno.EAGAIN:
            return False
        if result == -errno.EPIPE:
            self._raised.add(socket.streams[0])
            raise self._ring._sockets.broken(socket)
        raise os_error(-result)

    async def broadcast(self, streams: Iterable[object], data: Buffer) -> None:
        """Queue one buffer on many sockets, in one batch and held once.

        The window takes a broadcast as a whole, and counts its buffer once.  A stream that is
        closed or broken does not keep the others from their bytes: it is reported like a failed
        send (when the group is left, or in :attr:`failures`).

        Raises what :meth:`send` raises for wrong input, then with nothing queued.
        """
        targets = list(streams)
        while not self._queue_broadcast(targets, data):
            await self._wait_window()
        if monotonic() >= self._yield_at:
            await anyio.lowlevel.checkpoint()
            self._yield_at = monotonic() + YIELD_SECONDS

    def _queue_broadcast(self, targets: list[object], data: Buffer) -> bool:
        self._check()
        pinned, size, flags = (data, len(data), 0) if type(data) is bytes else pin(data)
        sockets: list[AttachedSocket] = []
        for stream in targets:
            try:
                sockets.append(self._ring._sockets.attach(stream))
            except anyio.BrokenResourceError as exc:
                cause = exc.__cause__
                self._fail(stream, cause if isinstance(cause, OSError) else os_error(errno.EPIPE))
            except anyio.ClosedResourceError:
                self._fail(stream, os_error(errno.EBADF, "the stream is closed"))
        if not sockets or not size:
            return True
        sent, errors = broadcast(
            self._core,
            self._context.handle,
            [socket.handle for socket in sockets],
            pinned,
            size,
            flags,
        )
        if sent == -errno.EAGAIN:
            return False
        for socket, number in zip(sockets, errors, strict=True):
            if number:
                reason = self._ring._native.socket_error(socket.handle) or number
                self._fail(socket.streams[0], os_error(reason))
        if sent >= 0:
            self._queued(sent, pinned)
        return True

    async def _wait_window(self) -> None:
        opened = self._context.window_opened
        if opened is None:
            opened = self._context.window_opened = Event()
        # What is queued must be on its way before anything can come back.
        self._ring._reaper.turn()
        await opened.wait()

    def flush(self) -> Generation:
        """End the open generation and push out what is queued.

        With nothing sent since the last flush this ends an empty generation, which is released at
        once.

        :return: the generation, to be waited for or not.
        """
        self._check()
        generation = self._context.flush(even_empty=True)
        assert generation is not None
        self._ring._reaper.turn()
        return generation

    def _check(self) -> None:
        if self._left or not self._entered:
            raise anyio.ClosedResourceError("the send group is not open")
        self._ring.check()

    # --- reports ---

    @property
    def notifications(self) -> MemoryObjectReceiveStream[Notification]:
        """A channel of :class:`Notification`, one a generation, in order.

        It begins with the generations released after the first use of this attribute, and ends when
        the group is left and all is released.  Close it, as any anyio stream.
        """
        return self._context.notifications

    @property
    def failures(self) -> list[SendFailure]:
        """One entry for each socket on which a send of this group failed so far."""
        return list(self._failures.values())

    def statistics(self) -> GroupStatistics:
        """Return the counters of this group, for as long as it is open."""
        self._check()
        counters = self._ring._native.context_statistics(self._context.handle)
        return GroupStatistics(
            sends=counters.sends,
            bytes_sent=counters.bytes_sent,
            zero_copied=counters.zero_copied,
            copied=counters.copied,
            staged=counters.staged,
            failed=counters.failed,
            unreleased_sends=counters.unreleased_sends,
            unreleased_bytes=counters.unreleased_bytes,
            generations_open=counters.generations_open,
            generations_released=counters.generations_released,
        )

    def _on_failed(self, ident: int, error: int) -> None:
        self._fail(self._ring._sockets.name(ident), os_error(error))

    def _fail(self, stream: object, error: OSError) -> None:
        self._failures.setdefault(stream, SendFailure(stream, error))

    # --- leaving ---

    async def _release(self) -> None:
        """Flush and wait for the release; reset what does not come back in time."""
        self._context.flush(even_empty=False)
        try:
            self._ring._reaper.turn()
            await anyio.lowlevel.checkpoint()
            with anyio.move_on_after(self._release_timeout):
                await self._context.wait_all_released()
                return
            await self._reset(errno.ETIMEDOUT, only_mutable=False)
        except anyio.get_cancelled_exc_class():
            await self._abandon()
            raise

    async def _abandon(self) -> None:
        """Leave in bounded time, with every buffer that the caller can change released.

        Buffers that nobody can change are left to the ring, which keeps them referenced.
        """
        self._context.flush(even_empty=False)
        self._ring._native.cancel(self._context.handle)
        self._ring._reaper.turn()
        with anyio.move_on_after(CANCEL_GRACE_SECONDS, shield=True):
            await self._context.wait_retired(only_mutable=True)
            return
        await self._reset(errno.ECANCELED, only_mutable=True)

    async def _reset(self, error: int, *, only_mutable: bool) -> None:
        """Drop the connections that hold on; their buffers come back at once."""
        self._context.reset(error, only_mutable=only_mutable)
        self._ring._reaper.turn()
        # Not bounded: only a network device that keeps a datagram can make this wait.
        with CancelScope(shield=True):
            await self._context.wait_retired(only_mutable=only_mutable)


def send_group(
    *,
    ring: Ring | None = None,
    tag: int | None = None,
    zero_copy: ZeroCopy | None = None,
    window: int = DEFAULT_WINDOW,
    on_error: Literal["raise", "collect"] = "raise",
    release_timeout: float | None = None,
) -> SendGroup:
    """Return a send group, to be entered with ``async with``: a scope that owns its buffers' release.

    When the block has been left, by whatever path, the kernel reads no buffer any more that the
    caller can change.  At its end, or after an exception, what was queued goes out and is waited
    for.  When it is cancelled, what the kernel has not taken is taken back; a connection whose send
    was cut short is shut down for sending; a changeable buffer that the kernel holds on to has its
    connection reset; buffers that cannot change (``bytes``) are left to the ring.

    :param ring: default the ambient ring; with none open, one is opened for this scope.
    :param tag: for :class:`Notification`; default one that no other group has.
    :param zero_copy: overrides the ring's policy, see :func:`open_ring`.
    :param window: bytes that may be unreleased before :meth:`SendGroup.send` waits.  A single
        larger send is let in alone.
    :param on_error: ``"raise"``: failures that no call has raised are raised when the group is
        left, as an ``ExceptionGroup`` of ``anyio.BrokenResourceError``, one entry a socket;
        ``"collect"``: they are in :attr:`SendGroup.failures` only.
    :param release_timeout: seconds that leaving waits for the peers; what is not released then is
        reset, and reported as failed with ``ETIMEDOUT``.  ``None``: as long as it takes.
    :raises ValueError: an argument is out of its range.
    """
    if window <= 0:
        raise ValueError("window must be a positive number of bytes")
    if on_error not in ("raise", "collect"):
        raise ValueError(f'on_error must be "raise" or "collect", not {on_error!r}')
    if release_timeout is not None and release_timeout < 0:
        raise ValueError("release_timeout must not be negative")
    if zero_copy not in (None, "auto", "always", "never"):
        raise ValueError(f'zero_copy must be "auto", "always" or "never", not {zero_copy!r}')
    return SendGroup(
        ring=ring,
        tag=tag,
        zero_copy=zero_copy,
        window=window,
        on_error=on_error,
        release_timeout=release_timeout,
    )


def _broken(error: OSError) -> anyio.BrokenResourceError:
    broken = anyio.BrokenResourceError()
    broken.__cause__ = error
    return broken


def _pin_all(parts: Sequence[Buffer]) -> tuple[list[Any], list[int], int]:
    pins: list[Any] = []
    sizes: list[int] = []
    flags = 0
    for part in parts:
        if type(part) is bytes:
            pins.append(part)
            sizes.append(len(part))
            continue
        pinned, size, part_flags = pin(part)
        pins.append(pinned)
        sizes.append(size)
        flags |= part_flags
    return pins, sizes, flags
