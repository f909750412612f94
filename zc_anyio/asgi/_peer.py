"""One connection: what arrives on it, and how bytes and files leave."""

from __future__ import annotations

import errno
import logging
import math
import os
import select
import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import AnyByteStream, ByteStream, SocketAttribute
from anyio.streams.tls import TLSStream

from .._ring.ring import Ring
from .._sending.files import read_cached
from .._sending.groups import send_group
from .._tls.over_socket import KernelTLSStream
from ..streams import ZeroCopySocketStream
from ._http1 import Address, RequestParser
from ._pace import Pace

__all__ = [
    "GONE",
    "ClientDisconnectedError",
    "Limits",
    "Peer",
    "is_disconnect",
]

log = logging.getLogger("zc_anyio.asgi")

RECEIVE = 64 << 10
# Parts that are not larger together are joined and sent by one system call; larger ones are
# gathered in place.
JOINED_AT_MOST = 64 << 10
# A file, or a part of one, that is not larger is read if the page cache has it: mapping it would
# cost more than the copy.
READ_AT_MOST = 128 << 10
# Bytes of a file that may be under way to one peer; they are pages of the page cache.
FILE_WINDOW = 8 << 20
# Bytes of a file that are sent first, to see how fast the peer takes them, and the least that is
# sent at once after that; and how many times as much the next piece may have.
FILE_PIECE = 512 << 10
FILE_GROWTH = 64
# The errors when a file has become shorter meanwhile: here, and in the kernel.
TRUNCATED = (errno.EIO, errno.EFAULT)
# TLS encrypts everything that it is given before it sends any of it, so it is given pieces.
TLS_PIECE = 256 << 10
# For how long, and how much of it, what a peer still sends after an early answer is read: a
# connection that is closed with bytes unread is reset, and the answer may be lost.
LINGER_SECONDS = 2.0
LINGER_BYTES = 1 << 20
# For how long bytes that have arrived on a TLS stream are still received when receiving is to end.
LAST_RECORDS_SECONDS = 0.1

# What is raised when the peer has gone, has broken TLS, or has taken nothing for too long.
GONE = (
    anyio.BrokenResourceError,
    anyio.ClosedResourceError,
    anyio.EndOfStream,
    ssl.SSLError,
)


class ClientDisconnectedError(OSError):
    """What ``send`` raises in an application when its client is gone."""


def is_disconnect(error: BaseException) -> bool:
    """Whether an error, or each one in an exception group, means that the client is gone."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_disconnect, error.exceptions))
    return isinstance(error, ClientDisconnectedError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What peers may ask of the server.  Limits in seconds may be ``math.inf``.

    :ivar concurrency: connections at once; requests on further ones are answered 503.
    :ivar requests: requests after which the server stops, as if it was told to.
    :ivar head_bytes: bytes of a request's head; a larger one is answered 431.
    :ivar head_seconds: time for a request's head to arrive; a slower one is answered 408.
    :ivar keep_alive_seconds: time between requests; then the connection is closed.
    :ivar body_bytes: bytes of a request's body; a larger one is answered 413.
    :ivar body_seconds: time in which nothing arrives of a body that the application waits for; then
        the connection is closed.
    :ivar stall_seconds: time in which a peer takes nothing of what is sent; then the connection is
        reset.
    :ivar least_rate: bytes a second that a peer takes of what waits for it; one that takes less,
        for ``stall_seconds``, is reset.  0 for any rate.
    :ivar stop_seconds: time for what is under way when the server is stopped; then it is cancelled.
    :ivar websocket_bytes: bytes of a message that a WebSocket receives; a larger one closes it with
        1009.
    :ivar websocket_ping_seconds: time between pings of a WebSocket; one whose peer has sent nothing
        since the last ping is closed.
    """

    concurrency: int | None = None
    requests: int | None = None
    head_bytes: int = 32 << 10
    head_seconds: float = 10.0
    keep_alive_seconds: float = 5.0
    body_bytes: int | None = None
    body_seconds: float = 60.0
    stall_seconds: float = 60.0
    least_rate: float = 0.0
    stop_seconds: float = math.inf
    websocket_bytes: int = 16 << 20
    websocket_ping_seconds: float = 20.0


