"""Opening a ring, the ambient ring, and guarding open rings against ``fork`` and ``exec``."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Literal, TypeAlias

import anyio

from .._base.errors import DriverUnavailable
from .._native.lib import process_forks
from .._native.ring import NativeRing
from .capabilities import memlock_limit, of_ring
from .leaving import Leaving
from .ring import Ring, ZeroCopy

__all__ = ["DEFAULT_ENTRIES", "Driver", "current_ring", "open_ring", "require_ring"]

Driver: TypeAlias = Literal["auto", "io_uring", "msg_zerocopy", "copy"]

# The best first.
DRIVERS = ("io_uring", "msg_zerocopy", "copy")
DEFAULT_ENTRIES = 1024
# Below about this size the kernel copies faster than it pins, see docs/design.md.
DEFAULT_THRESHOLD = 16 << 10
# Bytes of memory for small sends; one socket has at most sixteen slabs of it.
DEFAULT_STAGING = 8 << 20
SLAB = 64 << 10

_ambient: ContextVar[Ring | None] = ContextVar("zc_anyio ring", default=None)
# The rings of all threads.  While the lock is held no other thread closes one; the lock is
# reentrant, since garbage collection may close one in the same thread.
_open_rings: weakref.WeakSet[Ring] = weakref.WeakSet()
_open_rings_lock = threading.RLock()


def require_ring(ring: Ring | None) -> Ring:
    """Return the ring that was given, or the ambient one.

    :raises RuntimeError: there is none, or it belongs to another event loop.
    """
    ring = ring or _ambient.get()
    if ring is None:
        raise RuntimeError("no ring is open: open one with open_ring(), or pass ring=")
    ring.check_loop()
    return ring


def current_ring() -> Ring | None:
    """Return the ambient ring: that of the innermost :func:`open_ring` around this task.

    :return: ``None`` if no ring is open.
    """
    return _ambient.get()


@asynccontextmanager
async def open_ring(
    *,
    driver: Driver = "auto",
    zero_copy: ZeroCopy = "auto",
    threshold: int = DEFAULT_THRESHOLD,
    staging: int = DEFAULT_STAGING,
    entries: int = DEFAULT_ENTRIES,
    drain_timeout: float = 5.0,
) -> AsyncGenerator[Ring, None]:
    """Open a ring for the length of a scope; it is the ambient ring of the tasks inside.

    :param driver: what carries the sends: ``"io_uring"``; ``"msg_zerocopy"``, zero-copying with
        the socket's error queue; ``"copy"``, plain sends. ``"auto"`` is the first of these that
        runs here, and ``ring.capabilities.unavailable`` says why the ones before it do not.
    :param zero_copy: ``"auto"`` zero-copies sends from ``threshold`` on, ``"always"`` every send
        that the socket can, ``"never"`` none.
    :param threshold: bytes; a smaller send is staged: written into memory of the ring, gathered
        there with its neighbours, and sent from there, so that its own buffer is free at once.
    :param staging: bytes of memory for staging, 0 for none.
    :param entries: requests that one submission can carry, 1 to 32768 (the kernel may take fewer).
    :param drain_timeout: seconds that the end of the scope waits for what is under way, cancelled
        or not.  Connections that still hold sends are then reset, so that the buffers come back.
        What io_uring holds of a connection that the program has closed stays in memory instead.
    :raises DriverUnavailable: the driver cannot run here, with the reason.
    :raises ValueError: an argument is out of its range.
    """
    if driver != "auto" and driver not in DRIVERS:
        raise ValueError(f"unknown driver {driver!r}")
    if zero_copy not in ("auto", "always", "never"):
        raise ValueError(f'zero_copy must be "auto", "always" or "never", not {zero_copy!r}')
    if threshold < 0 or drain_timeout < 0 or staging < 0:
        raise ValueError("threshold, staging and drain_timeout must not be negative")
    native, unavailable = _open_native(driver, entries)
    try:
        limit = memlock_limit()
        if limit is not None:
            native.lockable(limit)
        if staging:
            # Registered memory is charged to RLIMIT_MEMLOCK until the end of the ring, so it gets a
            # quarter of the limit at most; the rest is left to sends.
            native.stage(max(staging, SLAB), registered=limit is None or staging <= limit // 4)
        capabilities = of_ring(native, unavailable)
        ring = Ring(native, capabilities, zero_copy=zero_copy, threshold=threshold)
    except BaseException:
        native.close()
        raise
    _guard(ring)
    raised: BaseException | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ring._reaper.run, name="zc_anyio reaper")
            tasks.start_soon(ring._reaper.run_submitter, name="zc_anyio submitter")
            tasks.start_soon(ring._reaper.run_lingering, name="zc_anyio idle sockets")
            tasks.start_soon(ring._maps.run, name="zc_anyio kept files")
            token = _ambient.set(ring)
            try:
                yield ring
            except BaseException as exc:
                # The task group does not see it: it would wrap it in an exception group.
                raised = exc
            finally:
                _ambient.reset(token)
                try:
                    if not ring.is_foreign():
                        leaving = Leaving(ring._reaper, raised)
                        await ring._drain(drain_timeout, leaving)
                        raised = leaving.raised
                finally:
                    ring._reaper.stop()
                    ring._maps.stop()
    finally:
        with _open_rings_lock:
            _open_rings.discard(ring)
        # Not earlier: the event loop polls the ring's descriptor until the reaper task has ended.
        ring._close()
    if raised is not None:
        raise raised


def _open_native(driver: Driver, entries: int) -> tuple[NativeRing, dict[str, str]]:
    """Open the driver that was asked for, or the best that runs; say why those before it do not."""
    if driver != "auto":
        return NativeRing(driver=driver, entries=entries), {}
    unavailable: dict[str, str] = {}
    for candidate in DRIVERS:
        try:
            return NativeRing(driver=candidate, entries=entries), unavailable
        except DriverUnavailable as exc:
            unavailable[candidate] = str(exc)
    reasons = "; ".join(f"{name}: {why}" for name, why in unavailable.items())
    raise DriverUnavailable(f"no driver runs here: {reasons}")


# --- guards ---

_guarded = False


def _guard(ring: Ring) -> None:
    global _guarded
    with _open_rings_lock:
        _open_rings.add(ring)
        if _guarded:
            return
        _guarded = True
        os.register_at_fork(before=process_forks, after_in_child=_disown)
        sys.addaudithook(_refuse_exec)


def _disown() -> None:
    """In a forked child, make no thread the owner of the parent's rings."""
    global _open_rings_lock
    # A thread that the child does not have may have held it.
    _open_rings_lock = threading.RLock()
    # Here as well, since a program that embeds Python may report forks in the child only.
    process_forks()
    for ring in _open_rings:
        ring._thread = 0
        ring._native.orphan()
        ring._reaper.stop_soon()


def _refuse_exec(event: str, _arguments: tuple[Any, ...]) -> None:
    """Refuse ``exec``: Linux up to at least 6.18 hangs in it while a notification is pending."""
    if event == "os.exec":
        with _open_rings_lock:
            busy = any(not ring.is_foreign() and ring._busy() for ring in _open_rings)
        if busy:
            raise RuntimeError(
                "os.exec* would hang with zero-copy sends under way: leave the groups first"
            )
