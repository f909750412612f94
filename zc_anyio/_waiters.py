"""What one task waits for and another wakes it by, once: does less than an anyio event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import sniffio

__all__ = ["Waiter", "waiter_type"]


class Waiter(Protocol):
    """Waiting is a checkpoint; a wait that is cancelled leaves nothing behind."""

    def set(self) -> object: ...
    async def wait(self) -> None: ...


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
