"""What streams ask of the event loop for every message, without anyio's frames in between.

anyio finds out anew at each call which event loop runs; a ring knows.
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
    """Have Ctrl-C raised behind a function on trio, and not within it or what it calls.

    What is between two of its lines may be the only reference to a buffer that the kernel reads.
    asyncio cancels the main task instead, and so needs nothing.
    """
    _uninterrupted.append(function)
    return function


# What one task awaits and another wakes it by, once.
Waiter: TypeAlias = Awaitable[object]


class Readable(Protocol):
    """Whether a descriptor can be read; waiting may end too early."""

    async def wait(self) -> None: ...

    def close(self) -> None:
        """Wait no more; before the descriptor is closed."""


class Loop(Protocol):
    """Checkpoints, and waiting for a descriptor."""

    @property
    def checkpoint(self) -> Callable[[], Awaitable[None]]:
        """Let other tasks run, and notice cancellation."""

    @property
    def checkpoint_before(self) -> Callable[[], Awaitable[None]]:
        """With :attr:`checkpoint_after` a checkpoint around something that does not wait.

        Cancellation is noticed before it, and not when it cannot be undone any more.  On trio the
        others run after it, while bytes are on their way.  On asyncio they run before it: a yield
        that is shielded costs four times as much there, and ``Task.cancel`` breaks through it.
        """

    @property
    def checkpoint_after(self) -> Callable[[], Awaitable[None]]: ...

    @property
    def wait_readable(self) -> Callable[[int], Awaitable[None]]:
        """Wait until a descriptor is readable."""

    @property
    def notify_closing(self) -> Callable[[int], None]:
        """Wake who waits for a descriptor; that raises some exception there."""

    @property
    def new_waiter(self) -> Callable[[], Waiter]:
        """Return what a task can await until :attr:`wake`."""

    @property
    def wake(self) -> Callable[[Any], None]:
        """Wake the task that awaits a waiter, or will; again, or when it was cancelled: nothing."""

    @property
    def call_from_thread(self) -> Callable[[Callable[[], None]], object]:
        """Have something called in the loop's thread, soon; ``RuntimeError``: it runs no more.

        It may be used anywhere, also while garbage is collected.
        """

    @property
    def call_soon(self) -> Callable[[Callable[[], object]], object] | None:
        """Have a function called when the event loop comes round; ``None``: that takes a task."""

    def readable(self, fd: int) -> Readable:
        """Return what waits for a descriptor again and again."""

    def is_running(self) -> bool:
        """Whether the caller is in this event loop."""


class TrioLoop:
    """trio has all of it."""

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
        # Each time, which changes nothing: another thread may open a ring meanwhile.
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
    """A ``trio.Event`` for one task: it costs half, since nothing keeps a list of who waits."""

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
        """See :class:`Loop`.  What ``asyncio.sleep(0)`` does, with one frame in place of three."""
        yield

    checkpoint_before = checkpoint

    @staticmethod
    async def checkpoint_after() -> None:
        """See :class:`Loop`.  A shielded scope would cost more than all the rest."""

    def readable(self, fd: int) -> Readable:
        """See :class:`Loop`."""
        return _LoopReadable(self.loop, fd)

    def is_running(self) -> bool:
        """See :class:`Loop`."""
        try:
            # A loop of trio's may run inside a callback of this one.
            return asyncio.get_running_loop() is self.loop and _running_trio() is None
        except RuntimeError:
            return False


class _LoopReadable:
    """Stays registered with the event loop between the waits: saves two system calls for each.

    The loop calls for as long as there is something to read: when nobody has taken it by the second
    call, the registration is given up.
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
    """Return what the running event loop has."""
    trio = _running_trio()
    return TrioLoop(trio) if trio is not None else AsyncioLoop(asyncio.get_running_loop())


def _running_trio() -> Any:
    # Only a program that has imported trio can run on it.
    trio: Any = sys.modules.get("trio")
    return trio if trio is not None and trio.lowlevel.in_trio_run() else None
