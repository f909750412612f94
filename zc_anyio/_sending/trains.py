"""Queueing datagrams in trains: many that the kernel takes as one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any, SupportsIndex, TypeAlias, TypeVar

from .._base.loops import uninterrupted
from .._native.lib import NO_ADDRESS, Datagrams
from .._ring.sockets import AttachedSocket
from .buffers import Buffer, Data
from .queueing import Queueing

__all__ = ["Address", "Many", "Run", "Segments", "Trains", "in_batches", "in_runs"]

Address = tuple[str, int]
T = TypeVar("T")
# What one call of the native part queues at most, so that others of the event loop get their turn.
RUN_BYTES = 256 << 10
RUN_DATAGRAMS = 512
SEGMENT_BOUND = 1 << 16


# Buffers that go to one address as a datagram each, and the packed address.
Run: TypeAlias = tuple[Sequence[Buffer], Any]


def in_batches(datagrams: Iterable[T]) -> Iterator[list[T]]:
    """Take as many at a time as one call queues; what came before an exception is taken too."""
    left = iter(datagrams)
    while True:
        batch: list[T] = []
        try:
            batch.extend(islice(left, RUN_DATAGRAMS))
        except BaseException:
            if batch:
                yield batch
            raise
        if not batch:
            return
        yield batch


def in_runs(buffers: Iterable[Buffer], addresses: Iterable[Any]) -> list[Run]:
    """Take together neighbours that go to one address."""
    return [
        (list(map(operator.itemgetter(0), run)), address)
        for address, run in groupby(
            zip(buffers, addresses, strict=True), key=operator.itemgetter(1)
        )
    ]


class Many:
    """Buffers that are pinned to leave as a datagram each, to one address.

    :param pinned: the buffers, their sizes, flags of their sends, and what keeps them alive.
    :ivar left: which of them are not queued.
    """

    def __init__(
        self, pinned: tuple[list[Any], list[int], int, list[object]], address: Any
    ) -> None:
        pins, sizes, self.flags, self.references = pinned
        self.datagrams = Datagrams(pins, sizes, address)
        self.has_address = address is not NO_ADDRESS
        self.left = range(len(sizes))

    def unpin(self) -> None:
        """Pin no more than what is queued: the traceback of a cancellation keeps this object."""
        self.references = []


class Segments(Many):
    """Buffers that are pinned to leave as datagrams of one size.

    :ivar left: which of their bytes are not queued.
    """

    def __init__(
        self,
        pinned: tuple[list[Any], list[int], int, list[object]],
        segment_size: SupportsIndex,
        address: Any,
    ) -> None:
        # No datagram is as large as the bound; the native part says so.
        self.size = min(operator.index(segment_size), SEGMENT_BOUND)
        if self.size <= 0:
            raise ValueError("segment_size must be a positive number of bytes")
        super().__init__(pinned, address)
        self.left = range(sum(pinned[1]))
        if not self.left:
            raise ValueError("an empty buffer has no segments")

    def next_run(self) -> range:
        """Return which bytes to queue next: whole datagrams."""
        return self.left[: self.size * max(1, RUN_BYTES // self.size)]


class Trains(Queueing):
    """Queues datagrams on one tx context of a ring, and waits where the window is full."""

    async def _send_segments(
        self, stream: object, data: Data, segment_size: SupportsIndex, address: Any
    ) -> None:
        """Queue what lies in a buffer as datagrams of one size.

        :param address: packed, or ``NO_ADDRESS``.
        """
        parts: Sequence[Any] = data if isinstance(data, list | tuple) else [data]
        segments = Segments(self._pin_all(parts), segment_size, address)
        await self._send_pinned(stream, [segments])

    async def _send_many(
        self, stream: object, batches: Iterable[list[T]], in_runs: Callable[[list[T]], list[Run]]
    ) -> None:
        """Queue datagrams, as many at a time as one batch has.

        :param in_runs: takes together those of a batch that go to one address.
        """
        for batch in batches:
            try:
                many = [
                    Many(self._pin_all(buffers), address) for buffers, address in in_runs(batch)
                ]
            except Exception:
                if len(batch) == 1:
                    raise
                # One of them is wrong.  Those before it are queued, and then its turn has come.
                for item in batch:
                    await self._send_many(stream, [[item]], in_runs)
                continue
            await self._send_pinned(stream, many)

    async def _send_pinned(self, stream: object, pinned: Sequence[Many]) -> None:
        try:
            for one in pinned:
                while one.left:
                    if not self._queue_next(stream, one):
                        await self._wait_window()
                    elif self._ring.yield_is_due():
                        self._yield_is_due = False
                        await self._ring.let_others_run()
        finally:
            for one in pinned:
                one.unpin()

    @uninterrupted
    def _queue_next(self, stream: object, pinned: Many) -> bool:
        """Queue as much as one call does; ``False`` if the window is full."""
        self._check()
        socket = self._attach(stream, unconnected=pinned.has_address)
        if not socket.datagram:
            raise TypeError("only a UDP socket sends datagrams")
        if isinstance(pinned, Segments):
            return self._queue_segments(socket, pinned)
        return self._queue_many(socket, pinned)

    @uninterrupted
    def _queue_many(self, socket: AttachedSocket, many: Many) -> bool:
        sent, taken = many.datagrams.queue_many(
            self._core, self._context.handle, socket.handle, many.left, many.flags
        )
        if sent < 0:
            return self._refused(sent, socket)
        queued = many.left[:taken]
        many.left = many.left[taken:]
        self._queued(sent, many.references[queued.start : queued.stop])
        return True

    @uninterrupted
    def _queue_segments(self, socket: AttachedSocket, segments: Segments) -> bool:
        part = segments.next_run()
        sent = segments.datagrams.queue_segments(
            self._core, self._context.handle, socket.handle, part, segments.size, segments.flags
        )
        if sent < 0:
            return self._refused(sent, socket)
        segments.left = segments.left[len(part) :]
        self._queued(sent, segments.references)
        return True
