"""Queueing datagrams in trains: many that the kernel takes as one."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby, islice
from typing import Any, SupportsIndex, TypeVar

from .._base.loops import uninterrupted
from .._native.lib import NO_ADDRESS, Datagrams, queue_segments
from .buffers import Buffer, Data
from .queueing import Queueing

__all__ = ["Address", "Many", "Segments", "Trains", "in_batches", "unpinned"]

Address = tuple[str, int]
T = TypeVar("T")
# What one call of the native part queues at most, so that others of the event loop get their turn.
RUN_BYTES = 256 << 10
RUN_DATAGRAMS = 512
SEGMENT_BOUND = 1 << 16


@contextmanager
def unpinned(*pinned: Segments | Many) -> Iterator[None]:
    """Unpin at the end what was not queued."""
    try:
        yield
    finally:
        for one in pinned:
            one.unpin()


def in_batches(datagrams: Iterable[T]) -> Iterator[list[T]]:
    """Take as many at a time as one call queues."""
    left = iter(datagrams)
    while batch := list(islice(left, RUN_DATAGRAMS)):
        yield batch


class Segments:
    """What lies in some buffers, and leaves as datagrams of one size.

    :ivar left: which bytes of it are not queued.
    """

    def __init__(
        self,
        pins: list[Any],
        sizes: list[int],
        flags: int,
        references: list[object],
        segment_size: SupportsIndex,
        address: Any,
    ) -> None:
        # No datagram is as large as the bound; the native part says so.
        self.size = min(operator.index(segment_size), SEGMENT_BOUND)
        if self.size <= 0:
            raise ValueError("segment_size must be a positive number of bytes")
        self.left = range(sum(sizes))
        if not self.left:
            raise ValueError("an empty buffer has no segments")
        self.pins, self.sizes, self.flags, self.references = pins, sizes, flags, references
        self.address = address
        self._run = self.size * max(1, RUN_BYTES // self.size)

    def unpin(self) -> None:
        """Pin no more than what is queued: the traceback of a cancellation keeps this object."""
        self.pins, self.references = [], []

    def next_run(self) -> range:
        """Return which bytes to queue next: whole datagrams."""
        return self.left[: self._run]


class Many:
    """Datagrams of their own sizes to one address, those that are not queued."""

    def __init__(
        self, pins: list[Any], sizes: list[int], flags: int, references: list[object], address: Any
    ) -> None:
        self.datagrams = Datagrams(pins, sizes, address)
        self.flags, self.references = flags, references
        self.has_address = address is not NO_ADDRESS

    def unpin(self) -> None:
        """Pin no more than what is queued, see :meth:`Segments.unpin`."""
        self.references = []


class Trains(Queueing):
    """Queues datagrams on one tx context of a ring; ``False`` for a window that is full."""

    def _pin_segments(self, data: Data, segment_size: SupportsIndex, address: Any) -> Segments:
        parts = data if isinstance(data, list | tuple) else [data]
        return Segments(*self._pin_all(parts), segment_size, address)  # type: ignore[arg-type]

    def _pin_many(self, datagrams: Iterable[tuple[Buffer, Any]]) -> list[Many]:
        """Pin datagrams with the packed addresses that they go to; neighbours to one together."""
        return [
            Many(*self._pin_all([data for data, _ in run]), address)
            for address, run in groupby(datagrams, key=operator.itemgetter(1))
        ]

    @uninterrupted
    def _queue_segments(self, stream: object, segments: Segments) -> bool:
        """Queue the next of them, in one call."""
        self._check()
        to = segments.address
        socket = self._attach(stream, unconnected=to is not NO_ADDRESS)
        if not socket.datagram:
            raise TypeError("only a UDP socket sends datagrams")
        part = segments.next_run()
        sent = queue_segments(
            self._core,
            self._context.handle,
            socket.handle,
            segments.pins,
            segments.sizes,
            part,
            segments.size,
            segments.flags,
            to,
        )
        if sent < 0:
            return self._refused(sent, socket)
        segments.left = segments.left[len(part) :]
        self._queued(sent, segments.references)
        return True

    @uninterrupted
    def _queue_many(self, stream: object, many: Many) -> bool:
        """Queue those that are left, in one call."""
        self._check()
        socket = self._attach(stream, unconnected=many.has_address)
        if not socket.datagram:
            raise TypeError("only a UDP socket sends datagrams")
        sent, taken = many.datagrams.queue(
            self._core, self._context.handle, socket.handle, many.flags
        )
        if sent < 0:
            return self._refused(sent, socket)
        references = many.references[:taken]
        del many.references[:taken]
        self._queued(sent, references)
        return True
