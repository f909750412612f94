"""Waiting for a condition that nothing signals."""

from __future__ import annotations

from collections.abc import Callable

import anyio

__all__ = ["wait_until"]


async def wait_until(condition: Callable[[], bool], *, every: float = 0.05) -> None:
    """Check the condition every ``every`` seconds until it holds."""
    while not condition():  # noqa: ASYNC110 - nothing sets an event
        await anyio.sleep(every)