class Peer:
    """The other end of a connection.

    :ivar stream: a stream of this library, or TLS over one.
    :ivar parser: parser of its requests.
    :ivar deadline: end of the present wait for bytes, by ``time.monotonic``.
    :ivar late: a deadline has passed.
    :ivar has_tls: the connection has TLS, whoever encrypts.
    """

    def __init__(self, stream: ByteStream, ring: Ring, limits: Limits) -> None:
        self.stream = stream
        self.ring = ring
        self.limits = limits
        self.parser = RequestParser(head_bytes=limits.head_bytes, body_bytes=limits.body_bytes)
        self.deadline = math.inf
        self.late = False
        # What is given to it goes through the ring; TLS is the kernel's part then.
        self._own = stream if isinstance(stream, ZeroCopySocketStream | KernelTLSStream) else None
        self._raw: Any = stream.extra(SocketAttribute.raw_socket)
        self.has_tls = isinstance(stream, TLSStream)
        self._stopped = False
        self._receiving = anyio.CancelScope()
        self._pace: Pace | None = None
        if self._raw.family == socket.AF_UNIX:
            self.client: Address | None = None
            self.server: Address | None = (str(self._raw.getsockname()), None)
        else:
            self.client = self._raw.getpeername()[:2]
            self.server = self._raw.getsockname()[:2]
            if limits.stall_seconds != math.inf:
                milliseconds = max(1, int(limits.stall_seconds * 1000))
                self._raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
            if limits.least_rate:
                self._pace = Pace(self._raw, limits.least_rate, limits.stall_seconds)

    @property
    def is_for_groups(self) -> bool:
        """Whether send groups take the stream, in order with what is sent here."""
        return self._own is not None

    # --- receiving ---

    async def read(self, deadline: float = math.inf) -> bool:
        """Receive and parse bytes; ``False`` at the end, or when the deadline has passed."""
        data = await self.receive(deadline)
        self.parser.feed(data)
        return bool(data)

    async def receive(self, deadline: float = math.inf) -> bytes:
        """Receive bytes; ``b""`` at the end, or when the deadline has passed."""
        self.deadline = deadline
        try:
            if self.has_tls:
                return await self._receive_decrypted()
            return await self.stream.receive(RECEIVE)
        except GONE:
            return b""
        finally:
            self.deadline = math.inf

    async def _receive_decrypted(self) -> bytes:
        with anyio.CancelScope() as self._receiving:
            if self._stopped:
                self._end_soon()
            return await self.stream.receive(RECEIVE)
        return b""

    def _end_soon(self) -> None:
        self._receiving.deadline = anyio.current_time() + LAST_RECORDS_SECONDS

    def check_deadline(self, now: float) -> None:
        """End a wait for bytes whose deadline has passed."""
        if now > self.deadline:
            self.late = True
            self.stop_receiving()

    def check_rate(self, now: float) -> None:
        """Reset the connection if the peer takes too little of what is sent."""
        if self._pace is not None and self._pace.is_slow(now):
            log.info(
                "Dropped a client that takes less than %g bytes a second.", self._pace.least_rate
            )
            self.reset()

    def stop_receiving(self) -> None:
        """End the present or next wait for bytes; what has arrived is received first."""
        if self.has_tls:
            # To OpenSSL an end of the socket is an attack, which it tells the peer.
            if not self._stopped:
                self._stopped = True
                self._end_soon()
            return
        with suppress(OSError):  # the connection is gone
            self._raw.shutdown(socket.SHUT_RD)

    def has_ended(self) -> bool:
        """Whether the peer has closed at least its half; bytes may be unread."""
        poll = select.poll()
        poll.register(self._raw, select.POLLRDHUP)
        # Notifications of MSG_ZEROCOPY are reported as an error.
        return any(events & ~select.POLLERR for _, events in poll.poll(0))

    def has_unread(self) -> bool:
        """Whether the peer has sent something that nobody has received."""
        # What has arrived on a TLS stream may be records of TLS itself, or a part of one.
        stream = self.stream
        return not isinstance(stream, ZeroCopySocketStream) or stream.is_readable()

    # --- sending ---

    async def send(self, parts: Sequence[bytes], *, last: bool = True) -> None:
        """Send bytes; returns when they are accepted.

        :param last: nothing more is sent soon, so there is no need to yield to other tasks here.
        :raises ClientDisconnectedError: the peer is gone.
        """
        if not self.send_at_once(parts):
            parts = _joined(parts)
            try:
                if self._own is None:
                    await self._send_pieces(parts)
                else:
                    for part in parts:
                        await self._own.send(part)
            except GONE as exc:
                raise ClientDisconnectedError("the client is gone") from exc
        elif not last:
            await anyio.lowlevel.checkpoint()

    def send_at_once(self, parts: Sequence[bytes]) -> bool:
        """Send bytes if they are accepted without waiting; whether they were.

        :raises ClientDisconnectedError: the peer is gone.
        """
        if self._own is None:
            return False
        try:
            self._own.send_nowait(_joined(parts))
        except anyio.WouldBlock:
            return False
        except GONE as exc:
            raise ClientDisconnectedError("the client is gone") from exc
        return True

    async def _send_pieces(self, parts: Sequence[bytes]) -> None:
        for part in parts:
            for start in range(0, len(part), TLS_PIECE):
                await self.stream.send(part[start : start + TLS_PIECE])

    async def send_file(self, before: bytes, fd: int, offset: int, count: int) -> None:
        """Send a part of a file after some bytes; returns when the descriptor may be closed.

        :raises ClientDisconnectedError: the peer is gone; or the file was truncated meanwhile, so
            that the connection cannot go on.
        """
        if count <= READ_AT_MOST and (data := read_cached(fd, offset, count)) is not None:
            await self.send([before + data])
            return
        if before:
            await self.send([before])
        if self._own is None:
            await self._send_read(fd, offset, count)
            return
        end, size = offset + count, FILE_PIECE
        while offset < end:
            size = min(size, end - offset)
            began = time.monotonic()
            await self._send_mapped(self._own, fd, offset, size)
            offset += size
            # Next comes about what the peer takes in a second: what waits for a slow one stays
            # mapped, and the wait for the end of a piece is nothing beside a second.
            rate = size / max(time.monotonic() - began, 1e-3)
            size = int(min(max(FILE_PIECE, rate), size * FILE_GROWTH))

    async def _send_mapped(
        self, stream: ZeroCopySocketStream | KernelTLSStream, fd: int, offset: int, count: int
    ) -> None:
        error: BaseException | None = None
        window = min(count, FILE_WINDOW)
        try:
            async with send_group(ring=self.ring, window=window, on_error="collect") as group:
                await group.send_file(stream, fd, offset=offset, count=count)
            error = group.failures[0].error if group.failures else None
        except (*GONE, OSError, ValueError) as exc:
            error = exc.__cause__ or exc
        if error is not None:
            if isinstance(error, ValueError) or getattr(error, "errno", 0) in TRUNCATED:
                _tell_truncated(fd)
            raise ClientDisconnectedError("the connection has failed") from error

    async def _send_read(self, fd: int, offset: int, count: int) -> None:
        end = offset + count
        while offset < end:
            size = min(TLS_PIECE, end - offset)
            data = await anyio.to_thread.run_sync(os.pread, fd, size, offset)
            if not data:
                _tell_truncated(fd)
                raise ClientDisconnectedError("the connection cannot go on")
            await self.send([data])
            offset += len(data)

    # --- the end ---

    async def linger(self) -> None:
        """Close after reading some of what the peer may still be sending."""
        left = LINGER_BYTES
        stream: AnyByteStream = self.stream
        with suppress(*GONE), anyio.move_on_after(LINGER_SECONDS):
            if isinstance(stream, TLSStream):
                # Its farewell.  Peers answer it; what else they send is an error here.
                with suppress(*GONE):
                    await stream.unwrap()
                stream = stream.transport_stream
            if isinstance(stream, ZeroCopySocketStream):
                await stream.send_eof()
            while left > 0:
                left -= len(await stream.receive())
        await self.close()

    async def close(self) -> None:
        """Close; what was accepted still goes out."""
        with suppress(*GONE):
            await self.stream.aclose()

    def reset(self) -> None:
        """Reset the connection at once; what was accepted is dropped."""
        stream: object = self.stream
        if isinstance(stream, TLSStream):
            stream = stream.transport_stream
        if isinstance(stream, ZeroCopySocketStream):
            stream._output.reset()

    async def abort(self) -> None:
        """Close by a reset, so that the peer does not take what it has received for the whole."""
        with suppress(OSError, ValueError):  # it is closed already
            self._raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await anyio.aclose_forcefully(self.stream)


def _tell_truncated(fd: int) -> None:
    log.error("%s was truncated while it was sent", Path(f"/proc/self/fd/{fd}").readlink())


def _joined(parts: Sequence[bytes]) -> Sequence[bytes]:
    if len(parts) > 1 and sum(map(len, parts)) <= JOINED_AT_MOST:
        return [b"".join(parts)]
    return parts
