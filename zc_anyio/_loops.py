"""What streams ask of the event loop for every message, without anyio's frames in between.

anyio finds out anew at each call which event loop runs; a ring knows.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import anyio
import anyio.lowlevel

__all__ = ["AsyncioLoop", "Loop", "TrioLoop", "running_loop"]


class Loop(Protocol):
    """Checkpoints, and waiting for a descriptor."""

    @property
    def checkpoint(self) -> Callable[[], Awaitable[None]]:
        """Let other tasks run, and notice cancellation."""

    @property
    def checkpoint_if_cancelled(self) -> Callable[[], Awaitable[None]]:
        """Notice cancellation."""

    @property
    def let_others_run(self) -> Callable[[], Awaitable[None]]:
        """Let other tasks run; a cancellation meanwhile is noticed at the next checkpoint."""

    @property
    def wait_readable(self) -> Callable[[int], Awaitable[None]]:
        """Wait until a descriptor is readable."""

    @property
    def notify_closing(self) -> Callable[[int], None]:
        """Wake who waits for a descriptor; that raises some exception there."""


class TrioLoop:
    """trio has all of it."""

    def __init__(self, trio: Any) -> None:
        self.checkpoint: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self.checkpoint_if_cancelled: Callable[[], Awaitable[None]] = (
            trio.lowlevel.checkpoint_if_cancelled
        )
        self.let_others_run: Callable[[], Awaitable[None]] = (
            trio.lowlevel.cancel_shielded_checkpoint
        )
        self.wait_readable: Callable[[int], Awaitable[None]] = trio.lowlevel.wait_readable
        self.notify_closing: Callable[[int], None] = trio.lowlevel.notify_closing


class AsyncioLoop:
    """asyncio and uvloop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: asyncio.AbstractEventLoop = loop
        self.checkpoint_if_cancelled: Callable[[], Awaitable[None]] = (
            anyio.lowlevel.checkpoint_if_cancelled
        )
        self.wait_readable: Callable[[int], Awaitable[None]] = anyio.wait_readable
        self.notify_closing: Callable[[int], None] = anyio.notify_closing

    @staticmethod
    async def checkpoint() -> None:
        """See :class:`Loop`."""
        await asyncio.sleep(0)

    @staticmethod
    async def let_others_run() -> None:
        """See :class:`Loop`.  A shielded scope would cost three times as much."""
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError as exc:
            # What the caller has done cannot be undone: to be raised where it next waits.  The
            # request was counted when it was made.
            task = asyncio.current_task()
            assert task is not None
            task.cancel(*exc.args)
            task.uncancel()


def running_loop() -> TrioLoop | AsyncioLoop:
    """Return what the running event loop has."""
    # Only a program that has imported trio can run on it.
    trio: Any = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return TrioLoop(trio)
    return AsyncioLoop(asyncio.get_running_loop())
