"""Waiting for what nobody tells."""

from __future__ import annotations

from collections.abc import Callable

import anyio

__all__ = ["wait_until"]


async def wait_until(condition: Callable[[], bool], *, every: float = 0.05) -> None:
    """Look every so many seconds, until the condition holds."""
    while not condition():  # noqa: ASYNC110 - nothing sets an event
        await anyio.sleep(every)
