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


def unsent(ring: zc_anyio.Ring) -> int:
    """Return how many sends the kernel has not taken as a whole.

    What waits for room in its socket is in flight with io_uring, and queued with other drivers.
    """
    counters = ring.statistics()
    return counters.queued + counters.in_flight


async def until_parked(ring: zc_anyio.Ring, sends: int = 1) -> None:
    """Wait until at least ``sends`` sends wait for room in their sockets, and nothing moves."""
    await until(lambda: unsent(ring) >= sends, "sends that wait")
    quiet, before = 0, ring.statistics()
    end = time.monotonic() + LIMIT
    while quiet < 10:
        await anyio.sleep(0.001)
        now = ring.statistics()
        quiet, before = (quiet + 1 if now == before else 0), now
        assert time.monotonic() < end, "sends never come to rest"
    assert unsent(ring) >= sends


async def until_idle(ring: zc_anyio.Ring) -> None:
    """Wait until nothing of a ring is under way."""

    def idle() -> bool:
        counters = ring.statistics()
        return not (
            counters.queued or counters.in_flight or counters.held or counters.generations_open
        )

    await until(idle, "an idle ring")
