"""Pools of registered buffers: memory that the kernel pins once, instead of at each send.

A buffer is handed out as a ``memoryview``, so that everything which uses the buffer protocol works
on it, and parts of it can be sent.  A send recognises it by its address.
"""

from __future__ import annotations

import errno
import mmap
import weakref
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import partial
from gc import get_referents
from sys import getrefcount
from threading import get_ident
from typing import Any, Literal, TypeAlias

import anyio

from .._native.lib import (
    PAGES_ORDINARY,
    PAGES_RESERVED,
    PAGES_TRANSPARENT,
    export,
    map_address,
    map_memory,
    part_of,
)
from .._ring.opening import require_ring
from .._ring.ring import Ring

__all__ = ["BufferPool", "open_buffer_pool"]

HugePages: TypeAlias = Literal["auto", "always", "never"]

PAGE = mmap.PAGESIZE
HUGE_PAGE = 2 << 20
# The kernel registers at most this much as one buffer.
REGION_MOST = 1 << 30
# In how many calls the clock is read once: reading it costs as much as handing a buffer out.
CLOCK_EVERY = 8


# The reference counts of a view that only one object has, and of what the view shares with slices
# and arrays of it.  They are measured, since interpreters differ.
_example = [memoryview(bytearray(1))]
VIEW_ALONE = getrefcount(_example[0])
MEMORY_ALONE = getrefcount(get_referents(_example[0])[0])


class _Slot:
    """One buffer of a pool."""

    __slots__ = (
        "exporter",
        "kept",
        "key",
        "out",
        "pinned",
        "pool",
        "region",
        "size",
        "uses",
        "view",
    )

    def __init__(self, pool: BufferPool, region: _Region, offset: int) -> None:
        self.pool: BufferPool = pool
        self.region: _Region = region
        self.pinned: Any = part_of(region.pinned, offset)
        self.size: int = pool.buffer_size
        # How many unreleased generations have a send of it.
        self.uses: int = 0
        # Whether somebody other than the pool has it.
        self.out: bool = False
        # The view that was sent; of a free buffer, the view that the next owner gets.
        self.kept: memoryview | None = None
        # What this handing-out exports; every view, slice and array of it keeps it alive.
        self.exporter: weakref.ref[Any] | None = None
        self.view: weakref.ref[memoryview] | None = None
        # The view's key in the ring's table of views.
        self.key: int = 0

    def hand_out(self) -> memoryview:
        """Return a view of the buffer; it is free when the view and all made from it are gone."""
        self.out = True
        if (view := self.kept) is not None:
            self.kept = None
            return view
        exporter = export(self.pinned, self.size)
        view = memoryview(exporter)
        self.exporter = weakref.ref(exporter, self._dropped)
        self.view = weakref.ref(view)
        self.key = id(view)
        self.pool._views[self.key] = self
        return view

    def give_back(self) -> None:
        """A generation that used the buffer was released.

        The view need not be revoked if it was sent whole, nobody has released it, and nobody else
        has it or a slice or array of it.  The next owner then gets the same view, which costs much
        less than a new one.
        """
        self.uses -= 1
        if self.uses:
            return
        if (
            self.kept is None
            or getrefcount(self.kept) != VIEW_ALONE
            or getrefcount(get_referents(self.kept)[0]) != MEMORY_ALONE
            or self.exporter is None
            or self.exporter() is None
            or self.pool._closed
        ):
            self.take_back()
        else:
            self.pool._put(self)

    def take_back(self) -> None:
        """Revoke the view and give the buffer to the next waiting task."""
        view = self.view() if self.view is not None else None
        # First, since dropping the view may end the exporter, whose callback comes here again.
        self.exporter = self.view = self.kept = None
        # If the view was dropped before its slices, another slot's view may have its id by now.
        if self.pool._views.get(self.key) is self:
            del self.pool._views[self.key]
        if view is not None:
            with suppress(BufferError):
                view.release()
        self.pool._put(self)

    def _dropped(self, exporter: weakref.ref[Any]) -> None:
        self.pool._ring.call_in_own_thread(partial(self._free_again, exporter))

    def _free_again(self, exporter: weakref.ref[Any]) -> None:
        if self.exporter is exporter and not self.uses:
            self.take_back()


class _Waiter:
    __slots__ = ("event", "slot")

    def __init__(self) -> None:
        self.event: anyio.Event = anyio.Event()
        self.slot: _Slot | None = None


