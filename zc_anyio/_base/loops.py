"""What streams ask of the event loop for every message, without anyio's frames in between.

anyio finds out at each call which event loop runs; a ring knows it already.
"""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Protocol, TypeAlias, TypeVar, cast

import anyio

__all__ = [
    "AsyncioLoop",
    "Loop",
    "Readable",
    "TrioLoop",
    "Waiter",
    "running_loop",
    "uninterrupted",
]


_uninterrupted: list[Callable[..., Any]] = []
_Function = TypeVar("_Function", bound=Callable[..., Any])


def uninterrupted(function: _Function) -> _Function:
    """On trio, keep Ctrl-C from being raised within a function or what it calls: it comes after.

    Between two lines of it a local variable may be the only reference to a buffer that the kernel
    reads.  asyncio cancels the main task instead, and so needs nothing.
    """
    _uninterrupted.append(function)
    return function


# What one task awaits, and by which another wakes it; for one use.
Waiter: TypeAlias = Awaitable[object]


class Readable(Protocol):
    """Waits until a descriptor can be read; a wait may end too early."""

    async def wait(self) -> None: ...

    def close(self) -> None:
        """Stop waiting; to be called before the descriptor is closed."""


class Loop(Protocol):
    """Checkpoints, and waiting for a descriptor."""

    @property
    def checkpoint(self) -> Callable[[], Awaitable[None]]:
        """Let other tasks run, and notice cancellation."""

    @property
    def checkpoint_before(self) -> Callable[[], Awaitable[None]]:
        """Together with :attr:`checkpoint_after`, a checkpoint around a step that does not wait.

        Cancellation is noticed before the step, since the step cannot be undone.  On trio other
        tasks run after it, while bytes are on their way.  On asyncio they run before it: a shielded
        yield costs four times as much there, and ``Task.cancel`` breaks through it.
        """

    @property
    def checkpoint_after(self) -> Callable[[], Awaitable[None]]: ...

    @property
    def wait_readable(self) -> Callable[[int], Awaitable[None]]:
        """Wait until a descriptor is readable."""

    @property
    def notify_closing(self) -> Callable[[int], None]:
        """Wake whoever waits for a descriptor, by raising some exception there."""

    @property
    def new_waiter(self) -> Callable[[], Waiter]:
        """Return what a task can await until :attr:`wake`."""

    @property
    def wake(self) -> Callable[[Any], None]:
        """Wake the task that awaits a waiter, now or later.

        It does nothing when the waiter was woken before or the task was cancelled.
        """

    @property
    def call_from_thread(self) -> Callable[[Callable[[], None]], object]:
        """Have a function called soon in the loop's thread; ``RuntimeError``: the loop has ended.

        It may be used anywhere, even during garbage collection.
        """

    @property
    def call_soon(self) -> Callable[[Callable[[], object]], object] | None:
        """Have a function called in the loop's next turn; ``None`` where that needs a task."""

    def readable(self, fd: int) -> Readable:
        """Return an object that waits for a descriptor, as often as needed."""

    def is_running(self) -> bool:
        """Whether the caller is in this event loop."""


class TrioLoop:
    """trio, which has all of this."""

    def __init__(self, trio: Any) -> None:
        self.checkpoint: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self.checkpoint_before: Callable[[], Awaitable[None]] = (
            trio.lowlevel.checkpoint_if_cancelled
        )
        self.checkpoint_after: Callable[[], Awaitable[None]] = (
            trio.lowlevel.cancel_shielded_checkpoint
        )
        self.wait_readable: Callable[[int], Awaitable[None]] = trio.lowlevel.wait_readable
        self.notify_closing: Callable[[int], None] = trio.lowlevel.notify_closing
        self.call_soon: None = None
        self._lowlevel: Any = trio.lowlevel
        self.wake: Callable[[Any], None] = _TaskWaiter.wake
        self._current_token: Callable[[], Any] = trio.lowlevel.current_trio_token
        self._token = self._current_token()
        # At each ring, since another thread may open one meanwhile; doing it again changes nothing.
        for function in _uninterrupted:
            trio.lowlevel.enable_ki_protection(function)
        self.call_from_thread: Callable[[Callable[[], None]], object] = self._token.run_sync_soon

    def new_waiter(self) -> Waiter:
        """See :class:`Loop`."""
        return _TaskWaiter(self._lowlevel)

    def readable(self, fd: int) -> Readable:
        """See :class:`Loop`."""
        return _TrioReadable(self, fd)

    def is_running(self) -> bool:
        """See :class:`Loop`."""
        try:
            return self._current_token() is self._token
        except RuntimeError:
            return False


