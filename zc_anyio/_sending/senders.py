"""Sending over a tx context: what send groups and contexts by hand have in common."""

from __future__ import annotations

from collections.abc import Iterable

import anyio
import anyio.to_thread
from anyio.streams.memory import MemoryObjectReceiveStream

from .._base.reports import GroupStatistics, Notification, SendFailure
from .._native.lib import SEND_UNSTAGED, address_of
from .._ring.contexts import Generation
from .buffers import Buffer, Data
from .files import PIECE, File, Piece, map_piece, open_part, truncated
from .queueing import Queueing

__all__ = ["DEFAULT_WINDOW", "Sender"]

DEFAULT_WINDOW = 16 << 20


class _FileLease:
    """Looks at a file again when the kernel has done with a piece of it.

    Past the end of a file that was cut within a page the kernel sends zeros, and no error.
    """

    def __init__(self, sender: Sender, stream: object, piece: Piece) -> None:
        self._sender = sender
        self._stream = stream
        self._piece = piece

    def give_back(self) -> None:
        if self._piece.is_cut():
            self._sender._fail(self._stream, truncated())


class Sender(Queueing):
    """Sends on one tx context of a ring, and waits where the window is full."""

    async def send(self, stream: object, data: Data) -> None:
        """Queue one send; the kernel may read ``data`` from now on, until it is released.

        Waits while the window is full.  Cancellation is noticed there, and whenever a millisecond
        has passed without yielding to other tasks; a call that was cancelled while it waited has
        queued nothing.

        :param stream: an anyio ``SocketStream`` or ``ConnectedUDPSocket``, a trio ``SocketStream``
            or socket, or a connected ``socket.socket``.
        :param data: a C-contiguous buffer, or a sequence of them to be gathered as one send.
        :raises TypeError: ``data`` is a ``str``, or has no buffer; ``stream`` is no socket.
        :raises BufferError: a buffer is not C-contiguous.
        :raises anyio.ClosedResourceError: the stream is closed, or this object is.
        :raises anyio.BrokenResourceError: an earlier send broke the socket; from its ``OSError``.
        :raises OSError: a datagram that is too large (``EMSGSIZE``), a UDP socket without a peer.
        """
        while not self._queue(stream, data):
            await self._wait_window()
        if self._yield_is_due:
            await self._yield()

    def send_nowait(self, stream: object, data: Data) -> None:
        """Queue one send, or raise :exc:`anyio.WouldBlock` if the window is full.

        :param stream: as of :meth:`send`.
        :param data: as of :meth:`send`.
        :raises anyio.WouldBlock: the window is full; nothing was queued.

        Raises what :meth:`send` raises.
        """
        if not self._queue(stream, data):
            raise anyio.WouldBlock

    async def send_to(self, stream: object, data: Data, address: tuple[str, int]) -> None:
        """Queue one datagram to an address, on a UDP socket that need not be connected.

        Waits like :meth:`send`; a call that was cancelled has queued nothing.

        :param stream: an anyio ``UDPSocket``, a trio socket or a ``socket.socket``, of UDP.
        :param data: as of :meth:`send`; one datagram.
        :param address: ``(host, port)``, or IPv6's ``(host, port, flow, scope)``; the host numeric.
        :raises ValueError: the host is no numeric address.
        :raises TypeError: the stream is no UDP socket.

        Raises what :meth:`send` raises.
        """
        packed = address_of(*address)
        while not self._queue_to(stream, data, packed):
            await self._wait_window()
        if self._yield_is_due:
            await self._yield()

    async def send_file(
        self, stream: object, file: File, *, offset: int = 0, count: int | None = None
    ) -> int:
        """Queue a part of a file, page by page from the page cache, through no Python buffer.

        The file is mapped, and the kernel reads the map.  Reading from the disk happens in a
        worker thread.  Waits like :meth:`send`; a call that was cancelled may have queued a part.

        :param stream: as of :meth:`send`.
        :param file: a path, a binary file object (its position is neither used nor moved) or a
            descriptor, which may be closed when this returns.
        :param offset: where to begin, in bytes.
        :param count: bytes; ``None`` is up to the end that the file has now.
        :return: how many bytes were queued.
        :raises ValueError: a negative offset or count, or the file is shorter than asked for.
        :raises OSError: the file cannot be mapped; or it was truncated meanwhile, which breaks the
            stream if the kernel had begun to send that part (then reported as a failed send).

        Raises what :meth:`send` raises.
        """
        self._check()
        with open_part(file, offset, count) as (fd, total):
            for done in range(0, total, PIECE):
                size = min(PIECE, total - done)
                piece = await anyio.to_thread.run_sync(map_piece, fd, offset + done, size)
                # Not the caller's memory, so nothing that cancelling would have to wait for.
                lease = _FileLease(self, stream, piece)
                while not self._queue_pinned(
                    stream, piece.pointer, size, SEND_UNSTAGED, piece.reference, lease
                ):
                    await self._wait_window()
        await self._yield()
        return total

    async def broadcast(self, streams: Iterable[object], data: Buffer) -> None:
        """Queue one buffer on many sockets, in one batch and held once.

        The window takes a broadcast as a whole, and counts its buffer once.  A stream that is
        closed or broken does not keep the others from their bytes: it is reported like a failed
        send.  Cancelled while it waits for the window, the call has queued nothing.

        :param streams: as of :meth:`send`; each gets the whole buffer.
        :param data: a C-contiguous buffer.

        Raises what :meth:`send` raises for wrong input, then with nothing queued.
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
        """End the open generation and push out what is queued, as much of it as one turn may.

        The rest follows when the event loop comes round.
        With nothing sent since the last flush this ends an empty generation, which is released at
        once.

        :return: the generation, to be waited for or not.
        :raises anyio.ClosedResourceError: the group is not open.
        """
        self._check()
        generation = self._context.flush(even_empty=True)
        assert generation is not None
        self._ring._reaper.turn()
        return generation

    @property
    def notifications(self) -> MemoryObjectReceiveStream[Notification]:
        """A channel of :class:`Notification`, one a generation, in order.

        It begins with the generations released after the first use of this attribute, and ends when
        the context is closed and all is released.  Close it, as any anyio stream.
        """
        return self._context.notifications

    @property
    def failures(self) -> list[SendFailure]:
        """One entry for each socket on which a send failed so far."""
        return list(self._failures.values())

    def take_failures(self) -> list[SendFailure]:
        """Return :attr:`failures` and forget them, as a long-lived group has to do.

        A failure that was taken counts as raised.
        """
        taken = self.failures
        self._failures.clear()
        self._raised.clear()
        return taken

    def statistics(self) -> GroupStatistics:
        """Return the counters of these sends, for as long as sends are taken."""
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
