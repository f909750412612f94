"""Queueing sends on a tx context; buffers are pinned until their generation is released."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any, cast

import anyio
from anyio import Event

from .._base.errors import os_error
from .._base.loops import uninterrupted
from .._base.reports import SendFailure
from .._native.lib import (
    SEND_UNSTAGED,
    SENT_COPIED,
    SENT_FLAGS,
    SENT_KICK,
    SENT_SHIFT,
    SENT_TURN,
    broadcast,
    queue,
    queue_to,
    queue_vector,
)
from .._ring.contexts import Context, Lease
from .._ring.ring import Ring, ZeroCopy
from .._ring.sockets import AttachedSocket, KnownSocket
from .buffers import Buffer, Data, exporter_of, pin

__all__ = ["Queueing"]

# For a pool's buffer.  It does not count as changeable: the pool gives it to nobody before its
# release.  It is not staged: that would give up its registration.
POOL_FLAGS = SEND_UNSTAGED
# How many targets of a broadcast are attached between two looks at the clock.
LOOK_TARGETS = 64


class Queueing:
    """Queues sends on one tx context of a ring; its methods return ``False`` for a full window."""

    _ring: Ring
    _context: Context

    def __init__(self) -> None:
        self._failures: dict[object, SendFailure] = {}
        # Sockets whose failure a call has raised, by the same identity as the failures.
        self._raised: set[object] = set()
        self._streams: dict[object, Any] = {}
        self._yield_is_due = False

    def _start(self, ring: Ring, *, tag: int, window: int, zero_copy: ZeroCopy | None) -> None:
        self._ring = ring
        self._core = ring._native.core
        self._context = ring.new_context(
            tag=tag, window=window, zero_copy=zero_copy, on_failed=self._on_failed
        )
        self._references = self._context.references
        self._leases = self._context.leases
        self._streams = ring._sockets.by_stream
        self._views = ring._leases_by_view

    def _check(self) -> None:
        """Raise unless sends are accepted; afterwards there is a context."""
        raise NotImplementedError

    def _on_failed(self, ident: int, error: int) -> None:
        self._fail(self._ring._sockets.name(ident), os_error(error))

    def _fail(self, stream: object, error: OSError) -> None:
        identity = self._ring._sockets.identity(stream)
        self._failures.setdefault(identity, SendFailure(stream, error))

    def _mark_raised(self, stream: object) -> None:
        self._raised.add(self._ring._sockets.identity(stream))

    def _attach(self, stream: object, *, unconnected: bool = False) -> AttachedSocket:
        try:
            return self._ring._sockets.attach(stream, unconnected=unconnected)
        except anyio.BrokenResourceError:
            self._mark_raised(stream)
            raise

    # --- queueing ---

    @uninterrupted
    def _queue(self, stream: object, data: Data, flags: int = 0) -> bool:
        """Queue the most common sends on a short path, and all others by :meth:`_queue_any`."""
        known = self._streams.get(stream)
        if known is None:
            return self._queue_any(stream, data, flags)
        socket, probe, expected, _ = known
        if probe() != expected or not socket.connected:
            return self._queue_any(stream, data, flags)
        # The native part refuses wrong threads, forked children and closed contexts.
        if type(data) is bytes:
            sent = queue(
                self._core, self._context.open_handle, socket.handle, data, len(data), flags
            )
            if sent >= 0:
                # A staged send that needs no turn needs nothing more.
                if sent & SENT_FLAGS != SENT_COPIED:
                    self._queued(sent, data)
                return True
        elif (
            type(data) is memoryview
            and (lease := self._views.get(id(data))) is not None
            and lease.view() is data
        ):
            sent = queue(
                self._core,
                self._context.open_handle,
                socket.handle,
                lease.pinned,
                lease.size,
                flags | POOL_FLAGS,
            )
            if sent >= 0:
                lease.uses += 1
                lease.kept = data
                try:
                    self._leases[sent >> SENT_SHIFT].append(lease)
                except KeyError:
                    self._leases[sent >> SENT_SHIFT] = [lease]
                if sent & SENT_FLAGS:
                    self._push(sent)
                return True
        return self._queue_any(stream, data, flags)

    @uninterrupted
    def _queue_any(self, stream: object, data: Data, flags: int) -> bool:
        self._check()
        if type(data) is bytes:
            return self._queue_pinned(stream, data, len(data), flags, data)
        if not isinstance(data, list | tuple):
            pinned, size, pin_flags, reference = self._pin(cast("Buffer", data))
            return self._queue_pinned(stream, pinned, size, flags | pin_flags, reference)
        pins, sizes, pin_flags, references = self._pin_all(data)
        socket = self._attach(stream)
        if not socket.datagram and not any(sizes):
            return True
        sent = queue_vector(
            self._core, self._context.handle, socket.handle, pins, sizes, flags | pin_flags
        )
        if sent < 0:
            return self._refused(sent, socket)
        self._queued(sent, references)
        return True

    @uninterrupted
    def _queue_pinned(
        self,
        stream: object,
        pinned: Any,
        size: int,
        flags: int,
        reference: object,
        lease: Lease | None = None,
    ) -> bool:
        socket = self._attach(stream)
        if not size and not socket.datagram:
            return True
        sent = queue(self._core, self._context.handle, socket.handle, pinned, size, flags)
        if sent < 0:
            return self._refused(sent, socket)
        if lease is not None:
            # Before the turn that may come next: it may release the generation.
            self._context.leases.setdefault(sent >> SENT_SHIFT, []).append(lease)
        self._queued(sent, reference)
        return True

    def _pin(self, data: Buffer) -> tuple[Any, int, int, object]:
        if type(data) is bytes:
            return data, len(data), 0, data
        pinned, size, flags, reference = pin(data)
        if self._ring._pools and self._ring.find_lease(pinned, exporter_of(data)) is not None:
            flags = POOL_FLAGS
        return pinned, size, flags, reference

    def _pin_all(self, parts: Sequence[Buffer]) -> tuple[list[Any], list[int], int, list[object]]:
        if set(map(type, parts)) == {bytes}:
            # The most common case has no step for each in Python.
            all_bytes = list(cast("Sequence[bytes]", parts))
            return all_bytes, list(map(len, all_bytes)), 0, cast("list[object]", all_bytes)
        pins: list[Any] = []
        sizes: list[int] = []
        flags = 0
        references: list[object] = []
        for part in parts:
            pinned, size, part_flags, reference = self._pin(part)
            pins.append(pinned)
            sizes.append(size)
            flags |= part_flags
            references.append(reference)
        return pins, sizes, flags, references

    @uninterrupted
    def _queue_to(self, stream: object, data: Data, address: bytes) -> bool:
        self._check()
        parts = data if isinstance(data, list | tuple) else [cast("Buffer", data)]
        pins, sizes, flags, references = self._pin_all(parts)
        socket = self._attach(stream, unconnected=True)
        if not socket.datagram:
            raise TypeError("only a UDP socket can send to an address")
        sent = queue_to(
            self._core, self._context.handle, socket.handle, pins, sizes, flags, address
        )
        if sent < 0:
            return self._refused(sent, socket)
        self._queued(sent, references)
        return True

    async def _attach_all(self, targets: list[object]) -> list[tuple[object, KnownSocket]]:
        """Attach the targets that are not attached yet, and let other tasks run meanwhile.

        Each is returned with its probe, since it may be closed meanwhile.  Closed and broken ones
        are reported as failed and left out.
        """
        found: list[tuple[object, KnownSocket]] = []
        for number, stream in enumerate(targets, 1):
            known = self._streams.get(stream)
            if known is None or not known[0].connected:
                try:
                    self._ring._sockets.attach(stream)
                except anyio.BrokenResourceError as exc:
                    cause = exc.__cause__
                    self._fail(
                        stream, cause if isinstance(cause, OSError) else os_error(errno.EPIPE)
                    )
                    continue
                except anyio.ClosedResourceError:
                    self._fail_closed(stream)
                    continue
                known = self._streams[stream]
            found.append((stream, known))
            if number % LOOK_TARGETS == 0 and self._ring.yield_is_due():
                await self._ring.let_others_run()
        return found

    def _fail_closed(self, stream: object) -> None:
        self._fail(stream, os_error(errno.EBADF, "the stream is closed"))

    @uninterrupted
    def _queue_broadcast(
        self,
        targets: list[tuple[object, KnownSocket]],
        pinned: Any,
        size: int,
        flags: int,
        reference: object,
    ) -> bool:
        """Queue on all targets in one step, so that all peers get broadcasts in the same order."""
        self._check()
        sockets: list[AttachedSocket] = []
        for stream, (socket, probe, expected, _) in targets:
            if probe() == expected:
                sockets.append(socket)
            else:
                self._fail_closed(stream)
        if not sockets or not size:
            return True
        sent, errors = broadcast(
            self._core,
            self._context.handle,
            [socket.handle for socket in sockets],
            pinned,
            size,
            flags,
        )
        if sent == -errno.EAGAIN:
            return False
        for socket, number in zip(sockets, errors, strict=True):
            if number:
                reason = self._ring._native.socket_error(socket.handle) or number
                self._fail(socket.stream, os_error(reason))
        if sent >= 0:
            self._queued(sent, reference)
        return True

    def _queued(self, sent: int, reference: object) -> None:
        """Keep the reference of a queued send, and see that the send leaves."""
        if not sent & SENT_COPIED:
            generation = sent >> SENT_SHIFT
            try:
                self._references[generation].append(reference)
            except KeyError:
                self._references[generation] = [reference]
            if self._ring._pools and type(reference) is not bytes:
                self._lease(generation, reference)
        self._push(sent)

    def _push(self, sent: int) -> None:
        """See that a queued send leaves."""
        if sent & SENT_TURN:
            self._ring._reaper.turn()
            self._yield_is_due = self._ring.yield_is_due()
        elif sent & SENT_KICK:
            self._ring._reaper.submit_soon()
            self._yield_is_due = self._ring.yield_is_due()

    def _lease(self, generation: int, reference: Any) -> None:
        """Give back the pool buffers of a queued send when the generation is released."""
        leases = self._context.leases.setdefault(generation, [])
        wanted = False
        for pinned in reference if isinstance(reference, list) else [reference]:
            if (
                type(pinned) is not bytes
                and (lease := self._ring.find_lease(pinned, None)) is not None
            ):
                lease.uses += 1
                leases.append(lease)
                wanted = wanted or bool(lease.pool.waiters)
        if wanted:
            self._context.flush_leases()

    def _refused(self, result: int, socket: AttachedSocket) -> bool:
        """Raise the exception for a refused send; return ``False`` for a full window."""
        if result == -errno.EAGAIN:
            return False
        if result == -errno.EPIPE:
            self._raised.add(socket.inode)
            raise self._ring._sockets.broken(socket)
        raise os_error(-result)

    # --- waiting ---

    async def _wait_window(self) -> None:
        opened = self._context.window_opened
        if opened is None:
            opened = self._context.window_opened = Event()
        # What is queued has to leave before anything can be released.
        self._ring._reaper.turn()
        await opened.wait()