class _Region:
    """Memory of a pool that is registered as one buffer, unless that was refused."""

    def __init__(self, pool: BufferPool, count: int) -> None:
        self.size: int = count * pool.stride
        self.pinned: Any
        self.pinned, registered = map_memory(self.size, pool.pages)
        self.address: int = map_address(self.pinned)
        self.slots: list[_Slot] = [
            _Slot(pool, self, number * pool.stride) for number in range(count)
        ]
        self.refused: str | None = None
        sizes = [min(registered, REGION_MOST)]
        if pool.pages == PAGES_RESERVED:
            # Linux 6.1 refuses pages of two sizes (EINVAL).  Then the huge pages are registered
            # without the ordinary page behind them: they are not pinned at each send, but are
            # charged whole to a socket's send buffer.
            sizes.append(min(registered - PAGE, REGION_MOST))
        for size in sizes:
            try:
                pool._ring._native.register(self.pinned, size)
            except OSError as exc:
                self.refused = str(exc)
                if exc.errno != errno.EINVAL:
                    break
            else:
                self.refused = None
                break


class BufferPool:
    """Buffers of one size that are sent without being pinned anew; see :func:`open_buffer_pool`.

    :ivar buffer_size: bytes of each buffer.
    :ivar count: how many buffers there are, free or not.
    """

    def __init__(
        self,
        ring: Ring,
        *,
        buffer_size: int,
        count: int,
        huge_pages: HugePages,
    ) -> None:
        self.buffer_size: int = buffer_size
        self.count: int = 0
        self.huge_pages: HugePages = huge_pages
        unit = HUGE_PAGE if buffer_size >= HUGE_PAGE else PAGE
        self.stride: int = -(-buffer_size // unit) * unit
        self._ring = ring
        self.pages: int = PAGES_ORDINARY
        if huge_pages == "always":
            self.pages = PAGES_RESERVED
        elif huge_pages == "auto" and ring.capabilities.driver != "io_uring":
            self.pages = PAGES_TRANSPARENT
        self._views = ring._leases_by_view
        self._regions: list[_Region] = []
        self._closed = False
        self._acquired = 0
        self._free: deque[_Slot] = deque()
        self.waiters: deque[_Waiter] = deque()
        self.grow(count)

    def grow(self, count: int) -> None:
        """Add buffers; tasks that wait in :meth:`acquire` get them first.

        :param count: how many.
        :raises OSError: no memory.
        :raises anyio.ClosedResourceError: the pool is closed.
        :raises RuntimeError: this is not the ring's thread.
        """
        if self._closed:
            raise anyio.ClosedResourceError
        self._ring.check()
        most = max(1, (REGION_MOST - PAGE) // self.stride)
        for first in range(0, count, most):
            region = _Region(self, min(most, count - first))
            self._regions.append(region)
            self.count += len(region.slots)
            for slot in region.slots:
                self._put(slot)

    @property
    def unregistered(self) -> str | None:
        """Why some of the memory is not registered with the kernel, or ``None`` if all is.

        The pool works all the same; a send of an unregistered buffer pins it.
        """
        return next((region.refused for region in self._regions if region.refused), None)

    @property
    def free(self) -> int:
        """How many buffers :meth:`acquire` would return at once."""
        return len(self._free)

    async def acquire(self) -> memoryview:
        """Wait for a free buffer, first come first served, and return it as a writable view.

        The buffer goes back to the pool by itself: when the last generation that it was sent in is
        released, or when it is dropped without having been sent.  :meth:`release` gives it back
        earlier.  From then on using the view raises ``ValueError``.  Slices and arrays of it that
        still exist cannot be revoked: sending a slice raises ``BufferError``, and writing to one
        changes the next owner's data.

        While a task waits, generations with pool buffers are ended at once, as by
        :meth:`SendGroup.flush`, except in :mod:`zc_anyio.lowlevel`, where only the program ends
        them.

        Cancellation is noticed while waiting, and by one call in eight if a millisecond has passed
        without yielding to other tasks.

        :raises anyio.ClosedResourceError: the pool is closed, or was while this waited.
        :raises RuntimeError: this is not the ring's thread.
        """
        if self._ring._thread != get_ident():
            self._ring.check()
        self._acquired += 1
        if not self._free or (self._acquired % CLOCK_EVERY == 0 and self._ring.yield_is_due()):
            if self._closed:
                raise anyio.ClosedResourceError
            await self._ring.let_others_run()
            if self._closed:
                raise anyio.ClosedResourceError
        if self._free:
            return self._free.popleft().hand_out()
        # Too few buffers to fill a generation's share of the window would never end it.
        for context in self._ring._reaper.contexts:
            context.flush_leases()
        waiter = _Waiter()
        self.waiters.append(waiter)
        try:
            await waiter.event.wait()
        except BaseException:
            # asyncio's own cancellation can come after the buffer was handed over.
            if waiter.slot is not None:
                self._put(waiter.slot)
            elif waiter in self.waiters:
                self.waiters.remove(waiter)
            raise
        if waiter.slot is None:
            raise anyio.ClosedResourceError
        return waiter.slot.hand_out()

    def release(self, view: memoryview) -> None:
        """Give back a buffer that was not sent after all.

        :param view: what :meth:`acquire` returned.
        :raises ValueError: the view is not of this pool, or was given back already.
        :raises BufferError: the buffer is part of a send that is not released.
        :raises RuntimeError: this is not the ring's thread.
        """
        if self._ring._thread != get_ident():
            self._ring.check()
        slot = self._views.get(id(view))
        if slot is None or slot.pool is not self or slot.view is None or slot.view() is not view:
            raise ValueError("not a buffer that this pool has given out")
        if slot.uses:
            raise BufferError("the buffer is being sent; it goes back by itself")
        slot.take_back()

    def find(self, address: int, exporter: object) -> _Slot | None:
        """Return the buffer of this pool that lies at an address, if there is one.

        :param exporter: the object whose memory the view shows, to recognise an old view.
        :raises BufferError: the buffer was given back.
        """
        slot = self._slot_at(address)
        if slot is None:
            return None
        current = slot.exporter() if slot.out and slot.exporter is not None else None
        if current is None or (type(exporter) is type(current) and exporter is not current):
            raise BufferError("the buffer was given back to its pool")
        return slot

    def _slot_at(self, address: int) -> _Slot | None:
        for region in self._regions:
            if 0 <= address - region.address < region.size:
                return region.slots[(address - region.address) // self.stride]
        return None

    def _put(self, slot: _Slot) -> None:
        """Give a free buffer to the task that has waited longest."""
        slot.out = False
        if self._closed:
            return
        if not self.waiters:
            self._free.append(slot)
            return
        waiter = self.waiters.popleft()
        waiter.slot = slot
        waiter.event.set()

    def _close(self) -> None:
        """Let go of the memory; buffers that are still being sent stay mapped until released."""
        self._closed = True
        for waiter in self.waiters:
            waiter.event.set()
        self._free.clear()
        for region in self._regions:
            for slot in region.slots:
                if slot.exporter is not None and not slot.uses:
                    slot.take_back()
            if region.refused is None and not self._ring._closed:
                self._ring._native.unregister(region.pinned)
            # Only slots that are being sent keep the memory now; this ends the reference cycle.
            region.slots.clear()
        self._regions.clear()


@asynccontextmanager
async def open_buffer_pool(
    *,
    buffer_size: int,
    count: int,
    huge_pages: HugePages = "auto",
    ring: Ring | None = None,
) -> AsyncGenerator[BufferPool, None]:
    """Open a pool of registered buffers for the length of a scope.

    Leaving does not wait, cancelled or not: buffers that are still being sent stay in memory until
    they are released.  Tasks that wait in :meth:`BufferPool.acquire` get
    :exc:`anyio.ClosedResourceError`, and later use of the pool raises it.  Views of other buffers
    are revoked.

    :param buffer_size: bytes of each buffer.
    :param count: how many.
    :param huge_pages: ``"always"`` takes explicitly reserved huge pages (``vm.nr_hugepages``),
        ``"never"`` takes none; ``"auto"`` asks for transparent ones unless the memory is registered
        with an io_uring, which reads it page by page anyway.
    :param ring: the ambient ring by default.
    :raises RuntimeError: no ring is open.
    :raises OSError: no memory, or no reserved huge pages.
    :raises ValueError: an argument is out of its range.
    """
    if buffer_size <= 0 or count <= 0:
        raise ValueError("buffer_size and count must be positive")
    if buffer_size > REGION_MOST:
        raise ValueError("a registered buffer has at most 1 GiB")
    if huge_pages not in ("auto", "always", "never"):
        raise ValueError(f'huge_pages must be "auto", "always" or "never", not {huge_pages!r}')
    ring = require_ring(ring)
    pool = BufferPool(ring, buffer_size=buffer_size, count=count, huge_pages=huge_pages)
    ring._pools.append(pool)
    try:
        yield pool
    finally:
        ring._pools.remove(pool)
        pool._close()
