"""A ring and its lifetime: opening, the ambient ring, guards, draining."""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
import warnings
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from time import monotonic
from typing import Any, Literal, Protocol, TypeAlias

import anyio
import anyio.lowlevel

from . import _capabilities
from ._capabilities import Capabilities
from ._contexts import Context, Lease
from ._errors import DriverUnavailable
from ._events import RingStatistics
from ._lib import NativeRing, map_address
from ._loops import running_loop
from ._reaper import Reaper
from ._sockets import SocketTable

__all__ = ["Driver", "Ring", "ZeroCopy", "current_ring", "open_ring", "require_ring"]

Driver: TypeAlias = Literal["auto", "io_uring", "msg_zerocopy", "copy"]
ZeroCopy: TypeAlias = Literal["auto", "always", "never"]

# The best first.
DRIVERS = ("io_uring", "msg_zerocopy", "copy")
DEFAULT_ENTRIES = 1024
# Below about this size the kernel copies faster than it pins, see docs/design.md.
DEFAULT_THRESHOLD = 16 << 10
# What the kernel gives back at once when asked by a reset; a datagram in a device queue is not.
RESET_SECONDS = 1.0
# Bytes of memory for small sends; sixteen slabs of it at most are one socket's.
DEFAULT_STAGING = 8 << 20
SLAB = 64 << 10

# A task that never has to wait gives the others a turn this often.
YIELD_SECONDS = 0.001

_ambient: ContextVar[Ring | None] = ContextVar("zc_anyio ring", default=None)
_open_rings: weakref.WeakSet[Ring] = weakref.WeakSet()
# Buffers that the kernel still read when their ring was closed: freed memory would go out changed.
_never_released: list[object] = []


class PoolLease(Lease, Protocol):
    """A pool buffer that is out."""

    uses: int

    @property
    def pinned(self) -> Any: ...
    @property
    def size(self) -> int: ...
    @property
    def view(self) -> weakref.ref[memoryview] | None: ...


class Pool(Protocol):
    """A pool of registered buffers."""

    def find(self, address: int, exporter: object, /) -> PoolLease | None: ...


