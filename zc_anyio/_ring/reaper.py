"""The reaper: the one task of a ring that waits for completions, and what it does with them.

A turn (reap, submit, dispatch) is one synchronous step that never waits for a consumer, so it is
safe to take anywhere in the ring's thread.  Callers that take turns: the reaper when the ring's
descriptor becomes readable, the submitter at the end of an event-loop turn in which something was
queued, and a send that has gathered enough.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

import anyio
from anyio import CancelScope, Event

from .._base.loops import Loop, Readable, uninterrupted
from .._native.lib import (
    AGAIN,
    FAILED,
    IDLE,
    LATER,
    MORE,
    READY,
    RELEASED,
    RESULT,
    WINDOW,
)
from .._native.ring import NativeRing

__all__ = ["ContextSink", "Reaper", "SocketSink"]

# How long until a submission is tried again for which the kernel was short of memory.
RETRY_SECONDS = 0.001
# How many ticks an idle socket stays attached, by a duplicate of its descriptor: resuming it costs
# as much as a small send, but the connection of a socket closed meanwhile ends that much later.  A
# busy event loop is late with its ticks, so a broadcast that takes long finds its sockets attached.
LINGER_TICKS = 2
TICK_SECONDS = 0.01
# How often the ring looks whether the program has closed sockets of its own.  It is not more often,
# so that code which waits until all tasks are blocked, as tests on trio do, finds them blocked.
LOOK_SECONDS = 0.03
# A connection closed with bytes unsent is dropped when its peer takes none of them for this long.
CLOSING_SECONDS = 60


class ContextSink(Protocol):
    """What a context is told."""

    @property
    def on_failed(self) -> Callable[[int, int], None]: ...
    def on_released(self, generation: int, /) -> None: ...
    def on_ring_stopped(self) -> None: ...
    def flush(self, *, even_empty: bool) -> object: ...
    def flush_leases(self) -> None: ...
    def disown(self) -> None: ...
    @property
    def references(self) -> dict[int, list[object]]: ...
    def on_window(self) -> None: ...
    def on_result(self, ticket: int, error: int, /) -> None: ...


class SocketSink(Protocol):
    """What the table of sockets is told."""

    def on_socket_failed(self, socket: int, error: int, /) -> None: ...
    def on_socket_idle(self, socket: int, /) -> None: ...
    def on_socket_ended(self, socket: int, /) -> None: ...


class ReceiverSink(Protocol):
    """What a receiver is told."""

    def on_ready(self) -> None: ...
    def on_ring_stopped(self) -> None: ...


class Reaper:
    """Takes turns of one native ring and tells contexts and sockets what happened."""

    def __init__(self, native: NativeRing, sockets: SocketSink, loop: Loop) -> None:
        self._native = native
        self._loop = loop
        self._sockets = sockets
        native.linger(LINGER_TICKS)
        self._contexts: dict[int, ContextSink] = {}
        self._next_context = 0
        self._receivers: dict[int, ReceiverSink] = {}
        self._next_receiver = 0
        self._wake = loop.new_waiter()
        # Whether a turn was asked for, and none was taken since.
        self._due = False
        # Whether the last turn left work: for the next one at once, or (_again) after a pause.
        self.more: bool = False
        self._again = False
        self._call_soon = loop.call_soon
        self._called = False
        # Whether a sender yielded that most likely has more; and whether the turn waited for that.
        self._more_follows = self._put_off = False
        self._raised: Exception | None = None
        self._completions: Readable | None = None
        self._linger = Event()
        self._tick: float = TICK_SECONDS
        self._scopes: list[CancelScope] = []
        # Set at the next turn; it exists only while somebody waits for it.
        self._turned: Event | None = None
        self._stopping = False
        # Whether the ring ends: connections that hold sends for too long are then to be reset.
        self.draining = False
        self.stopped: BaseException | None = None

    def add(self, context: ContextSink) -> int:
        """Give a context the number by which events name it; no number is given twice."""
        self._next_context += 1
        self._contexts[self._next_context] = context
        return self._next_context

    @property
    def wake_fd(self) -> int:
        """A descriptor that is readable when completions wait to be reaped."""
        return self._native.wake_fd

    @property
    def contexts(self) -> list[ContextSink]:
        """The contexts that are not freed."""
        return list(self._contexts.values())

    def remove(self, ident: int) -> None:
        """Forget a context that was freed."""
        del self._contexts[ident]

    def add_receiver(self, receiver: ReceiverSink, fd: int) -> tuple[int, Any]:
        """Give a receiver the number by which events name it, and its native handle."""
        handle = self._native.new_receiver(fd, self._next_receiver + 1)
        self._next_receiver += 1
        self._receivers[self._next_receiver] = receiver
        return self._next_receiver, handle

    def remove_receiver(self, ident: int, handle: Any) -> None:
        """Free a receiver; afterwards its socket may be closed."""
        del self._receivers[ident]
        self._native.free_receiver(handle)
        # The kernel keeps the socket open until it has seen the cancellation.
        self.submit_soon()

    def stop_receivers(self) -> None:
        """Have receivers take over what the ring has brought; it brings nothing more."""
        for receiver in self._receivers.values():
            receiver.on_ring_stopped()
        self._receivers.clear()

    @uninterrupted
    def turn(self) -> None:
        """Reap, submit and dispatch as much as one turn may; the rest gets another turn soon."""
        self._due = self.more = self._again = False
        contexts = self._contexts
        # The events are a copy: dispatching may drop the last reference to a buffer and so run any
        # code, even another turn.
        fields = iter(self._native.turn())
        for kind, a, b, c in zip(fields, fields, fields, fields, strict=True):
            if kind == RELEASED:
                contexts[a].on_released(b)
            elif kind == IDLE:
                self._sockets.on_socket_idle(a)
            elif kind == READY:
                # An event before this one may have led to its being freed.
                if (receiver := self._receivers.get(a)) is not None:
                    receiver.on_ready()
            elif kind == WINDOW:
                contexts[a].on_window()
            elif kind == FAILED:
                contexts[a].on_failed(b, c)
                self._sockets.on_socket_failed(b, c)
            elif kind == RESULT:
                contexts[a].on_result(b, c)
            elif kind == MORE:
                self.more = True
                self.submit_soon()
            elif kind == AGAIN:
                # The submitter takes the next turn, and pauses if that does not help either.
                self._due = self._again = True
                self._loop.wake(self._wake)
            elif kind == LATER:
                self._tick = TICK_SECONDS if a else LOOK_SECONDS
                self._linger.set()
        self._tell_turned()

    def _tell_turned(self) -> None:
        if self._turned is not None:
            self._turned.set()
            self._turned = None

    def submit_soon(self) -> None:
        """Have a turn taken in the event loop's next turn, unless one is taken before."""
        self._due = True
        if self._call_soon is None:
            self._loop.wake(self._wake)
        elif not self._called:
            self._called = True
            self._call_soon(self._on_soon)

    def expect_more(self) -> None:
        """Note that a sender has yielded to others, so that what it queues next can leave as well.

        The next turn waits for one turn of the event loop.
        """
        self._more_follows = self._due

    def _on_soon(self) -> None:
        """Take the turn that was asked for; the submitter raises what it raises."""
        if self._more_follows and not self._put_off and self._call_soon is not None:
            self._put_off = True
            self._call_soon(self._on_soon)
            return
        self._called = self._more_follows = self._put_off = False
        if self._due and not self._stopping:
            try:
                self.turn()
            except Exception as exc:
                self._raised = exc
                self._loop.wake(self._wake)

    async def wait_turn(self) -> None:
        """Wait until the next turn was taken, or the ring was closed."""
        if self._turned is None:
            self._turned = Event()
        await self._turned.wait()

    @uninterrupted
    async def run(self) -> None:
        """Take a turn whenever the kernel has completions, until :meth:`stop`.

        It is shielded, since sends are waited for while everything around them is being cancelled.
        """
        self._completions = completions = self._loop.readable(self._native.wake_fd)
        with CancelScope(shield=True) as scope:
            self._scopes.append(scope)
            try:
                while not self._stopping:
                    await completions.wait()
                    if not self._stopping:
                        self.turn()
            except Exception as exc:
                self._fail(exc)
                raise
            finally:
                self.stop_polling()

    @uninterrupted
    async def run_submitter(self) -> None:
        """Take one turn after each turn of the event loop in which something was queued."""
        with CancelScope(shield=True) as scope:
            self._scopes.append(scope)
            try:
                while not self._stopping:
                    await self._wake
                    if self._more_follows:
                        await self._loop.checkpoint()
                    self._more_follows = False
                    self._wake = self._loop.new_waiter()
                    if self._raised is not None:
                        raise self._raised
                    if self._due and not self._stopping:
                        self.turn()
                        if self._again:
                            await anyio.sleep(RETRY_SECONDS)
            except Exception as exc:
                self._fail(exc)
                raise

    @uninterrupted
    async def run_lingering(self) -> None:
        """Tick while sockets are attached, so that idle and closed ones are given up."""
        look_at = 0.0
        with CancelScope(shield=True) as scope:
            self._scopes.append(scope)
            try:
                while not self._stopping:
                    await self._linger.wait()
                    self._linger = Event()
                    await anyio.sleep(self._tick)
                    if not self._stopping:
                        self._native.tick()
                        look_at = self._look(look_at)
                        self.turn()
            except Exception as exc:
                self._fail(exc)
                raise

    def _look(self, at: float) -> float:
        """Look for sockets that the program has closed, if it is time; return the next time."""
        now = monotonic()
        if now < at:
            return at
        for ident in self._native.look(CLOSING_SECONDS, keep=self.draining):
            self._sockets.on_socket_ended(ident)
        return now + LOOK_SECONDS / 2

    def stop_soon(self) -> None:
        """Take no more turns in any task."""
        self._stopping = True

    def stop(self) -> None:
        """Stop all tasks, even those that have not begun."""
        self.stop_soon()
        for scope in self._scopes:
            scope.cancel()

    def stop_polling(self) -> None:
        """Stop polling the ring's descriptor, which is about to be closed.

        A task group that is itself interrupted may leave the task behind that polls it.
        """
        if self._completions is not None:
            self._completions.close()
            self._completions = None

    def close(self) -> None:
        """Wake whoever waits for a turn, since the ring is closed."""
        self._tell_turned()

    def _fail(self, exc: BaseException) -> None:
        """Wake everybody who waits for this ring, which reports nothing more."""
        self.stopped = exc
        self._tell_turned()
        for context in self.contexts:
            context.on_ring_stopped()
        for receiver in list(self._receivers.values()):
            receiver.on_ready()
