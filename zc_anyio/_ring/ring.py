"""A ring: its counters, guards, contexts, draining and closing."""

from __future__ import annotations

import errno
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Collection
from time import monotonic
from typing import Any, Literal, Protocol, TypeAlias

from .._base.loops import running_loop
from .._base.reports import RingStatistics
from .._files.maps import KeptMaps
from .._native.lib import map_address
from .._native.ring import NativeRing
from .capabilities import Capabilities
from .contexts import Context, Lease
from .leaving import RESET_SECONDS, Leaving
from .reaper import Reaper
from .sockets import SocketTable

__all__ = ["Ring", "ZeroCopy"]

ZeroCopy: TypeAlias = Literal["auto", "always", "never"]

# How often a task that never has to wait lets others run.
YIELD_SECONDS = 0.001

# Buffers that the kernel still read when their ring was closed.  They are kept for ever: if they
# were freed and used again, other data would be sent.
_never_released: list[object] = []


class PoolLease(Lease, Protocol):
    """A pool buffer that somebody has acquired."""

    uses: int

    @property
    def pinned(self) -> Any: ...
    @property
    def size(self) -> int: ...
    @property
    def view(self) -> weakref.ref[memoryview] | None: ...
    @property
    def pool(self) -> Pool: ...


class Pool(Protocol):
    """A pool of registered buffers."""

    @property
    def waiters(self) -> Collection[object]: ...
    def find(self, address: int, exporter: object, /) -> PoolLease | None: ...


class Ring:
    """A driver with its reaper task; made by :func:`open_ring`.

    It belongs to the thread and the event loop that opened it.

    :ivar capabilities: the :class:`Capabilities` that were found.
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
        self._maps = KeptMaps()
        # Acquired pool buffers, by the identity of the view that was handed out.
        self._leases_by_view: dict[int, Any] = {}
        # The contexts that zc_anyio.lowlevel has registered.
        self._tx_contexts: list[Any] | None = None
        self._yield_at = 0.0
        # Whether receiving may go through the ring, and how many tasks wait for bytes.
        self._receives: bool = capabilities.driver == "io_uring"
        self._receiving: int = 0
        self._closed = False
        self._final: RingStatistics | None = None

    def __repr__(self) -> str:
        return f"<Ring {self.capabilities.driver}{', closed' if self._closed else ''}>"

    def statistics(self) -> RingStatistics:
        """Return the counters; after the end of the ring, their last values."""
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
            kernel_tls=counters.kernel_tls,
        )

    def check(self) -> None:
        """Raise ``RuntimeError`` unless the ring is open and belongs to this thread and process."""
        if self._thread == threading.get_ident() and not self._closed:
            return
        if self.is_foreign():
            raise RuntimeError(
                "the ring belongs to the process that this one was forked from; open another here"
            )
        if self._closed:
            raise RuntimeError("the ring is closed")
        raise RuntimeError("the ring belongs to another thread; open one in each that sends")

    def call_in_own_thread(
        self, let_go: Callable[[], None], otherwise: Callable[[], None] = lambda: None
    ) -> None:
        """Release what an object owns that was dropped, in whatever thread that happens.

        :param let_go: called now if this is the ring's thread, else soon in its event loop.
        :param otherwise: called instead if the loop has ended, or this is a forked child.
        """
        if self._thread == threading.get_ident():
            let_go()
        elif self.is_foreign():
            otherwise()
        else:
            try:
                self._loop_calls.call_from_thread(let_go)
            except RuntimeError:
                otherwise()

    def is_foreign(self) -> bool:
        """Whether this is a forked child of the ring's process."""
        return os.getpid() != self._process

    def check_loop(self) -> None:
        """Raise ``RuntimeError`` unless :meth:`check` passes in the ring's event loop."""
        self.check()
        if not self._loop_calls.is_running():
            raise RuntimeError("the ring belongs to another event loop")

    def yield_is_due(self) -> bool:
        """Whether a task that never had to wait should now let others run."""
        return monotonic() >= self._yield_at

    async def let_others_run(self) -> None:
        """Notice cancellation, and yield."""
        self._reaper.expect_more()
        await self._loop_calls.checkpoint()
        self.put_off_yield()

    def put_off_yield(self) -> None:
        """Note that the calling task has just yielded, or is about to."""
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
        """Return the pool buffer that pinned memory lies in, if it lies in one.

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

    async def _drain(self, seconds: float, leaving: Leaving) -> None:
        """Wait until nothing is under way; after ``seconds`` reset what still holds buffers."""
        for context in self._reaper.contexts:
            # Nothing else would end the open generations of streams that are still open.
            context.flush(even_empty=False)
        self._receives = False
        self._reaper.draining = True
        self._reaper.turn()
        await leaving.until(lambda: not self._busy(), seconds)
        if self._busy():
            self._native.reset_all(errno.ECONNABORTED)
            self._reaper.turn()
            await leaving.until(lambda: not self._busy(), RESET_SECONDS)
        if self._native.stop_receiving():
            self._reaper.turn()
            await leaving.until(lambda: not self._native.stop_receiving(), RESET_SECONDS)
        self._reaper.stop_receivers()
        # Detaching the sockets remembers what was learned about them.
        self._native.linger(0)
        self._reaper.turn()
        await leaving.until(self._detach_some, RESET_SECONDS)

    def _detach_some(self) -> bool:
        if self._sockets.detach_suspended():
            return True
        self._reaper.submit_soon()
        return False

    def _close(self) -> None:
        if self.is_foreign():
            return
        self._final = self.statistics()
        self._closed = True
        contexts = self._reaper.contexts
        self._reaper.stop_polling()
        all_released = self._native.close()
        for context in contexts:
            context.disown()
        self._reaper.close()
        self._maps.close()
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
