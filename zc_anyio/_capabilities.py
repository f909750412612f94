"""What this kernel and this process can do, with the reason for each "no"."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ._lib import NativeRing

__all__ = ["Capabilities"]

CAP_IPC_LOCK = 14
# Below this much lockable memory zero-copy sends meet the limit in ordinary use.
SMALL_MEMLOCK = 8 << 20

# include/uapi/linux/io_uring.h
SETUP_FLAGS = {
    1 << 3: "CQSIZE",
    1 << 4: "CLAMP",
    1 << 7: "SUBMIT_ALL",
    1 << 8: "COOP_TASKRUN",
    1 << 9: "TASKRUN_FLAG",
    1 << 12: "SINGLE_ISSUER",
    1 << 13: "DEFER_TASKRUN",
}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a ring found when it was opened.

    :ivar kernel: the running kernel's release.
    :ivar driver: the driver that carries the sends.
    :ivar unavailable: why each better driver was passed over, by its name.
    :ivar setup_flags: flags the ring was set up with, after negotiation.
    :ivar reports_usage: the kernel says of each send whether it was copied (6.2); without that
        ``statistics().zero_copied`` counts what was asked for.
    :ivar memlock_limit: bytes of RLIMIT_MEMLOCK that bound what may be pinned; ``None``: no bound,
        or CAP_IPC_LOCK.
    :ivar zero_copy_limited: why zero-copy sends may go out by copying, or ``None``.
    """

    kernel: str
    driver: str
    unavailable: dict[str, str]
    setup_flags: tuple[str, ...]
    reports_usage: bool
    memlock_limit: int | None
    zero_copy_limited: str | None


def memlock_limit() -> int | None:
    """Return the limit on pinned memory in bytes, ``None`` if there is none for this process."""
    import resource  # not everywhere, and importing this package must work everywhere

    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1]
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if int(effective, 16) >> CAP_IPC_LOCK & 1 or soft == resource.RLIM_INFINITY:
        return None
    return soft


def of_ring(native: NativeRing, unavailable: dict[str, str]) -> Capabilities:
    """Report on a ring that was set up."""
    limit = memlock_limit()
    limited = None
    if native.driver == "copy":
        limited = "the copy driver was asked for, or no better one runs here"
    elif limit is not None and limit < SMALL_MEMLOCK:
        limited = (
            f"RLIMIT_MEMLOCK is {limit} bytes and the process has no CAP_IPC_LOCK: what is pinned "
            "beyond that, by all rings of this user together, is sent by copying"
        )
    return Capabilities(
        kernel=os.uname().release,
        driver=native.driver,
        unavailable=unavailable,
        setup_flags=tuple(name for bit, name in SETUP_FLAGS.items() if native.setup_flags & bit),
        reports_usage=native.reports_usage,
        memlock_limit=limit,
        zero_copy_limited=limited,
    )
