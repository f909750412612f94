"""What streams ask of the event loop for every message, without anyio's frames in between.

anyio finds out anew at each call which event loop runs; a ring knows.

A call that need not wait is a checkpoint all the same, in two halves: ``begin``, which notices
cancellation, before it does what it does, and ``end`` after it.  On trio the others run in the
second half, so that bytes are on their way meanwhile.  On asyncio they run in the first: a yield
that is shielded costs four times as much there, and asyncio's own ``Task.cancel`` would break
through it when the bytes have been sent or taken already.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

__all__ = ["AsyncioLoop", "Loop", "running_loop"]


class Loop:
    """trio's event loop, which has all of it."""

    begin: Callable[[], Awaitable[None]]
    end: Callable[[], Awaitable[None]]
    wait_readable: Callable[[int], Awaitable[None]]
    # Wakes who waits for a descriptor; some exception is raised there.
    notify_closing: Callable[[int], None]

    def __init__(self, trio: Any) -> None:
        self.begin = trio.lowlevel.checkpoint_if_cancelled
        self.end = trio.lowlevel.cancel_shielded_checkpoint
        self.wait_readable = trio.lowlevel.wait_readable
        self.notify_closing = trio.lowlevel.notify_closing


class AsyncioLoop(Loop):
    """asyncio's event loop, or uvloop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop: asyncio.AbstractEventLoop = loop
        self.begin = _yield
        self.end = _nothing
        self.wait_readable = anyio.wait_readable
        self.notify_closing = anyio.notify_closing


async def _yield() -> None:
    await asyncio.sleep(0)


async def _nothing() -> None:
    pass


def running_loop() -> Loop:
    """Return what the running event loop has."""
    # Only a program that has imported trio can run on it.
    trio: Any = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_run():
        return Loop(trio)
    return AsyncioLoop(asyncio.get_running_loop())