class Ring:
    """A driver with its reaper task; made by :func:`open_ring`.

    It belongs to the thread and the event loop that opened it.
    """

    def __init__(
        self,
        native: NativeRing,
        capabilities: Capabilities,
        *,
        zero_copy: ZeroCopy,
        threshold: int,
    ) -> None:
        self.capabilities: Capabilities = capabilities
        self._native = native
        self._zero_copy: ZeroCopy = zero_copy
        self._threshold = threshold
        self._sockets = SocketTable(native)
        self._loop_calls = running_loop()
        self._reaper = Reaper(native, self._sockets, self._loop_calls)
        self._sockets.turn_soon = self._reaper.submit_soon
        self._thread = threading.get_ident()
        self._process = os.getpid()
        self._pools: list[Pool] = []
        # Pool buffers that are out, by the identity of the view that was handed out.
        self._leases_by_view: dict[int, Any] = {}
        self._yield_at = 0.0
        # Whether receiving goes through the ring, and how many tasks wait for bytes.
        self._receives: bool = capabilities.driver == "io_uring"
        self._receiving: int = 0
        self._closed = False
        self._final: RingStatistics | None = None

    def __repr__(self) -> str:
        return f"<Ring {self.capabilities.driver}{', closed' if self._closed else ''}>"

    def statistics(self) -> RingStatistics:
        """Return the counters; after the end of the ring, those that it ended with."""
        if self._final is not None:
            return self._final
        self.check()
        counters: Any = self._native.statistics()
        return RingStatistics(
            driver=self.capabilities.driver,
            sends=counters.sends,
            bytes_sent=counters.bytes_sent,
            zero_copied=counters.zero_copied,
            copied=counters.copied,
            staged=counters.staged,
            failed=counters.failed,
            queued=counters.queued,
            in_flight=counters.in_flight,
            held=counters.held,
            generations_open=counters.generations_open,
            generations_released=counters.generations_released,
            requests=counters.requests,
            registered=counters.registered,
            refused=counters.refused,
            submits=self._native.submits,
            completions=counters.completions,
            receivers=counters.receivers,
            receives=counters.receives,
        )

    def check(self) -> None:
        """Raise ``RuntimeError`` unless this is the ring's thread and process, and it is open."""
        if self._thread == threading.get_ident() and not self._closed:
            return
        if self.is_foreign():
            raise RuntimeError(
                "the ring belongs to the process that this one was forked from; open another here"
            )
        if self._closed:
            raise RuntimeError("the ring is closed")
        raise RuntimeError("the ring belongs to another thread; open one in each that sends")

    def call_in_own_thread(self, close: Callable[[], None], sock: socket.socket) -> None:
        """Close what belongs to an object that was dropped, which happens in any thread.

        :param close: closes all of it, its socket too; called now, or soon in the event loop.
        :param sock: what is closed if that does not run any more.
        """
        if self.is_foreign():
            # The event loop and its descriptors are the parent's.
            sock.close()
        elif self._thread == threading.get_ident():
            close()
        else:
            try:
                self._loop_calls.call_from_thread(close)
            except RuntimeError:
                sock.close()

    def is_foreign(self) -> bool:
        """Whether this is a forked child of the ring's process."""
        return os.getpid() != self._process

    def check_loop(self) -> None:
        """Raise ``RuntimeError`` unless :meth:`check` passes and this is the ring's event loop."""
        self.check()
        if not self._loop_calls.is_running():
            raise RuntimeError("the ring belongs to another event loop")

    def yield_is_due(self) -> bool:
        """Whether it is time that a task which never had to wait lets the others run."""
        return monotonic() >= self._yield_at

    async def let_others_run(self) -> None:
        """Notice cancellation, and yield."""
        self._reaper.expect_more()
        await self._loop_calls.checkpoint()
        self._yield_at = monotonic() + YIELD_SECONDS

    def new_context(
        self,
        *,
        tag: int,
        window: int,
        zero_copy: ZeroCopy | None,
        on_failed: Callable[[int, int], None],
    ) -> Context:
        """Make a tx context; ``zero_copy=None`` is the ring's own policy."""
        return Context(
            self._native,
            self._reaper,
            tag=tag,
            window=window,
            policy=zero_copy or self._zero_copy,
            threshold=self._threshold,
            on_failed=on_failed,
        )

    def find_lease(self, pinned: Any, exporter: object) -> PoolLease | None:
        """Return the pool buffer that pinned memory is of, if it is one's.

        :raises BufferError: the buffer was given back.
        """
        address = map_address(pinned)
        for pool in self._pools:
            if (lease := pool.find(address, exporter)) is not None:
                return lease
        return None

    def _busy(self) -> bool:
        counters: Any = self._native.statistics()
        return bool(counters.queued or counters.in_flight or counters.held)

    async def _drain(self, seconds: float) -> BaseException | None:
        """Wait until nothing is under way; after ``seconds`` reset what still holds buffers.

        Returns a cancellation that came meanwhile.
        """
        for context in self._reaper.contexts:
            # Streams that are still open have generations that nothing else would end.
            context.flush(even_empty=False)
        self._receives = False
        self._reaper.turn()
        cancelled = await self._reaper.wait_anyway(lambda: not self._busy(), seconds)
        if self._busy():
            self._native.reset_all(errno.ECONNABORTED)
            self._reaper.turn()
            again = await self._reaper.wait_anyway(lambda: not self._busy(), RESET_SECONDS)
            cancelled = cancelled or again
        if self._native.stop_receiving():
            self._reaper.turn()
            again = await self._reaper.wait_anyway(
                lambda: not self._native.stop_receiving(), RESET_SECONDS
            )
            cancelled = cancelled or again
        self._reaper.stop_receivers()
        # What was learned of sockets is remembered when they are detached.
        self._native.linger(0)
        self._reaper.turn()
        self._sockets.detach_suspended()
        return cancelled

    def _close(self) -> None:
        if self.is_foreign():
            return
        self._final = self.statistics()
        self._closed = True
        _open_rings.discard(self)
        contexts = self._reaper.contexts
        all_released = self._native.close()
        for context in contexts:
            context.disown()
        self._reaper.close()
        if all_released:
            for context in contexts:
                context.references.clear()
        else:
            _never_released.extend(context.references for context in contexts)
            warnings.warn(
                "a ring was closed while the kernel still read buffers; they stay in memory "
                "for as long as the process runs",
                ResourceWarning,
                stacklevel=2,
            )


