"""What this kernel and this process can do, with the reason for each "no"."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from .._native.ring import NativeRing

__all__ = ["Capabilities", "System"]

CAP_IPC_LOCK = 14
SECCOMP_MODES = {"0": "none", "1": "strict", "2": "filter"}
# The default window and staging together: with a lower limit, ordinary use reaches it.
SMALL_MEMLOCK = 24 << 20

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
    :ivar entries: requests that one submission can carry; fewer than were asked for when
        RLIMIT_MEMLOCK has no room for more.  0 for the drivers without a ring.
    :ivar reports_usage: the kernel says of each send whether it was copied (6.2); without that
        ``statistics().zero_copied`` counts what was asked for.
    :ivar staging_registered: the memory for small sends is registered with the kernel.
    :ivar sends_trains: the kernel cuts one send into datagrams (UDP_SEGMENT, 4.18); without that
        ``send_segments`` does, and sends them one by one.
    :ivar memlock_limit: bytes of RLIMIT_MEMLOCK that bound what may be pinned; ``None``: no bound,
        or CAP_IPC_LOCK.
    :ivar zero_copy_limited: why zero-copy sends may go out by copying, or ``None``.
    """

    kernel: str
    driver: str
    unavailable: dict[str, str]
    setup_flags: tuple[str, ...]
    entries: int
    reports_usage: bool
    staging_registered: bool
    sends_trains: bool
    memlock_limit: int | None
    zero_copy_limited: str | None


@dataclass(frozen=True, slots=True)
class System:
    """The settings that zero-copy sends depend on; ``None``: this system does not tell.

    :ivar memlock_soft: RLIMIT_MEMLOCK in bytes; ``None`` also if it is unlimited.
    :ivar memlock_hard: what the soft limit may be raised to; ``None`` also if it is unlimited.
    :ivar cap_ipc_lock: the process has CAP_IPC_LOCK, so that the limit does not bind it.
    :ivar transparent_huge_pages: ``"always"``, ``"madvise"`` or ``"never"``.
    :ivar huge_page_size: bytes of an explicitly reserved huge page.
    :ivar huge_pages_total: explicitly reserved huge pages.
    :ivar huge_pages_free: how many of them are free.
    :ivar optmem_max: net.core.optmem_max, which bounds the notifications of MSG_ZEROCOPY.
    :ivar io_uring_disabled: kernel.io_uring_disabled, which keeps out 0, nobody; 1, unprivileged
        processes; 2, everybody.
    :ivar seccomp: ``"none"``, ``"strict"`` or ``"filter"``.
    """

    kernel: str
    machine: str
    memlock_soft: int | None
    memlock_hard: int | None
    cap_ipc_lock: bool | None
    transparent_huge_pages: str | None
    huge_page_size: int | None
    huge_pages_total: int | None
    huge_pages_free: int | None
    optmem_max: int | None
    io_uring_disabled: int | None
    seccomp: str | None


def memlock_limit() -> int | None:
    """Return the limit on pinned memory in bytes, ``None`` if there is none for this process."""
    soft, _ = _memlock()
    return None if _has_ipc_lock(_fields("/proc/self/status")) else soft


def of_system() -> System:
    """Read the kernel's settings, and what this process may do."""
    status, memory = _fields("/proc/self/status"), _fields("/proc/meminfo")
    soft, hard = _memlock()
    chosen = re.search(r"\[(\w+)\]", _text("/sys/kernel/mm/transparent_hugepage/enabled"))
    kilobytes = _number(memory.get("Hugepagesize"))
    name = platform.uname()
    return System(
        kernel=name.release,
        machine=name.machine,
        memlock_soft=soft,
        memlock_hard=hard,
        cap_ipc_lock=_has_ipc_lock(status),
        transparent_huge_pages=chosen.group(1) if chosen else None,
        huge_page_size=None if kilobytes is None else kilobytes << 10,
        huge_pages_total=_number(memory.get("HugePages_Total")),
        huge_pages_free=_number(memory.get("HugePages_Free")),
        optmem_max=_number(_text("/proc/sys/net/core/optmem_max")),
        io_uring_disabled=_number(_text("/proc/sys/kernel/io_uring_disabled")),
        seccomp=SECCOMP_MODES.get(status.get("Seccomp", "")),
    )


def _memlock() -> tuple[int | None, int | None]:
    try:
        import resource  # not on every system, and importing this package must work on all of them
    except ImportError:  # pragma: no cover
        return None, None
    soft, hard = (
        None if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_MEMLOCK)
    )
    return soft, hard


def _has_ipc_lock(status: dict[str, str]) -> bool | None:
    effective = status.get("CapEff")
    return None if effective is None else bool(int(effective, 16) >> CAP_IPC_LOCK & 1)


def _text(path: str) -> str:
    """Return the contents of a file of the kernel; nothing if it does not exist."""
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _fields(path: str) -> dict[str, str]:
    """Return the lines "name: value" of a file of the kernel."""
    parts = (line.partition(":") for line in _text(path).splitlines())
    return {name: value.strip() for name, _, value in parts}


def _number(text: str | None) -> int | None:
    found = re.match(r"\d+", text or "")
    return int(found.group()) if found else None


def of_ring(native: NativeRing, unavailable: dict[str, str]) -> Capabilities:
    """Return the capabilities of a ring that was set up."""
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
        entries=native.entries,
        reports_usage=native.reports_usage,
        staging_registered=native.staging_registered,
        sends_trains=native.sends_trains,
        memlock_limit=limit,
        zero_copy_limited=limited,
    )
