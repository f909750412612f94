"""Waiting that happens for every message, and so does less than what anyio has for it.

Only one task at a time waits in any of these.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

import anyio
import sniffio

__all__ = ["Readable", "Waiter", "readable", "waiter_type"]


class Waiter(Protocol):
    """Waiting is a checkpoint; a wait that is cancelled leaves nothing behind."""

    def set(self) -> object: ...
    async def wait(self) -> None: ...


class Readable(Protocol):
    """Whether a descriptor can be read.

    Waiting is a checkpoint, and may end too early, so the caller tries and waits again.
    """

    async def wait(self) -> None: ...

    def close(self) -> None:
        """Wake who waits; before the descriptor is closed."""


class _FutureWaiter:
    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future = asyncio.get_running_loop().create_future()

    def set(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def wait(self) -> None:
        await self._future


def waiter_type() -> Callable[[], Waiter]:
    """Return what makes waiters of the current event loop."""
    if sniffio.current_async_library() == "asyncio":
        return _FutureWaiter
    import trio

    return trio.Event


class _LoopReadable:
    """Stays registered with the event loop between the waits: saves two system calls for each.

    The loop calls for as long as there is something to read: when nobody has taken it by the second
    call, the registration is given up.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
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


class _AnyioReadable:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def wait(self) -> None:
        with suppress(anyio.ClosedResourceError):
            await anyio.wait_readable(self._fd)

    def close(self) -> None:
        anyio.notify_closing(self._fd)


class _TrioReadable:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def wait(self) -> None:
        import trio

        with suppress(trio.ClosedResourceError):
            await trio.lowlevel.wait_readable(self._fd)

    def close(self) -> None:
        import trio

        # Dropped when trio has ended, nobody waits.
        with suppress(RuntimeError):
            trio.lowlevel.notify_closing(self._fd)


def readable(fd: int, *, error_queue: bool = False) -> Readable:
    """Return what waits for a descriptor in the current event loop.

    :param error_queue: the descriptor reports an error whenever the kernel is done with
        MSG_ZEROCOPY; libuv stops watching one for good when it does.
    """
    if sniffio.current_async_library() != "asyncio":
        return _TrioReadable(fd)
    if error_queue and type(asyncio.get_running_loop()).__module__.startswith("uvloop"):
        return _AnyioReadable(fd)
    return _LoopReadable(fd)