class _TaskWaiter:
    """A ``trio.Event`` for one task; it costs half, since it needs no list of waiting tasks."""

    __slots__ = ("_is_set", "_task", "_trio")

    def __init__(self, lowlevel: Any) -> None:
        self._trio = lowlevel
        self._task: Any = None
        self._is_set = False

    def wake(self) -> None:
        self._is_set = True
        task, self._task = self._task, None
        if task is not None:
            self._trio.reschedule(task)

    def __await__(self) -> Generator[Any, Any, object]:
        trio = self._trio
        if self._is_set:
            return cast("Generator[Any, Any, object]", trio.checkpoint().__await__())
        self._task = trio.current_task()
        waiting = trio.wait_task_rescheduled(self._abort)
        return cast("Generator[Any, Any, object]", waiting.__await__())

    def _abort(self, _: object) -> Any:
        self._task = None
        return self._trio.Abort.SUCCEEDED


class _TrioReadable:
    def __init__(self, loop: TrioLoop, fd: int) -> None:
        self._loop = loop
        self._fd = fd

    async def wait(self) -> None:
        await self._loop.wait_readable(self._fd)

    def close(self) -> None:
        self._loop.notify_closing(self._fd)


class AsyncioLoop:
    """asyncio and uvloop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: asyncio.AbstractEventLoop = loop
        self.call_soon: Callable[[Callable[[], object]], object] = loop.call_soon
        self.wait_readable: Callable[[int], Awaitable[None]] = anyio.wait_readable
        self.notify_closing: Callable[[int], None] = anyio.notify_closing
        self.call_from_thread: Callable[[Callable[[], None]], object] = loop.call_soon_threadsafe
        self.new_waiter: Callable[[], Waiter] = loop.create_future

    @staticmethod
    def wake(waiter: Any) -> None:
        """See :class:`Loop`."""
        if not waiter.done():
            waiter.set_result(None)

    @staticmethod
    @types.coroutine
    def checkpoint() -> Generator[None, None, None]:
        """See :class:`Loop`.  As ``asyncio.sleep(0)``, but in one frame instead of three."""
        yield

    checkpoint_before = checkpoint

    @staticmethod
    async def checkpoint_after() -> None:
        """See :class:`Loop`.  Does nothing: a shielded scope would cost more than all the rest."""

    def readable(self, fd: int) -> Readable:
        """See :class:`Loop`."""
        return _LoopReadable(self.loop, fd)

    def is_running(self) -> bool:
        """See :class:`Loop`."""
        try:
            # A trio loop may run inside a callback of this one.
            return asyncio.get_running_loop() is self.loop and _running_trio() is None
        except RuntimeError:
            return False


class _LoopReadable:
    """Stays registered with the event loop between waits, which saves two system calls for each.

    The loop calls back for as long as there is something to read.  When nobody has read it by the
    second call, the registration is given up.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int) -> None:
        self._fd = fd
        self._loop = loop
        self._future: asyncio.Future[None] | None = None
        self._registered = False
        self._in_vain = 0

    async def wait(self) -> None:
        self._future = future = self._loop.create_future()
        self._in_vain = 0
        if not self._registered:
            self._loop.add_reader(self._fd, self._on_readable)
            self._registered = True
        try:
            await future
        finally:
            self._future = None

    def _on_readable(self) -> None:
        if self._future is not None:
            self._wake()
            return
        self._in_vain += 1
        if self._in_vain == 2:
            self._unregister()

    def _wake(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def _unregister(self) -> None:
        if self._registered:
            self._registered = False
            if not self._loop.is_closed():
                self._loop.remove_reader(self._fd)

    def close(self) -> None:
        self._unregister()
        self._wake()


def running_loop() -> TrioLoop | AsyncioLoop:
    """Return the calls of the running event loop."""
    trio = _running_trio()
    return TrioLoop(trio) if trio is not None else AsyncioLoop(asyncio.get_running_loop())


def _running_trio() -> Any:
    # Only a program that has imported trio can run on it.
    trio: Any = sys.modules.get("trio")
    return trio if trio is not None and trio.lowlevel.in_trio_run() else None
