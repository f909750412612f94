"""Sending over a tx context: what send groups and contexts by hand have in common."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import SupportsIndex, cast

import anyio
import anyio.to_thread
from anyio.streams.memory import MemoryObjectReceiveStream

from .._base.reports import GroupStatistics, Notification, SendFailure
from .._files.maps import PIECE, FileMap, truncated
from .._native.lib import NO_ADDRESS, SEND_UNSTAGED, address_of
from .._ring.contexts import Generation
from .buffers import Buffer, Data
from .files import File, open_part, read_cached, read_part
from .trains import Address, Run, Trains, in_batches, in_runs

__all__ = ["DEFAULT_WINDOW", "Sender"]

DEFAULT_WINDOW = 16 << 20
# Up to this size reading a part of a file costs less than mapping and pinning it.
READ_AT_MOST = 16 << 10


def _in_runs(
    batch: list[Buffer | tuple[Buffer, Address]], packed: dict[Address, object]
) -> list[Run]:
    """Take together what goes to one address, and remember the packed forms of addresses."""
    if not any(issubclass(kind, tuple) for kind in set(map(type, batch))):
        # The most common case has no step for each in Python.
        return [(cast("list[Buffer]", batch), NO_ADDRESS)]
    buffers: list[Buffer] = []
    addresses: list[object] = []
    for item in batch:
        data, address = item if isinstance(item, tuple) else (item, None)
        if address is not None and address not in packed:
            packed[address] = address_of(*address)
        buffers.append(data)
        addresses.append(NO_ADDRESS if address is None else packed[address])
    return in_runs(buffers, addresses)


class _FileLease:
    """Checks the size of a file again when the kernel has finished with a piece of it.

    If a file was cut within a page, the kernel sends zeros for the rest of that page, and no error.
    """

    def __init__(self, sender: Sender, stream: object, mapped: FileMap, end: int) -> None:
        self._sender = sender
        self._stream = stream
        self._map = mapped
        self._end = end

    def give_back(self) -> None:
        if self._map.is_cut(self._end):
            self._sender._fail(self._stream, truncated())


class Sender(Trains):
    """Sends on one tx context of a ring, and waits where the window is full."""

    async def send(self, stream: object, data: Data) -> None:
        """Queue one send; the kernel may read ``data`` from now on, until it is released.

        Waits while the window is full.  Cancellation is noticed there, and whenever a millisecond
        has passed without yielding to other tasks.  If cancelled while it waits, the call has
        queued nothing.

        :param stream: an anyio ``SocketStream`` or ``ConnectedUDPSocket``, a trio ``SocketStream``
            or socket, or a connected ``socket.socket``.
        :param data: a C-contiguous buffer, or a sequence of them to be gathered as one send.
        :raises TypeError: ``data`` is a ``str``, or no buffer; ``stream`` is not a socket.
        :raises BufferError: a buffer is not C-contiguous.
        :raises anyio.ClosedResourceError: the stream is closed, or this object is.
        :raises anyio.BrokenResourceError: an earlier send broke the socket; the cause is its
            ``OSError``.
        :raises OSError: a datagram is too large (``EMSGSIZE``), or a UDP socket has no peer.
        """
        while not self._queue(stream, data):
            await self._wait_window()
        if self._yield_is_due:
            await self._yield()

    def send_nowait(self, stream: object, data: Data) -> None:
        """Queue one send, or raise :exc:`anyio.WouldBlock` if the window is full.

        :param stream: as for :meth:`send`.
        :param data: as for :meth:`send`.
        :raises anyio.WouldBlock: the window is full; nothing was queued.

        Raises what :meth:`send` raises.
        """
        if not self._queue(stream, data):
            raise anyio.WouldBlock

    async def send_to(self, stream: object, data: Data, address: tuple[str, int]) -> None:
        """Queue one datagram to an address, on a UDP socket that need not be connected.

        Waits like :meth:`send`.  If cancelled, the call has queued nothing.

        :param stream: a UDP socket: an anyio ``UDPSocket``, a trio socket or a ``socket.socket``.
        :param data: as for :meth:`send`; it is one datagram.
        :param address: ``(host, port)``, or ``(host, port, flow, scope)`` for IPv6; the host is
            numeric.
        :raises ValueError: the host is not a numeric address.
        :raises TypeError: the stream is not a UDP socket.

        Raises what :meth:`send` raises.
        """
        packed = address_of(*address)
        while not self._queue_to(stream, data, packed):
            await self._wait_window()
        if self._yield_is_due:
            await self._yield()

    async def send_segments(
        self,
        stream: object,
        data: Data,
        segment_size: SupportsIndex,
        address: Address | None = None,
    ) -> None:
        """Queue what lies in a buffer as datagrams of one size, of which the last may be shorter.

        They leave in trains, which the kernel takes as one and cuts (``UDP_SEGMENT``, Linux 4.18):
        64 datagrams and 65,507 bytes at a time.  Where the kernel, the device or the path cannot,
        each is sent by itself: the same datagrams, slower.  Each counts as a send.

        Waits like :meth:`send`; of more than 256 KiB a call that was cancelled may have queued
        the first datagrams.

        :param stream: as of :meth:`send`, of UDP; with an address as of :meth:`send_to`.
        :param data: a C-contiguous buffer, or a sequence of up to 1,024 as if they lay behind one
            another.
        :param segment_size: bytes of a datagram, at most 65,507 over IPv4.  What is larger than
            the path takes whole (1,472 over IPv4 and Ethernet) is cut into fragments, as by
            :meth:`send`.
        :param address: as of :meth:`send_to`; ``None``: the socket is connected.
        :raises ValueError: the segment size is not positive, or the buffer is empty.
        :raises OSError: ``EMSGSIZE``: a segment that is larger than any datagram, too many buffers.
        :raises TypeError: the stream is no UDP socket.

        Raises what :meth:`send` raises.
        """
        self._check()
        to = NO_ADDRESS if address is None else address_of(*address)
        await self._send_segments(stream, data, segment_size, to)

    async def send_many(
        self, stream: object, datagrams: Iterable[Buffer | tuple[Buffer, Address]]
    ) -> None:
        """Queue many datagrams, in one call of the kernel's for many where that can be.

        Neighbours of one size and one address leave in trains, see :meth:`send_segments`.  Each
        counts as a send.  Waits like :meth:`send`; a call that was cancelled, or that raises for
        one of them, has queued those before it.

        :param stream: as of :meth:`send`, of UDP; with addresses as of :meth:`send_to`.
        :param datagrams: a buffer for each, or ``(buffer, address)``.
        :raises OSError: ``EMSGSIZE``: one is larger than any datagram.
        :raises TypeError: the stream is no UDP socket.

        Raises what :meth:`send` raises.
        """
        self._check()
        packed: dict[Address, object] = {}
        in_runs = partial(_in_runs, packed=packed)
        await self._send_many(stream, in_batches(datagrams), in_runs)

    async def send_file(
        self, stream: object, file: File, *, offset: int = 0, count: int | None = None
    ) -> int:
        """Queue a part of a file, which is sent from the page cache without a Python buffer.

        The file is mapped, and the kernel reads the map.  A worker thread reads from the disk what
        is not in memory.  The ring keeps the map for ten seconds after its last use, in case that
        the file is sent again.
        Waits like :meth:`send`.  If cancelled, the call may have queued some of it.

        :param stream: as for :meth:`send`.
        :param file: a path, a binary file object (its position is neither used nor moved) or a
            descriptor, which may be closed when this returns.
        :param offset: where to begin, in bytes.
        :param count: how many bytes; ``None`` for all up to the present end of the file.
        :return: how many bytes were queued.
        :raises ValueError: the offset or count is negative, or the file is too short for them.
        :raises OSError: the file cannot be mapped, or was truncated meanwhile.  If the kernel had
            begun to send the missing part, the stream is broken, and this is a failed send.

        Raises what :meth:`send` raises.
        """
        self._check()
        with open_part(file, offset, count) as part:
            at, end = offset, offset + part.count
            if 0 < part.count <= READ_AT_MOST:
                cached = read_cached(part.fd, offset, part.count)
                if cached is None:
                    data = await anyio.to_thread.run_sync(read_part, part.fd, offset, part.count)
                else:
                    data = bytes(cached)
                await self.send(stream, data)
                return part.count
            if part.count:
                mapped = self._ring._maps.find(part.fd, part.status, own=part.own)
            while at < end:
                size = min(PIECE - at % PIECE, end - at)
                await mapped.read(at, size)
                # The memory is not the caller's, so cancelling need not wait for it.
                lease = _FileLease(self, stream, mapped, at + size)
                while not self._queue_pinned(
                    stream, mapped.pointer + at, size, SEND_UNSTAGED, mapped.pointer, lease
                ):
                    await self._wait_window()
                at += size
                if self._yield_is_due and at < end:
                    await self._yield()
        if self._yield_is_due:
            await self._yield()
        return part.count

    async def broadcast(self, streams: Iterable[object], data: Buffer) -> None:
        """Queue one buffer on many sockets in one batch; the buffer is held once.

        The window takes a broadcast as a whole, and counts its buffer once.  A closed or broken
        stream is reported like a failed send; the others get their bytes.  If cancelled while it
        waits for the window, the call has queued nothing.

        :param streams: as for :meth:`send`; each gets the whole buffer.
        :param data: a C-contiguous buffer.

        For wrong input it raises what :meth:`send` raises, and queues nothing.
        """
        self._check()
        pinned = self._pin(data)
        targets = list(streams)
        while True:
            with self._ring._sockets.none_given_up():
                found = await self._attach_all(targets)
                if self._queue_broadcast(found, *pinned):
                    break
            await self._wait_window()
        if self._yield_is_due:
            await self._yield()

    def flush(self) -> Generation:
        """End the open generation and submit what is queued, as much of it as one turn may.

        The rest follows in the event loop's next turns.  If nothing was sent since the last flush,
        this ends an empty generation, which is released at once.

        :return: the generation, which can be waited for.
        :raises anyio.ClosedResourceError: the group is not open.
        """
        self._check()
        generation = self._context.flush(even_empty=True)
        assert generation is not None
        self._ring._reaper.turn()
        return generation

    @property
    def notifications(self) -> MemoryObjectReceiveStream[Notification]:
        """A channel with one :class:`Notification` for each generation, in order.

        It begins with the generations released after the first use of this attribute.  It ends when
        the context is closed and everything is released.  Close it like any anyio stream.
        """
        return self._context.notifications

    @property
    def failures(self) -> list[SendFailure]:
        """One entry for each socket on which a send failed so far."""
        return list(self._failures.values())

    def take_failures(self) -> list[SendFailure]:
        """Return :attr:`failures` and forget them; a long-lived group has to do this.

        Failures that were taken count as raised.
        """
        taken = self.failures
        self._failures.clear()
        self._raised.clear()
        return taken

    def statistics(self) -> GroupStatistics:
        """Return the counters of these sends; only while sends are accepted."""
        self._check()
        counters = self._ring._native.context_statistics(self._context.handle)
        return GroupStatistics(
            sends=counters.sends,
            bytes_sent=counters.bytes_sent,
            zero_copied=counters.zero_copied,
            copied=counters.copied,
            staged=counters.staged,
            failed=counters.failed,
            unreleased_sends=counters.unreleased_sends,
            unreleased_bytes=counters.unreleased_bytes,
            generations_open=counters.generations_open,
            generations_released=counters.generations_released,
        )

    # --- waiting ---

    async def _yield(self) -> None:
        self._yield_is_due = False
        await self._ring.let_others_run()
