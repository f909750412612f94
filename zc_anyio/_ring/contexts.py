"""Tx contexts: generations, the references that they hold, and their notifications."""

from __future__ import annotations

import errno
import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import anyio
import anyio.lowlevel
from anyio import Event
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from .._base.reports import Notification
from .._native.ring import NativeRing
from .leaving import Leaving
from .reaper import Reaper

__all__ = ["Context", "Generation", "Lease"]


class Generation:
    """Sends whose buffers are released together.

    A generation that a flush returned stands for everything sent since the flush before.  It counts
    as released only when the generations that ended in between, by a full window, are released too.

    :ivar tag: the tag of its context.
    :ivar number: counted from 0 in its context.
    """

    __slots__ = ("_context", "_unreleased", "number", "tag")

    def __init__(self, context: Context, first: int, number: int) -> None:
        self._context = context
        # The first that may be unreleased, of the generations that this one stands for.
        self._unreleased = first
        self.tag: int = context.tag
        self.number: int = number

    def __repr__(self) -> str:
        state = "released" if self.is_released else "flushed"
        return f"<Generation {self.number} of {self.tag:#x}, {state}>"

    @property
    def is_released(self) -> bool:
        """Whether the kernel has given back every buffer of the generation."""
        while self._unreleased <= self.number and self._context.is_released(self._unreleased):
            self._unreleased += 1
        return self._unreleased > self.number

    async def wait_released(self) -> None:
        """Wait until the kernel reads no buffer of this generation any more.

        Cancelling the wait changes nothing else: the kernel goes on reading the buffers.
        """
        await anyio.lowlevel.checkpoint()
        while not self.is_released:
            await self._context.wait_released(self._unreleased)


# How long a cancelled scope waits for buffers that its caller can change, before it resets
# connections.
GRACE_SECONDS = 0.1


class Lease(Protocol):
    """Something that is given back when a generation is released."""

    def give_back(self) -> None: ...


class _Result:
    __slots__ = ("error", "event")

    def __init__(self) -> None:
        self.error: int | None = None
        self.event = Event()


