"""Send groups: a tx context for the length of a scope."""

from __future__ import annotations

import errno
import itertools
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Literal, Self

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from .._base.loops import uninterrupted
from .._base.reports import Notification
from .._native.lib import queue_rest, send_alone
from .._ring.leaving import Leaving
from .._ring.opening import current_ring, open_ring
from .._ring.ring import Ring, ZeroCopy
from .buffers import Data
from .senders import DEFAULT_WINDOW, Sender

__all__ = ["SendGroup", "send_group"]

_tags = itertools.count(1)


class SendGroup(Sender):
    """A scope whose sends are released by the time it is left; see :func:`send_group`.

    :ivar tag: the tag that its notifications carry.
    """

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
        super().__init__()
        self.tag: int = next(_tags) if tag is None else tag
        self._ring_argument = ring
        self._zero_copy = zero_copy
        self._window = window
        self._collect = on_error == "collect"
        self._release_timeout = release_timeout
        # Ends the ring that was opened for this scope.
        self._stack: AsyncExitStack | None = None
        # A context is made when it is needed; one small message is sent without it.
        self._entered = self._left = self._has_context = False
        # A message sent without a context is shorter than this; and how long it was.
        self._alone_below = self._alone = 0
        # The empty channel of a group that was left without a context.
        self._ended: MemoryObjectReceiveStream[Notification] | None = None

    async def __aenter__(self) -> Self:
        if self._entered:
            raise RuntimeError("a send group can be entered once")
        self._entered = True
        ring = self._ring_argument or current_ring()
        if ring is None:
            self._stack = AsyncExitStack()
            ring = await self._stack.enter_async_context(open_ring())
        ring.check_loop()
        self._ring = ring
        if (self._zero_copy or ring._zero_copy) != "always":
            self._alone_below = ring._threshold
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._stack is None:
            await self._leave(exc)
        else:
            async with self._stack:
                await self._leave(exc)
        if self._failures and not self._collect and exc is None:
            self._raise_failures()

    def _raise_failures(self) -> None:
        unraised = [f for socket, f in self._failures.items() if socket not in self._raised]
        if unraised:
            raise ExceptionGroup(
                f"sends of a group failed on {len(unraised)} socket(s)",
                [_broken(failure.error) for failure in unraised],
            )

    # --- what Sender asks for ---

    def _check(self) -> None:
        self._check_open()
        if not self._has_context:
            self._make_context()

    @uninterrupted
    def _queue_any(self, stream: object, data: Data, flags: int) -> bool:
        if self._has_context:
            return super()._queue_any(stream, data, flags)
        self._check_open()
        if not self._alone and type(data) is bytes and 0 < len(data) < self._alone_below:
            return self._send_alone(stream, data)
        self._make_context()
        return self._queue(stream, data, flags)

    @property
    def notifications(self) -> MemoryObjectReceiveStream[Notification]:
        """A channel with one :class:`Notification` for each generation, in order.

        It begins with the generations released after the first use of this attribute.  It ends when
        the group was left and everything is released.  Close it like any anyio stream.
        """
        if self._left and not self._has_context:
            if self._ended is None:
                channel, self._ended = anyio.create_memory_object_stream[Notification]()
                channel.close()
            return self._ended
        if not self._has_context:
            self._make_context()
        return super().notifications

    # --- the context ---

    def _check_open(self) -> None:
        if self._left or not self._entered:
            raise anyio.ClosedResourceError("the send group is not open")
        self._ring.check()

    @uninterrupted
    def _make_context(self) -> None:
        self._has_context = True
        self._start(self._ring, tag=self.tag, window=self._window, zero_copy=self._zero_copy)
        if self._release_timeout is not None:
            self._context.may_reset()
        if self._alone:
            self._ring._native.count_direct(self._context.handle, self._alone)

    @uninterrupted
    def _send_alone(self, stream: object, data: bytes) -> bool:
        """Hand the group's first message, if it is small, to the kernel at once.

        Most groups that begin with a small message end after it, and then need not wait.
        """
        socket = self._attach(stream)
        native = self._ring._native
        taken = send_alone(native.ring, socket.handle, data, len(data))
        if taken == len(data):
            self._alone = taken
            return True
        self._make_context()
        if taken <= 0:
            queued = self._queue(stream, data)
            if taken:
                native.fail_socket(socket.handle, -taken)
            return queued
        sent = queue_rest(self._core, self._context.handle, socket.handle, data, len(data), taken)
        if sent < 0:
            return self._refused(sent, socket)
        self._queued(sent, data)
        return True

    # --- leaving ---

    async def _leave(self, exc: BaseException | None) -> None:
        self._left = True
        if self._has_context:
            self._context.take_no_more()
            if self._ring.is_foreign():
                return
        if self._ring._closed:
            raise RuntimeError("the ring was closed while a send group was open on it")
        # After an exception that ends the program, as after a cancellation, no peer is waited for.
        in_order = exc is None or isinstance(exc, Exception)
        if not self._has_context:
            if in_order:
                await self._ring._loop_calls.checkpoint()
            return
        leaving = Leaving(self._ring._reaper, exc)
        try:
            if in_order:
                await self._release(leaving)
            else:
                await self._context.take_back(leaving)
        finally:
            self._context.close()
        leaving.end()

    async def _release(self, leaving: Leaving) -> None:
        """Flush and wait for the release; reset connections that do not release in time."""
        context, reaper = self._context, self._ring._reaper
        context.flush(even_empty=False)
        try:
            if not context.is_all_released():
                reaper.turn()
            await self._ring._loop_calls.checkpoint()
            if context.is_all_released():
                return
            with anyio.move_on_after(self._release_timeout):
                await context.wait_all_released()
                return
        except BaseException as exc:
            if reaper.stopped is not None or self._ring._closed:
                raise
            leaving.raised = exc
            await context.take_back(leaving)
        else:
            await context.reset(errno.ETIMEDOUT, leaving)


def send_group(
    *,
    ring: Ring | None = None,
    tag: int | None = None,
    zero_copy: ZeroCopy | None = None,
    window: int = DEFAULT_WINDOW,
    on_error: Literal["raise", "collect"] = "raise",
    release_timeout: float | None = None,
) -> SendGroup:
    """Return a send group, to be entered with ``async with``: a scope for the buffers it sends.

    When the block has been left, by whatever path, the kernel no longer reads any buffer that the
    caller can change.  At its end, or after an exception, what was queued goes out and is waited
    for.  When it is cancelled, what the kernel has not taken is taken back, and a connection whose
    send was cut short is shut down for sending.  If the kernel goes on reading a changeable buffer,
    the connection is reset.  Buffers that cannot change (``bytes``) are left to the ring.

    The first message of a group leaves with the call if it is ``bytes`` below the ring's threshold
    and its connection has nothing queued; later ones are gathered.

    :param ring: the ambient ring by default; with none open, one is opened for this scope.
    :param tag: for :class:`Notification`; by default one that no other group has.
    :param zero_copy: overrides the ring's policy, see :func:`open_ring`.
    :param window: bytes that may be unreleased before :meth:`SendGroup.send` waits.  A single
        larger send is admitted on its own.
    :param on_error: ``"raise"``: failures that no call has raised are raised when the group is
        left, as an ``ExceptionGroup`` of ``anyio.BrokenResourceError``, one for each socket;
        ``"collect"``: they are in :attr:`SendGroup.failures` only.
    :param release_timeout: seconds that leaving waits for the peers.  Connections whose sends are
        not released then are reset, and reported as failed with ``ETIMEDOUT``.  ``None``: no limit.
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
