"""Waiting for conditions, with limits that no working machine reaches."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio

import zc_anyio

LIMIT = 20.0


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Wait until a condition holds, letting other tasks run."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, f"waited {LIMIT} s in vain: {what or condition}"
        await anyio.sleep(0.001)


def until_blocking(condition: Callable[[], object], what: str = "") -> None:
    """Wait until a condition holds, letting no other task run."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, f"waited {LIMIT} s in vain: {what or condition}"
        time.sleep(0.001)


async def until_held(ring: zc_anyio.Ring, sends: int) -> None:
    """Wait until the kernel has taken ``sends`` sends, and still reads their buffers."""
    await until(lambda: ring.statistics().held == sends, "sends held")


async def until_parked(ring: zc_anyio.Ring, sends: int = 1) -> None:
    """Wait until ``sends`` sends have been submitted, and wait for room in their sockets."""
    await until(lambda: ring.statistics().in_flight == sends, "sends in flight")
    # Submitting tries at once, so what does not fit is known to be parked when this has run.
    for _ in range(5):
        await anyio.sleep(0.001)
    assert ring.statistics().in_flight == sends


async def until_idle(ring: zc_anyio.Ring) -> None:
    """Wait until nothing of a ring is under way."""

    def idle() -> bool:
        counters = ring.statistics()
        return not (
            counters.queued or counters.in_flight or counters.held or counters.generations_open
        )

    await until(idle, "an idle ring")