class Context:
    """One tx context of a ring: it numbers its generations, and keeps what they hold alive.

    :param window: bytes that may be unreleased before a send is refused.
    :param policy: ``"auto"``, ``"always"`` or ``"never"``.
    :param threshold: bytes from which ``"auto"`` zero-copies; what is smaller is staged.
    :param on_failed: called with the number of a socket and an errno for each send that failed.
    """

    def __init__(
        self,
        native: NativeRing,
        reaper: Reaper,
        *,
        tag: int,
        window: int,
        policy: str,
        threshold: int,
        on_failed: Callable[[int, int], None],
    ) -> None:
        self.tag = tag
        self.on_failed: Callable[[int, int], None] = on_failed
        self._native = native
        self._reaper = reaper
        self.ident: int = reaper.add(self)
        self.handle: Any = native.new_context(self.ident, window, policy, threshold)
        # The handle while sends are accepted; afterwards one that the native part refuses.
        self.open_handle: Any = self.handle
        # What each generation keeps alive, from its first send until its release.
        self.references: dict[int, list[object]] = {}
        # Pool buffers that each generation uses, which go back to their pool on its release; and
        # files whose size has to be checked then.
        self.leases: dict[int, list[Lease]] = {}
        self.window_opened: Event | None = None
        self._told = 0
        # The first generation that is not covered by one that a flush has returned.
        self._next_flushed = 0
        self._released_early: set[int] = set()
        self._waiting: dict[int, Event] = {}
        self._results: dict[int, _Result] = {}
        self._orphaned = self._may_reset = self._by_hand = False
        self._channel: MemoryObjectSendStream[Notification] | None = None
        self._receiver: MemoryObjectReceiveStream[Notification] | None = None

    # --- told by the reaper ---

    def on_released(self, generation: int) -> None:
        """Drop the references of a generation, and wake everybody who waits for it."""
        self.references.pop(generation, None)
        if self.leases:
            for lease in self.leases.pop(generation, ()):
                lease.give_back()
        if self._waiting and (event := self._waiting.pop(generation, None)) is not None:
            event.set()
        if generation == self._told:
            self._tell()
            while self._told in self._released_early:
                self._released_early.remove(self._told)
                self._tell()
        else:
            self._released_early.add(generation)
        if self._orphaned:
            self._free_if_released()

    def _tell(self) -> None:
        if self._channel is not None:
            with suppress(anyio.BrokenResourceError):
                self._channel.send_nowait(Notification(self.tag, self._told))
        self._told += 1

    def on_result(self, ticket: int, error: int) -> None:
        """A reported send was taken by the kernel, or failed."""
        # The result may be reported before the sender waits for it.
        result = self._results.setdefault(ticket, _Result())
        result.error = error
        result.event.set()

    def on_window(self) -> None:
        """A send that was refused fits now."""
        if self.window_opened is not None:
            self.window_opened.set()
            self.window_opened = None

    def on_ring_stopped(self) -> None:
        """Wake whoever waits for an event: none will come any more."""
        self.on_window()
        for event in self._waiting.values():
            event.set()
        for result in self._results.values():
            result.event.set()

    # --- generations ---

    def by_hand(self) -> None:
        """Have only the program end generations."""
        self._native.by_hand(self.handle)
        self._by_hand = True

    def flush_leases(self) -> None:
        """End the open generation, so that the pool buffers that were sent in it can come back."""
        if self.leases and not self._by_hand:
            self.flush(even_empty=False)

    def flush(self, *, even_empty: bool) -> Generation | None:
        """End the open generation; see :meth:`NativeRing.flush`."""
        number = self._native.flush(self.handle, even_empty=even_empty)
        if number is None:
            return None
        first = self._next_flushed
        if even_empty:  # the program's own flush
            self._next_flushed = number + 1
        return Generation(self, first, number)

    def is_released(self, number: int) -> bool:
        """Whether a generation that was begun is released."""
        return number < self._told or number in self._released_early

    async def wait_released(self, number: int) -> None:
        """Wait for the release of one generation."""
        while not self.is_released(number):
            self._check_ring()
            await self._waiting.setdefault(number, Event()).wait()

    async def wait_all_released(self) -> None:
        """Wait for the release of every generation begun so far; the last must be flushed."""
        for number in range(self._told, self._native.generations(self.handle)):
            await self.wait_released(number)

    def is_all_released(self) -> bool:
        """Whether every generation begun so far is released."""
        return self._told == self._native.generations(self.handle)

    def has_unreleased(self, *, only_mutable: bool) -> bool:
        """Whether any send is not settled, or any of a buffer that the caller can change."""
        return self._native.unreleased(self.handle, only_mutable=only_mutable) > 0

    async def wait_result(self) -> int:
        """Wait for the result of the reported send that was queued last; return its errno or 0.

        Cancelling the wait does not cancel the send.
        """
        ticket = self._native.ticket(self.handle)
        result = self._results.setdefault(ticket, _Result())
        try:
            self._reaper.turn()
            while result.error is None:
                self._check_ring()
                await result.event.wait()
        finally:
            del self._results[ticket]
        return result.error

    def _check_ring(self) -> None:
        if self._reaper.stopped is not None:
            raise RuntimeError("the ring has stopped") from self._reaper.stopped
        if self.handle == self._native.no_handle:
            raise RuntimeError("the ring is closed")

    # --- notifications ---

    @property
    def notifications(self) -> MemoryObjectReceiveStream[Notification]:
        """The channel of notifications, in the order of the generations, from now on."""
        if self._receiver is None:
            # Unbounded, since the reaper must not wait; generations in it are a few words each.
            self._channel, self._receiver = anyio.create_memory_object_stream[Notification](
                math.inf
            )
            if self.handle == self._native.no_handle:
                self._channel.close()
        return self._receiver

    # --- the end ---

    async def take_back(self, leaving: Leaving) -> None:
        """Take back what the kernel has not taken, and soon release what the caller can change.

        Buffers that nobody can change are left to the ring, which keeps them referenced.
        """
        self.flush(even_empty=False)
        self._native.cancel(self.handle)
        self._reaper.turn()
        await leaving.until(lambda: not self.has_unreleased(only_mutable=True), GRACE_SECONDS)
        await self.reset(errno.ECANCELED, leaving, only_mutable=True)

    async def reset(self, error: int, leaving: Leaving, *, only_mutable: bool = False) -> None:
        """Reset the connections that still hold sends; their buffers come back at once."""
        if not self.has_unreleased(only_mutable=only_mutable):
            return
        self._native.reset(self.handle, error, only_mutable=only_mutable)
        self._reaper.turn()
        # The wait needs no bound: only a network device that keeps a datagram prolongs it.
        await leaving.until(lambda: not self.has_unreleased(only_mutable=only_mutable), math.inf)
        if self.has_unreleased(only_mutable=True) and self._reaper.stopped is None:
            warnings.warn(
                "the scope of a buffer that can change was closed while the kernel read it; it "
                "stays in memory, and cannot be resized, until it is released",
                ResourceWarning,
                stacklevel=2,
            )

    def may_reset(self) -> None:
        """Keep connections in a state in which they can be reset, until :meth:`close`."""
        self._may_reset = True
        self._native.may_reset(self.handle, yes=True)

    def take_no_more(self) -> None:
        """Refuse further sends."""
        self.open_handle = self._native.no_handle

    def disown(self) -> None:
        """Forget the native context, which is gone with its ring."""
        self.handle = self.open_handle = self._native.no_handle
        if self._channel is not None:
            self._channel.close()
        self.on_ring_stopped()

    def close(self) -> None:
        """Let go of the context; the ring keeps it until its last generation is released."""
        if self.handle == self._native.no_handle:
            return
        self._orphaned = True
        if self._may_reset:
            self._native.may_reset(self.handle, yes=False)
        if self.window_opened is not None:
            self.window_opened.set()
        self._free_if_released()

    def _free_if_released(self) -> None:
        if not self.is_all_released():
            return
        self._native.free_context(self.handle)
        self.handle = self.open_handle = self._native.no_handle
        self._reaper.remove(self.ident)
        # on_failed refers to the owner, which refers to this: without that cycle both go at once.
        self.on_failed = _told_nobody
        if self._channel is not None:
            self._channel.close()


def _told_nobody(_socket: int, _error: int) -> None:
    """Do nothing: no send is left that could fail."""
