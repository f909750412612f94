"""anyio's socket streams that send through a ring."""

from __future__ import annotations

import array
import os
import select
import socket
import warnings
from collections.abc import Collection, Sequence
from io import IOBase
from typing import Any, NoReturn, Self, cast

import anyio
from anyio import wait_writable
from anyio.abc import SocketStream, UNIXSocketStream
from anyio.lowlevel import checkpoint

from ._base.halves import Half
from ._base.takeover import take_socket
from ._outputs import Output
from ._receiving.brief_waits import BriefWaits
from ._receiving.receiver import DirectReceiver, ReceivedBefore, Receiver
from ._receiving.through_ring import make_receiver
from ._ring.opening import require_ring
from ._ring.ring import Ring
from ._sending.buffers import Buffer

__all__ = ["ZeroCopySocketStream", "ZeroCopyUNIXSocketStream"]


class ZeroCopySocketStream(SocketStream):
    """An anyio socket stream that sends through a ring.

    Made by :func:`connect_tcp`, :func:`wrap_stream` and listeners.  Send groups take it like any
    other stream, and what they send keeps its order with :meth:`send`.  It belongs to the event
    loop and the thread of its ring.  When the ring is closed, sending raises ``RuntimeError``;
    receiving and closing still work.
    """

    def __init__(self, ring: Ring, sock: socket.socket, received: bytes = b"") -> None:
        # Set first, for __del__: the socket belongs to the stream only once this has succeeded.
        self._closed = True
        self._ring = ring
        self._socket = sock
        self._waits = BriefWaits()
        self._receiver: Receiver = self._make_receiver(ring, sock, self._waits)
        if received:
            self._receiver = ReceivedBefore(received, self._receiver)
        self._output = Output(ring, self, sock)
        self._sending = Half("writing to")
        self._receiving = Half("reading from")
        self._checkpoint_before = ring._loop_calls.checkpoint_before
        self._checkpoint_after = ring._loop_calls.checkpoint_after
        self._eof_sent = False
        self._closed = False

    @staticmethod
    def _make_receiver(ring: Ring, sock: socket.socket, waits: BriefWaits) -> Receiver:
        return make_receiver(ring, sock, waits)

    @classmethod
    async def from_socket(
        cls, sock_or_fd: socket.socket | int, *, ring: Ring | None = None
    ) -> Self:
        """Make a stream from a connected socket, which belongs to the stream from now on.

        :param sock_or_fd: a socket object or a file descriptor.
        :param ring: the ambient ring by default.
        :raises ValueError: the socket is not connected, or of another kind.
        :raises RuntimeError: no ring is open.
        """
        ring = require_ring(ring)
        # This does anyio's own checks; its stream gives the socket up at once.
        made = await super().from_socket(sock_or_fd)
        sock, received = await take_socket(made)
        return cls(ring, sock, b"".join(received))

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"fd={self._socket.fileno()}"
        return f"<{type(self).__name__} {state}>"

    @property
    def _raw_socket(self) -> socket.socket:
        return self._socket

    async def send(self, item: Buffer) -> None:
        """Send bytes; returns when they are accepted: sent, or queued within a window of 1 MiB.

        ``bytes`` that are queued stay referenced until the kernel has let go of them.  A buffer
        that can change is copied up to 64 KiB (16 times the ring's threshold, if that is less).
        With a larger one the call waits until the kernel has released it.  A pool's buffer goes
        back to its pool by itself.

        If cancelled, the call has queued nothing, except for a large buffer that can change: the
        part that has not left is taken back, and if some of it has left, the stream is broken for
        sending.

        :param item: any C-contiguous buffer.
        :raises TypeError: it is not a buffer.
        :raises anyio.ClosedResourceError: the stream is closed, or was while this waited, or
            :meth:`send_eof` was called.
        :raises anyio.BrokenResourceError: the connection failed, now or by an earlier send; from
            its ``OSError``.
        :raises anyio.BusyResourceError: another task is sending.
        """
        sending = self._sending
        if sending.taken:
            raise sending.busy()
        sending.taken = True
        try:
            await self._checkpoint_before()
            if self._eof_sent:
                raise anyio.ClosedResourceError("the end of the stream was sent")
            output = self._output
            if type(item) is not bytes and not self._closed:
                offered = output.unchangeable(item)
                if offered is None:
                    await output.send_held(self, item)
                    return
                item = cast("bytes", offered)
            while not output.offer(item):
                await output.wait_window()
            # What is received next may be the answer.
            self._waits.sent = True
            await self._checkpoint_after()
        finally:
            sending.taken = False

    def send_nowait(self, parts: Sequence[bytes]) -> None:
        """Send ``bytes`` as :meth:`send` does, without waiting; several are gathered, not joined.

        :param parts: what to send, in order.
        :raises anyio.WouldBlock: they do not fit into the window.
        :raises TypeError: one of them is not ``bytes``.

        Raises what :meth:`send` raises.
        """
        if not {bytes}.issuperset(map(type, parts)):
            raise TypeError("parts must be bytes")
        if self._sending.taken:
            raise self._sending.busy()
        if self._eof_sent:
            raise anyio.ClosedResourceError("the end of the stream was sent")
        taken = (
            self._output.offer(parts[0])
            if len(parts) == 1
            else self._output.offer_parts(self, parts)
        )
        if not taken:
            raise anyio.WouldBlock
        self._waits.sent = True

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Return what has arrived, between one and ``max_bytes`` bytes.

        If cancelled, the call has taken nothing.

        :param max_bytes: bytes at most.
        :raises anyio.EndOfStream: the peer has ended the stream.
        :raises anyio.ClosedResourceError: the stream is closed, or was while this waited.
        :raises anyio.BrokenResourceError: the connection failed; its cause is the ``OSError``.
        :raises anyio.BusyResourceError: another task is receiving.
        """
        if max_bytes < 1:
            raise ValueError("max_bytes must be a positive integer")
        receiving = self._receiving
        if receiving.taken:
            raise receiving.busy()
        receiving.taken = True
        try:
            data = await self._receiver.receive(max_bytes)
        except OSError as exc:
            raise self._broken() from exc
        finally:
            receiving.taken = False
        if not data:
            self._raise_end()
        return data

    async def receive_into(self, buffer: Buffer) -> int:
        """Write what has arrived into a writable buffer; return how many bytes.

        If cancelled, the call has taken and written nothing.

        :param buffer: C-contiguous, of at least one byte.
        :return: how many bytes were written, at the beginning of the buffer.
        :raises ValueError: the buffer is empty.

        Raises what :meth:`receive` raises.
        """
        with memoryview(buffer) as view:
            if not view.nbytes:
                raise ValueError("the buffer is empty")
        with self._receiving:
            try:
                size = await self._receiver.receive_into(buffer)
            except OSError as exc:
                raise self._broken() from exc
        if not size:
            self._raise_end()
        return size

    def is_readable(self) -> bool:
        """Whether :meth:`receive` would return or raise at once: with bytes, the end or a failure.

        Polling the descriptor does not tell, since the ring may have taken what arrived.
        """
        if self._closed or self._receiver.has_taken():
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        # Notifications of MSG_ZEROCOPY are reported as an error event alone.
        return any(events & select.POLLIN for _, events in poll.poll(0))

    async def send_eof(self) -> None:
        """Tell the peer that nothing more comes, after all that was queued, by groups as well.

        Waits until the kernel has taken what was queued.  Calling it again does nothing.  If
        cancelled, the call has not sent the end.

        :raises anyio.ClosedResourceError: the stream is closed.
        :raises anyio.BrokenResourceError: the connection failed; its cause is the ``OSError``.
        :raises anyio.BusyResourceError: another task is sending.
        """
        with self._sending:
            await checkpoint()
            self._output._check()
            if self._eof_sent:
                return
            await self._output.wait_sent()
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError as exc:
                raise self._broken() from exc
            self._eof_sent = True

    async def wait_send_might_not_block(self) -> None:
        """Wait until :meth:`send` would probably not wait, or would fail.

        Cancelling the wait changes nothing else.

        :raises anyio.ClosedResourceError: the stream is closed, or was while this waited.
        :raises anyio.BusyResourceError: another task is sending.
        """
        with self._sending:
            await checkpoint()
            self._output._check()
            await self._output.wait_room()

    async def aclose(self) -> None:
        """Close the stream; tasks that wait in it get :exc:`anyio.ClosedResourceError`.

        What was accepted still goes out, and then the peer sees the end of the stream.  The call
        does not wait for that, and cancellation does not prevent it.  A TCP peer that takes none of
        it for a minute loses the connection.  If bytes from the peer were not received, the
        connection is reset, as when any socket is closed: otherwise a peer that waits for them to
        be received might never take what is sent to it.  Calling it again does nothing.
        """
        if not self._closed:
            self._closed = True
            unread = self._receiver.close() or _has_unread(self._socket)
            self._output.close(self, reset=unread)
            self._socket.close()
        await checkpoint()

    def _raise_end(self) -> NoReturn:
        # The kernel reports a reset once.  If a send got the report, receiving then meets what
        # looks like the peer's end, and bytes may be missing.
        if (error := self._output.lost_connection()) is not None:
            raise anyio.BrokenResourceError from error
        raise anyio.EndOfStream

    def _broken(self) -> Exception:
        return anyio.ClosedResourceError() if self._closed else anyio.BrokenResourceError()

    def _adopt(self, sock: socket.socket) -> None:
        """Go on with another descriptor of the same socket, and close the old one.

        Nobody may be receiving.
        """
        self._receiver.close()
        self._socket.close()
        self._socket = sock
        self._output.adopt(self, sock)
        self._receiver = self._make_receiver(self._ring, sock, self._waits)

    def __del__(self) -> None:
        if self._closed:
            return
        try:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=1)
        finally:
            self._closed = True
            self._output.drop(self._receiver)


def _has_unread(sock: socket.socket) -> bool:
    try:
        # An SSLSocket would not look at what is not decrypted.
        return socket.socket.recv(sock, 1, socket.MSG_PEEK) != b""
    except OSError:
        return False


class ZeroCopyUNIXSocketStream(ZeroCopySocketStream, UNIXSocketStream):
    """An anyio UNIX socket stream that sends through a ring.

    The kernel copies what UNIX sockets send.  The ring keeps the order with send groups.
    """

    _receiver: DirectReceiver

    @staticmethod
    def _make_receiver(ring: Ring, sock: socket.socket, waits: BriefWaits) -> Receiver:
        # Receiving ahead would lose the descriptors that come with the bytes.
        return DirectReceiver(ring._loop_calls, sock, waits)

    async def send_fds(self, message: bytes, fds: Collection[int | IOBase]) -> None:
        """Send file descriptors along with a message, after all that was queued.

        If cancelled, the call has sent nothing, or the stream is broken for sending.

        :param message: at least one byte.
        :param fds: descriptors, or file or socket objects; at least one.
        :raises ValueError: an empty message, or no descriptors.

        Raises what :meth:`ZeroCopySocketStream.send` raises.
        """
        if not message:
            raise ValueError("message must not be empty")
        if not fds:
            raise ValueError("fds must not be empty")
        numbers = array.array("i", [fd if isinstance(fd, int) else fd.fileno() for fd in fds])
        attached = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)]
        with self._sending:
            await checkpoint()
            self._output._check()
            if self._eof_sent:
                raise anyio.ClosedResourceError("the end of the stream was sent")
            await self._output.wait_sent()
            sent = await self._send_past_ring(message, attached)
            # The descriptors have left with the first byte; the rest follows as ordinary bytes.
            while not self._output.offer(message[sent:]):
                await self._output.wait_window()

    async def _send_past_ring(self, message: Buffer, attached: list[Any]) -> int:
        while True:
            try:
                return self._socket.sendmsg([message], attached)
            except BlockingIOError:
                await wait_writable(self._socket)
            except OSError as exc:
                raise self._broken() from exc

    async def receive_fds(self, msglen: int, maxfds: int) -> tuple[bytes, list[int]]:
        """Receive a message and the descriptors that came with it, which are not inheritable.

        If cancelled, the call has taken nothing.

        :param msglen: bytes of the message, at most.
        :param maxfds: descriptors, at most; the kernel closes any others.
        :return: the message, and the descriptors, which the caller has to close.
        :raises ValueError: a number is not an ``int``, ``msglen`` is negative, or ``maxfds`` is not
            positive.
        :raises RuntimeError: something else came with the message; its descriptors are closed.

        Raises what :meth:`ZeroCopySocketStream.receive` raises.
        """
        # As with anyio's streams, a wrong type is a wrong value.
        if not isinstance(msglen, int) or msglen < 0:  # type: ignore[redundant-expr]
            raise ValueError("msglen must be a non-negative integer")
        if not isinstance(maxfds, int) or maxfds < 1:  # type: ignore[redundant-expr]
            raise ValueError("maxfds must be a positive integer")
        fds = array.array("i")
        with self._receiving:
            try:
                message, ancillary, _, _ = await self._receiver.call(
                    self._socket.recvmsg,
                    msglen,
                    socket.CMSG_LEN(maxfds * fds.itemsize),
                    socket.MSG_CMSG_CLOEXEC,
                )
            except OSError as exc:
                raise self._broken() from exc
        others = []
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
            else:
                others.append((level, kind))
        if others:
            for fd in fds:
                os.close(fd)
            raise RuntimeError(f"unexpected ancillary data came with {message!r}: {others}")
        if not message and not fds:
            raise anyio.EndOfStream
        return message, list(fds)