def require_ring(ring: Ring | None) -> Ring:
    """Return the ring that was given, or the ambient one.

    :raises RuntimeError: there is none, or it is not this event loop's.
    """
    ring = ring or _ambient.get()
    if ring is None:
        raise RuntimeError("no ring is open: open one with open_ring(), or pass ring=")
    ring.check_loop()
    return ring


def current_ring() -> Ring | None:
    """Return the ambient ring: that of the innermost :func:`open_ring` around this task."""
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
    """Open a ring for the length of a scope; it is the ambient ring of the tasks started inside.

    :param driver: what carries the sends: ``"io_uring"``; ``"msg_zerocopy"``, zero-copying with
        the socket's error queue; ``"copy"``, plain sends. ``"auto"`` is the first of these that
        runs here, and ``ring.capabilities.unavailable`` says why the ones before it do not.
    :param zero_copy: ``"auto"`` zero-copies sends from ``threshold`` on, ``"always"`` every send
        that the socket can, ``"never"`` none.
    :param threshold: bytes; what is smaller is staged: written into memory of the ring, gathered
        there with its neighbours, and sent from there, so that its own buffer is free at once.
    :param staging: bytes of that memory, 0 for none.
    :param entries: requests that one submission can carry, 1 to 32768 (the kernel may take fewer).
    :param drain_timeout: seconds that the end of the scope waits for what is under way, cancelled
        or not.  What is still held then is reset, so that its buffers come back.
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
        limit = _capabilities.memlock_limit()
        if limit is not None:
            native.lockable(limit)
        if staging:
            # Registered memory is charged to RLIMIT_MEMLOCK for good: most of it is left to sends.
            native.stage(max(staging, SLAB), registered=limit is None or staging <= limit // 4)
        capabilities = _capabilities.of_ring(native, unavailable)
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
            token = _ambient.set(ring)
            try:
                yield ring
            except BaseException as exc:
                # Kept from the task group, which would wrap it into an exception group.
                raised = exc
            finally:
                _ambient.reset(token)
                try:
                    if not ring.is_foreign():
                        raised = await ring._drain(drain_timeout) or raised
                finally:
                    ring._reaper.stop()
    finally:
        # Only now: until its task has ended the event loop polls the ring's descriptor.
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
    _open_rings.add(ring)
    if _guarded:
        return
    _guarded = True
    os.register_at_fork(after_in_child=_disown)
    sys.addaudithook(_refuse_exec)


def _disown() -> None:
    """In a forked child: no thread is the owner of the parent's rings."""
    for ring in _open_rings:
        ring._thread = 0
        ring._native.orphan()
        ring._reaper.stop_soon()


def _refuse_exec(event: str, _arguments: tuple[Any, ...]) -> None:
    """Linux up to at least 6.18 hangs in execve while a zero-copy notification is pending."""
    if event == "os.exec":
        for ring in _open_rings:
            if not ring.is_foreign() and ring._busy():
                raise RuntimeError(
                    "os.exec* would hang with zero-copy sends under way: leave the groups first"
                )
