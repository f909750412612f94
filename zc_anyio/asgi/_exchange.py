"""A request and its answer, as an ASGI application sees them: ``receive`` and ``send``."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, MutableMapping
from typing import Any, TypeAlias

import anyio
from anyio.lowlevel import checkpoint

from ._heads import END, Head, check_name, join_lines, own_lines, refusal_bytes, response_head
from ._http1 import Refusal, Request
from ._peer import ClientDisconnectedError, Peer

__all__ = ["Exchange", "Message"]

Message: TypeAlias = MutableMapping[str, Any]

DISCONNECT: Message = {"type": "http.disconnect"}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Exchange:
    """One request, for as long as the application answers it.

    :param closing: returns whether the server wants no further request on this connection.
    :param completed: is called when the answer has been sent.
    :ivar status: status of the answer that the application has begun, or of a refusal in its place.
    :ivar complete: the answer has been sent, or cannot be sent any more.
    :ivar keep_alive: the connection can take another request after this one.
    :ivar broken: the answer has ended in the middle.
    :ivar returned: the application has returned.
    :ivar handed_over: another task has taken over the connection.
    """

    status: int | None = None
    complete = broken = returned = handed_over = False

    # These, too, are as here in most exchanges.
    _gone = _body_told = _chunked = False
    # The head, while it waits for the first part of the body.
    _head: Head | None = None
    # How many bytes of its Content-Length the answer has not sent yet.
    _left: int | None = None
    _trailers: list[bytes] | None = None
    _waiting: anyio.CancelScope | None = None

    def __init__(
        self,
        peer: Peer,
        request: Request,
        *,
        closing: Callable[[], bool],
        completed: Callable[[Exchange], object],
    ) -> None:
        self.request = request
        self.keep_alive = request.keep_alive
        self._peer = peer
        self._closing = closing
        self._completed = completed
        self._continue = request.expects_continue
        self._body_ended = request.length == 0
        self._bodiless = request.method == "HEAD"

    # --- receive ---

    async def receive(self) -> Message:
        # Without a checkpoint: applications that only look for a disconnect call this in a
        # cancelled scope.
        if self.complete or self._gone:
            return DISCONNECT
        if not self._body_told:
            return await self._receive_body()
        if self._peer.has_ended():
            self._gone = True
            return DISCONNECT
        try:
            with anyio.CancelScope() as self._waiting:
                while not self._peer.parser.events:
                    if not await self._peer.read():
                        self._gone = True
                        return DISCONNECT
                # The peer has sent another request, so it is there; it waits for this answer's end.
                await anyio.sleep_forever()
        finally:
            self._waiting = None
        return DISCONNECT

    async def _receive_body(self) -> Message:
        peer, events = self._peer, self._peer.parser.events
        if self._continue:
            self._continue = False
            if not self.begun:
                await peer.send([CONTINUE])
        if events:
            await checkpoint()
        parts: list[bytes] = []
        while True:
            while events and isinstance(part := events[0], bytes):
                parts.append(part)
                events.popleft()
            if events and events[0] is None:
                events.popleft()
                self._body_ended = True
            if parts or self._body_ended:
                self._body_told = self._body_ended
                more = not self._body_ended
                return {"type": "http.request", "body": b"".join(parts), "more_body": more}
            seconds = peer.limits.body_seconds
            if events or not await peer.read(time.monotonic() + seconds):
                # Why it ended is seen from what is left in the parser.
                self._gone = True
                return DISCONNECT

    def discard_body(self) -> bool:
        """Drop what has come of an unwanted body; return whether that was all of it."""
        events = self._peer.parser.events
        while not self._body_ended and events and not isinstance(events[0], Refusal):
            self._body_ended = events.popleft() is None
        return self._body_ended

    async def wait_received(self) -> None:
        """Wait until no task of the application is in :meth:`receive`."""
        while self._waiting is not None:
            await checkpoint()

    # --- send ---

    async def send(self, message: Message) -> None:
        """The application's ``send``.

        :raises ClientDisconnectedError: the client is gone.
        :raises RuntimeError: the message is not allowed here, or the answer is not as long as its
            Content-Length says.
        """
        kind = message["type"]
        if self.complete:
            if self._gone:
                raise ClientDisconnectedError("the client is gone")
            return
        try:
            if kind == "http.response.start":
                self._start(message)
            elif self.status is None:
                raise RuntimeError(f"{kind} comes before http.response.start")
            elif kind == "http.response.body":
                await self._send_body(message.get("body", b""), message.get("more_body", False))
            elif kind == "http.response.zerocopysend":
                await self._send_descriptor(message)
            elif kind == "http.response.pathsend":
                await self._send_path(message["path"])
            elif kind == "http.response.trailers":
                await self._send_trailers(message)
            else:
                raise RuntimeError(f"{kind} is not a message of a response")
        except ClientDisconnectedError:
            self._gone = self.complete = self.broken = True
            raise

    def _start(self, message: Message) -> None:
        if self.status is not None:
            raise RuntimeError("a response has begun already")
        status = message["status"]
        headers = tuple(message.get("headers", ()))
        try:
            head = response_head(status, headers)
        except TypeError:
            # A header may also be a list.
            head = response_head(status, tuple([(name, value) for name, value in headers]))
        self._left = head.length
        if head.closes:
            self.keep_alive = False
        self._bodiless = self._bodiless or status in (204, 304)
        if message.get("trailers"):
            self._trailers = []
        self._head = head
        self.status = status

    def _framed(self, size: int, *, more: bool) -> bytes:
        """Decide how the body is framed, and return the head if it has not been sent."""
        head, self._head = self._head, None
        if head is None:
            return b""
        lines = [head.lines]
        if self._bodiless:
            if size and not more and self._left is None and self.request.method == "HEAD":
                lines.append(b"content-length: %d" % size)
        elif self._left is None:
            if not more and self._trailers is None:
                lines.append(b"content-length: %d" % size)
            elif self.request.version == "1.1":
                self._chunked = True
                lines.append(b"transfer-encoding: chunked")
            else:
                self.keep_alive = False
        if not (head.dated and head.named):
            lines.append(own_lines(int(time.time()), dated=head.dated, named=head.named))
        if self._closing():
            self.keep_alive = False
        if not self.keep_alive:
            lines.append(b"connection: close")
        elif self.request.version == "1.0":
            lines.append(b"connection: keep-alive")
        return b"\r\n".join(lines) + END

    def _count(self, size: int, *, more: bool) -> None:
        if self._left is not None and not self._bodiless:
            self._left -= size
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("the response is not as long as its Content-Length says")

    async def _send_body(self, body: Any, more: bool) -> None:
        if type(body) is not bytes:
            # The application may change it after this returns.
            body = bytes(memoryview(body))
        size = len(body)
        self._count(size, more=more)
        head = self._framed(size, more=more)
        parts = [head] if head else []
        if not self._bodiless:
            if self._chunked:
                if size:
                    parts += [b"%x\r\n" % size, body, b"\r\n"]
                if not more and self._trailers is None:
                    parts.append(b"0\r\n\r\n")
            elif size:
                parts.append(body)
        if parts:
            await self._peer.send(parts, last=not more)
        else:
            await checkpoint()
        if not more and (self._trailers is None or not self._chunked):
            self._finish()

    async def _send_file(self, fd: int, offset: int, count: int, *, more: bool) -> None:
        self._count(count, more=more)
        head = self._framed(count, more=more)
        before, after = head, b""
        if self._chunked and count:
            before, after = head + b"%x\r\n" % count, b"\r\n"
        if self._chunked and not more and self._trailers is None:
            after += b"0\r\n\r\n"
        if count and not self._bodiless:
            await self._peer.send_file(before, fd, offset, count)
        elif head:
            await self._peer.send([head])
        if after:
            await self._peer.send([after])
        if not more and (self._trailers is None or not self._chunked):
            self._finish()

    async def _send_descriptor(self, message: Message) -> None:
        file = message["file"]
        fd = file if isinstance(file, int) else file.fileno()
        offset, count = message.get("offset"), message.get("count")
        start = os.lseek(fd, 0, os.SEEK_CUR) if offset is None else offset
        if count is None:
            count = max(0, os.fstat(fd).st_size - start)
        await self._send_file(fd, start, count, more=message.get("more_body", False))
        if offset is None:
            os.lseek(fd, start + count, os.SEEK_SET)

    async def _send_path(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise RuntimeError(f"{path} is not a regular file")
            # If a file has grown since its size was announced, only that size is sent.
            size = status.st_size
            count = size if self._left is None else min(size, self._left)
            await self._send_file(fd, 0, count, more=False)
        finally:
            os.close(fd)

    async def _send_trailers(self, message: Message) -> None:
        if self._trailers is None:
            raise RuntimeError("http.response.start has not announced trailers")
        for name, value in message.get("headers", ()):
            check_name(name)
            self._trailers.append(b"%b: %b" % (name, value))
        if not message.get("more_trailers", False):
            wanted = b"trailers" in [value.lower() for value in self.request.values(b"te")]
            lines = [b"0", *(self._trailers if wanted else [])]
            await self._peer.send([join_lines(lines) + END])
            self._finish()

    def _finish(self) -> None:
        self.complete = True
        if self._waiting is not None:
            self._waiting.cancel()
        self._completed(self)

    # --- when it goes wrong ---

    @property
    def begun(self) -> bool:
        """Whether some of the answer has been sent."""
        return self.status is not None and self._head is None

    @property
    def excused(self) -> bool:
        """Whether the application cannot answer because of the client."""
        return self._gone or self._refusal() is not None

    def _refusal(self) -> Refusal | None:
        """Return what is wrong with the rest of the body."""
        events = self._peer.parser.events
        found = events[0] if events and not self._body_ended else None
        return found if isinstance(found, Refusal) else None

    async def fail(self) -> None:
        """Answer in place of an application that has not answered."""
        if self.begun:
            self.broken = True
        elif self._refusal() is None and self._gone:
            self.complete = True
        else:
            await self.refuse(self._refusal() or Refusal(500))

    async def refuse(self, refusal: Refusal) -> None:
        """Answer in place of an application that has sent nothing, and close afterwards."""
        self._head = None
        self.status = refusal.status
        self.keep_alive = False
        await self._peer.send([refusal_bytes(refusal, head_only=self.request.method == "HEAD")])
        self._finish()
