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

# The kernel was short of memory for a submission: how long until it is asked again.
RETRY_SECONDS = 0.001
# An idle socket stays attached for so many ticks, by a duplicate of its descriptor: resuming it
# costs as much as a small send, and a socket that was closed meanwhile ends that much later.  A
# busy event loop is late with its ticks, so a broadcast that takes long finds its sockets attached.
LINGER_TICKS = 2
TICK_SECONDS = 0.01
# So often it is looked whether the program has closed sockets of its own.  No more often: who waits
# until all tasks are blocked, as tests on trio do, has to find them so in between.
LOOK_SECONDS = 0.03
# A connection that was closed with bytes unsent is dropped when its peer takes none for so long.
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
        # A turn was asked for, and none was taken since.
        self._due = False
        # The last turn has left something that the next one can take at once; or that only time
        # can bring.
        self.more: bool = False
        self._again = False
        self._call_soon = loop.call_soon
        self._called = False
        # A sender has yielded since that most likely has more; and that was waited for.
        self._more_follows = self._put_off = False
        self._raised: Exception | None = None
        self._completions: Readable | None = None
        self._linger = Event()
        self._tick: float = TICK_SECONDS
        self._scopes: list[CancelScope] = []
        # Set at the next turn; made when somebody waits for it.
        self._turned: Event | None = None
        self._stopping = False
        # The ring ends: what is still held after a while is to be reset.
        self.draining = False
        self.stopped: BaseException | None = None

    def add(self, context: ContextSink) -> int:
        """Give a context the number under which events name it; never given twice."""
        self._next_context += 1
        self._contexts[self._next_context] = context
        return self._next_context

    @property
    def wake_fd(self) -> int:
        """Readable when completions wait to be taken."""
        return self._native.wake_fd

    @property
    def contexts(self) -> list[ContextSink]:
        """The contexts that are not freed."""
        return list(self._contexts.values())

    def remove(self, ident: int) -> None:
        """Forget a context that was freed."""
        del self._contexts[ident]

    def add_receiver(self, receiver: ReceiverSink, fd: int) -> tuple[int, Any]:
        """Give a receiver the number under which events name it, and its native handle."""
        handle = self._native.new_receiver(fd, self._next_receiver + 1)
        self._next_receiver += 1
        self._receivers[self._next_receiver] = receiver
        return self._next_receiver, handle

    def remove_receiver(self, ident: int, handle: Any) -> None:
        """Free a receiver; its socket may be closed after this."""
        del self._receivers[ident]
        self._native.free_receiver(handle)
        # The kernel keeps the socket open until it has seen the cancellation.
        self.submit_soon()

    def stop_receivers(self) -> None:
        """Have receivers take over what the ring has brought: it will bring no more."""
        for receiver in self._receivers.values():
            receiver.on_ring_stopped()
        self._receivers.clear()

    @uninterrupted
    def turn(self) -> None:
        """Reap, submit and dispatch as much as one turn may; what is left has another one soon."""
        self._due = self.more = self._again = False
        contexts = self._contexts
        # Dispatching may drop the last reference to a buffer, and so run anything, even another
        # turn: what is told is a copy.
        fields = iter(self._native.turn())
        for kind, a, b, c in zip(fields, fields, fields, fields, strict=True):
            if kind == RELEASED:
                contexts[a].on_released(b)
            elif kind == IDLE:
                self._sockets.on_socket_idle(a)
            elif kind == READY:
                # It may have been freed by what was told before this.
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
                # The submitter's, which pauses between its turns if that does not help.
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
        """Have a turn taken when the event loop comes round, unless one was taken until then."""
        self._due = True
        if self._call_soon is None:
            self._loop.wake(self._wake)
        elif not self._called:
            self._called = True
            self._call_soon(self._on_soon)

    def expect_more(self) -> None:
        """A sender yields for the sake of others: what it queues next may leave in the same turn.

        One turn of the event loop is waited for that.
        """
        self._more_follows = self._due

    def _on_soon(self) -> None:
        """Take the turn that was asked for; what it raises is the submitter's to raise."""
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
        """Wait until another turn was taken, or the ring was closed."""
        if self._turned is None:
            self._turned = Event()
        await self._turned.wait()

    @uninterrupted
    async def run(self) -> None:
        """Take a turn whenever the kernel has completions, until :meth:`stop`.

        Shielded: sends are waited for while everything around them is being cancelled.
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
        """Take a turn once in each turn of the event loop in which something was queued."""
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
        """Look which sockets the program has closed, if it is time; return when it is again."""
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
        """Stop all tasks, also if they have not begun."""
        self.stop_soon()
        for scope in self._scopes:
            scope.cancel()

    def stop_polling(self) -> None:
        """Have the ring's descriptor, which is about to be closed, polled no more.

        A task group that is itself interrupted may leave the task that polls it behind.
        """
        if self._completions is not None:
            self._completions.close()
            self._completions = None

    def close(self) -> None:
        """The ring is closed: wake whoever waits for a turn."""
        self._tell_turned()

    def _fail(self, exc: BaseException) -> None:
        """Wake everybody who waits for a ring that will never answer again."""
        self.stopped = exc
        self._tell_turned()
        for context in self.contexts:
            context.on_ring_stopped()
        for receiver in list(self._receivers.values()):
            receiver.on_ready()
