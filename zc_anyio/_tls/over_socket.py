"""TLS by OpenSSL on the socket itself, so that it can give its keys to the kernel.

OpenSSL does the handshake, receives, and writes alerts.  The plain stream keeps the socket, an
``SSLSocket`` from then on.  Where the kernel encrypts, plaintext is sent by the plain stream and by
groups, through the ring.  The kernel makes the records: each of its calls begins and ends whole
ones, whoever makes it, and a record of another type first closes an open one.  So OpenSSL's records
fall between those of the ring, never into them.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import anyio
from anyio.abc import AnyByteStream
from anyio.lowlevel import checkpoint
from anyio.streams.tls import TLSStream

from .._base.errors import os_error
from .._base.halves import Half
from .._base.kernel_tls import OP_ENABLE_KTLS, InKernel, in_kernel
from .._ring.descriptors import EncryptedByKernel
from .._sending.buffers import Buffer
from ..streams import ZeroCopySocketStream
from .attributes import KernelTLSAttribute, session_attributes
from .key_requests import tell_of_requests

__all__ = ["KernelTLSStream", "SocketTLSStream", "handshake"]

T = TypeVar("T")


class SocketTLSStream(TLSStream):
    """A TLS stream over a socket, whose records OpenSSL makes: the kernel lacks the cipher.

    It is a ``TLSStream`` of anyio to those who ask, and does all of it in its own way.
    """

    def __init__(
        self, plain: ZeroCopySocketStream, tls: ssl.SSLSocket, *, standard_compatible: bool
    ) -> None:
        self.transport_stream: AnyByteStream = plain
        self.standard_compatible = standard_compatible
        self._plain = plain
        self._tls = tls
        self._fd = tls.fileno()
        self._loop = plain._ring._loop_calls
        self._sending = Half("writing to")
        self._receiving = Half("reading from")
        self._closed = self._unwrapped = self._broken = False
        # Why nothing may be sent any more, although the connection is whole.
        self._refused: OSError | None = None
        self._in_kernel = InKernel(sending=False, receiving=False)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self._plain!r}>"

    async def send(self, item: Buffer) -> None:
        """Send bytes; returns when OpenSSL has written the last of them.

        If cancelled while it waits, the stream is broken for sending, as anyio's is.

        :param item: any C-contiguous buffer.

        Raises what :meth:`ZeroCopySocketStream.send` raises.
        """
        with self._sending, memoryview(item) as view, view.cast("B") as left:
            await checkpoint()
            if self._unwrapped:
                raise anyio.ClosedResourceError
            done = 0
            try:
                while done < len(left):
                    done += await self._call(self._tls.send, left[done:])
            except BaseException:
                # A record may have left in part, or its number is used up.
                self._broken = True
                raise

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Return what has arrived, between one and ``max_bytes`` bytes.

        If cancelled, the call has taken nothing.

        :param max_bytes: bytes at most.
        :raises anyio.EndOfStream: the peer has ended the stream by ``close_notify``, or in any way
            if the stream is not ``standard_compatible``.
        :raises anyio.ClosedResourceError: the stream is closed, or was while this waited.
        :raises anyio.BrokenResourceError: the connection failed, or ended without
            ``close_notify``.
        :raises anyio.BusyResourceError: another task is receiving.
        :raises ssl.SSLError: the peer broke the protocol, or refused this end by an alert.
        """
        if max_bytes < 1:
            raise ValueError("max_bytes must be a positive integer")
        with self._receiving:
            await checkpoint()
            if self._unwrapped:
                raise anyio.ClosedResourceError
            data = await self._call(self._tls.recv, max_bytes)
        if not data:
            raise anyio.EndOfStream
        return data

    async def unwrap(self) -> tuple[ZeroCopySocketStream, bytes]:
        """Send ``close_notify`` after all that was queued, and wait for the peer's.

        If cancelled, it may have sent it; then only :meth:`aclose` is left to do.

        :return: the stream below, and ``b""``: bytes behind the peer's ``close_notify`` are still
            in it.  Where the kernel encrypted, it would go on doing so: the stream refuses to send,
            and the peer sees its end; where it decrypted, receiving raises
            :exc:`anyio.BrokenResourceError`.
        :raises ssl.SSLError: the peer sent data meanwhile, or broke the protocol; TLS has ended
            then too, and the stream below has what comes next.
        :raises anyio.BrokenResourceError: sending has failed, or what :meth:`receive` says.

        Raises what :meth:`receive` raises.
        """
        try:
            await self._exchange_ends()
        except ssl.SSLError:
            self._leave()
            self._give_back()
            raise
        self._give_back()
        return self._plain, b""

    async def _exchange_ends(self) -> None:
        with self._sending, self._receiving:
            await checkpoint()
            self._check_refused()
            await self._plain._output.wait_sent()
            self._end_sending()
            await self._call(self._tls.unwrap)
        self._leave()

    def _give_back(self) -> None:
        """Have the stream below work by itself again."""
        sock = socket.socket(fileno=self._tls.detach())
        sock.setblocking(False)
        self._plain._adopt(sock)

    async def aclose(self) -> None:
        """Close the stream; tasks that wait in it get :exc:`anyio.ClosedResourceError`.

        A stream that is ``standard_compatible`` first exchanges ``close_notify`` with the peer,
        unless a task is sending: its send is cut off, and the peer sees a connection that was lost.
        The call may be limited in time: if it is cancelled, the connection is closed all the same.
        Calling it again does nothing.
        """
        if self._closed:
            await checkpoint()
            return
        self._closed = True
        self._loop.notify_closing(self._fd)
        try:
            if not self._unwrapped:
                # A send that is cut off ends the stream as a lost connection does.
                cut = self._broken or self._refused is not None or self._sending.taken
                if self.standard_compatible and not cut:
                    # Who waited for bytes leaves with the next turns of the event loop.
                    while self._receiving.taken:
                        await checkpoint()
                    self._closed = False
                    try:
                        await self._exchange_ends()
                    finally:
                        self._closed = True
                elif self._loses_nothing():
                    self._leave()
        except BaseException:
            self._leave()
            await anyio.aclose_forcefully(self._plain)
            raise
        self._leave()
        await self._plain.aclose()

    def _loses_nothing(self) -> bool:
        """Take records that are not data, such as session tickets: unread they cause a reset."""
        try:
            return not self._tls.recv(1)
        except OSError:
            return False

    def _check_refused(self) -> None:
        if self._refused is not None:
            raise anyio.BrokenResourceError from self._refused

    def _end_sending(self) -> None:
        """Refuse further sends of this stream."""

    def _leave(self) -> None:
        if not self._unwrapped:
            self._unwrapped = True
            self._loop.notify_closing(self._fd)

    async def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call OpenSSL until it need not wait for the socket."""
        while True:
            if self._closed:
                raise anyio.ClosedResourceError
            if self._broken:
                raise anyio.BrokenResourceError
            try:
                return function(*arguments)
            except ssl.SSLWantReadError:
                await self._wait(self._loop.wait_readable(self._fd))
            except ssl.SSLWantWriteError:
                await self._wait(anyio.wait_writable(self._fd))
            except ssl.SSLSyscallError as exc:
                raise anyio.BrokenResourceError from exc
            except ssl.SSLError as exc:
                if not _is_ragged_end(exc):
                    raise
                if self.standard_compatible:
                    raise anyio.BrokenResourceError from exc
                # It may be a reset that a send was told of.
                self._plain._raise_end()
            except OSError as exc:
                raise anyio.BrokenResourceError from exc

    async def _wait(self, waiting: Any) -> None:
        try:
            await waiting
        except Exception:
            if self._closed:
                raise anyio.ClosedResourceError from None
            raise

    async def handshake(self) -> None:
        """Do the handshake."""
        await checkpoint()
        await self._call(self._tls.do_handshake)

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """See :class:`anyio.TypedAttributeProvider`."""
        return {
            **self._plain.extra_attributes,
            **session_attributes(self._tls, standard_compatible=self.standard_compatible),
            KernelTLSAttribute.kernel_sends: lambda: self._in_kernel.sending,
            KernelTLSAttribute.kernel_receives: lambda: self._in_kernel.receiving,
            KernelTLSAttribute.why_not_kernel: self._why_not,
        }

    def _why_not(self) -> str | None:
        cipher = self._tls.cipher() if not self._unwrapped else None
        name = f"{cipher[1]} with {cipher[0]}" if cipher else "this connection"
        return f"OpenSSL did not give the kernel the keys of {name}"


class KernelTLSStream(SocketTLSStream, EncryptedByKernel):
    """A TLS stream whose plaintext the kernel encrypts, so that groups and files send on it."""

    def __init__(
        self, plain: ZeroCopySocketStream, tls: ssl.SSLSocket, *, standard_compatible: bool
    ) -> None:
        super().__init__(plain, tls, standard_compatible=standard_compatible)
        self._sending = plain._sending
        # Failures are reported for this stream from now on.
        attached = plain._ring._sockets.keep(self, plain._socket)
        plain._ring._native.encrypted_by_kernel(attached.handle)
        tell_of_requests(tls, self)

    @property
    def _raw_socket(self) -> socket.socket:
        self._check_refused()
        if self._plain._eof_sent:
            raise anyio.ClosedResourceError("the end of the stream was sent")
        return self._plain._socket

    def _asked_for_keys(self) -> None:
        reason = "the peer asked for new keys, which the kernel does not take"
        self._refused = os_error(errno.EKEYEXPIRED, reason)
        self._end_sending()

    async def send(self, item: Buffer) -> None:
        """Send bytes through the ring, in order with groups.

        Waits, raises and may be cancelled as :meth:`ZeroCopySocketStream.send`.

        :param item: any C-contiguous buffer.
        :raises anyio.BrokenResourceError: also if the peer has asked for new keys, which the kernel
            does not take; the cause says so, and receiving goes on.
        """
        self._check_refused()
        await self._plain.send(item)

    def send_nowait(self, parts: Sequence[bytes]) -> None:
        """Send ``bytes`` through the ring without waiting; several are gathered, not joined.

        :param parts: what to send, in order.
        :raises anyio.WouldBlock: they do not fit into the window.

        Raises what :meth:`send` raises.
        """
        self._check_refused()
        self._plain.send_nowait(parts)

    def _end_sending(self) -> None:
        self._plain._eof_sent = True
        for stream in self, self._plain:
            self._plain._ring._sockets.hide(stream)

    def _give_back(self) -> None:
        """End the connection for sending: the kernel keeps its keys for as long as it lasts."""
        with suppress(OSError):  # the connection is gone
            self._tls.shutdown(socket.SHUT_WR)

    def _why_not(self) -> str | None:
        return None


async def handshake(
    plain: ZeroCopySocketStream,
    context: ssl.SSLContext,
    *,
    server_side: bool,
    server_hostname: str | bytes | None,
    standard_compatible: bool,
) -> SocketTLSStream:
    """Do a handshake on the socket of a stream that has taken nothing from it.

    If it fails or is cancelled, the plain stream is still open.
    """
    await plain._output.wait_sent()
    duplicate = plain._socket.dup()
    try:
        duplicate.setblocking(False)
        tls = _wrap(context, duplicate, server_side, server_hostname)
    except BaseException:
        duplicate.close()
        raise
    plain._adopt(tls)
    made = SocketTLSStream(plain, tls, standard_compatible=standard_compatible)
    await made.handshake()
    found = in_kernel(tls)
    if found.sending:
        made = KernelTLSStream(plain, tls, standard_compatible=standard_compatible)
    else:
        plain._ring._sockets.hide(plain)
    made._in_kernel = found
    return made


def _wrap(
    context: ssl.SSLContext,
    sock: socket.socket,
    server_side: bool,
    server_hostname: str | bytes | None,
) -> ssl.SSLSocket:
    # OpenSSL copies the options into the session; the context stays as it was.
    before = context.options
    context.options = before | OP_ENABLE_KTLS
    try:
        return context.wrap_socket(
            sock,
            server_side=server_side,
            server_hostname=server_hostname,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
    finally:
        context.options = before


def _is_ragged_end(error: ssl.SSLError) -> bool:
    return isinstance(error, ssl.SSLEOFError) or "UNEXPECTED_EOF_WHILE_READING" in (
        error.strerror or ""
    )
