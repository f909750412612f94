"""A request and the answer to it, as a handler sees them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from email.utils import formatdate
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import unquote_to_bytes

import anyio
import h11
from anyio.abc import SocketStream

from .outgoing import Body, Outgoing, Part

__all__ = ["Exchange", "HTTPError", "Handler", "Headers", "Request"]

Headers: TypeAlias = Iterable[tuple[str, str]]
RECEIVE = 64 << 10
TEXT = "text/plain; charset=utf-8"
SERVER = "zc_anyio-examples"


class HTTPError(Exception):
    """Answer with this status instead; a handler may raise it before it has begun to answer."""

    def __init__(self, status: int, text: str | None = None, headers: Headers = ()) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text or HTTPStatus(status).phrase
        self.headers = list(headers)


class Request:
    """What a peer asks for.

    :ivar method: as sent; methods are upper case.
    :ivar path: the path, percent-decoded; it begins with ``/`` and has no NUL.
    :ivar query: what follows ``?``, as sent.
    :ivar event: the request as h11 gives it.
    """

    def __init__(self, event: h11.Request) -> None:
        self.event = event
        self.method = event.method.decode("ascii")
        target = event.target
        if target.lower().startswith((b"http://", b"https://")):
            # A client that takes this server for a proxy puts the host into the target.
            target = b"/" + target.split(b"://", 1)[1].partition(b"/")[2]
        raw, _, query = target.partition(b"?")
        try:
            self.path = unquote_to_bytes(raw).decode()
        except UnicodeDecodeError:
            raise HTTPError(400, "The path is not UTF-8") from None
        if not self.path.startswith("/") or "\0" in self.path:
            raise HTTPError(400, "The path is malformed")
        self.query = query.decode("ascii", "replace")

    def header(self, name: str) -> str | None:
        """Return a header, lines of the same name joined by commas, or ``None``."""
        wanted = name.lower().encode("ascii")
        values = [value for key, value in self.event.headers if key == wanted]
        return b", ".join(values).decode("latin-1") if values else None

    def allow(self, *methods: str) -> None:
        """Raise :exc:`HTTPError` (405) unless the method is one of these; GET allows HEAD."""
        allowed = [*methods, "HEAD"] if "GET" in methods else list(methods)
        if self.method not in allowed:
            raise HTTPError(405, headers=[("allow", ", ".join(allowed))])


class Exchange:
    """The answer to one request, and the rest of what the peer sends with it.

    A handler calls :meth:`respond`; or :meth:`start`, :meth:`send` any number of times, and
    :meth:`finish` (the server does that if the handler has not); or :meth:`take_over`.  Sending
    raises ``TimeoutError`` if the peer takes nothing for the server's ``stall_seconds``, and
    ``anyio.BrokenResourceError`` or ``ClosedResourceError`` if it is gone; the server handles
    these.

    :ivar stream: the connection.  What the exchange sends keeps its order with what a send group
        sends to this stream.
    :ivar stopping: set when the server is being stopped; long handlers have to end soon after.
    :ivar status: the status of the answer, once it has begun.
    """

    def __init__(
        self,
        http: h11.Connection,
        request: Request | None,
        stream: SocketStream,
        outgoing: Outgoing,
        *,
        stopping: anyio.Event,
        idle: set[anyio.CancelScope],
        body_seconds: float,
    ) -> None:
        self.stream = stream
        self.stopping = stopping
        self.status: int | None = None
        self.taken_over = False
        self._http = http
        self._outgoing = outgoing
        self._head_only = request is not None and request.method == "HEAD"
        self._finished = False
        self._idle = idle
        self._body_seconds = body_seconds

    async def respond(
        self,
        status: int,
        body: Body = b"",
        *,
        content_type: str = TEXT,
        headers: Headers = (),
    ) -> None:
        """Send a whole answer."""
        size = body.count if isinstance(body, Part) else memoryview(body).nbytes
        fields = [("content-type", content_type), ("content-length", str(size)), *headers]
        await self.start(status, fields)
        await self.send(body)
        await self.finish()

    async def refuse(self, refusal: HTTPError) -> None:
        """Send what :exc:`HTTPError` says."""
        await self.respond(refusal.status, f"{refusal.text}\n".encode(), headers=refusal.headers)

    async def start(self, status: int, headers: Headers) -> None:
        """Send the head of an answer.

        Without ``content-length`` the body is chunked (or ends with the connection, for HTTP/1.0).
        """
        fields = [*headers, *_common()]
        self.status = status
        if self.stopping.is_set():
            fields.append(("connection", "close"))
        reason = HTTPStatus(status).phrase
        await self._send(h11.Response(status_code=status, reason=reason, headers=fields))

    async def send(self, data: Body) -> None:
        """Send a part of the body, which must not change before the exchange is over.

        Nothing is sent where HTTP has no body: for HEAD, and with the statuses 204 and 304.
        """
        if self._head_only or self.status in (204, 304):
            return
        # h11 counts an object by its length and hands it back as it is.
        event = h11.Data(data=data)  # type: ignore[arg-type]
        for part in self._http.send_with_data_passthrough(event) or ():
            if len(part):
                await self._outgoing.send(part)

    async def finish(self) -> None:
        """End the answer, and wait until its memory is free again."""
        if not self._finished:
            self._finished = True
            await self._send(h11.EndOfMessage())
        await self._outgoing.finish()

    async def body(self, most: int) -> bytes:
        """Receive the body of the request.

        :raises HTTPError: 413, more than ``most`` bytes; 408, it took too long; 400, malformed.
        """
        if self._http.they_are_waiting_for_100_continue:
            await self._send(h11.InformationalResponse(status_code=100, headers=[]))
        received = bytearray()
        try:
            with anyio.fail_after(self._body_seconds):
                while True:
                    event = self._http.next_event()
                    if event is h11.NEED_DATA:
                        self._http.receive_data(await receive(self.stream))
                    elif isinstance(event, h11.Data):
                        received += event.data
                        if len(received) > most:
                            raise HTTPError(413)
                    else:
                        return bytes(received)
        except TimeoutError:
            raise HTTPError(408) from None
        except h11.RemoteProtocolError as exc:
            raise HTTPError(exc.error_status_hint) from exc

    async def take_over(self) -> tuple[SocketStream, bytes]:
        """Hand the connection to the handler, for another protocol.

        Nothing has been answered, and the server sends nothing more; it closes the connection when
        the handler returns.

        :return: the stream, and what the peer has sent after its request.
        """
        assert self.status is None, "an answer has begun"
        self.taken_over = True
        return self.stream, self._http.trailing_data[0]

    async def start_endless(self, headers: Headers, body: bytes = b"") -> SocketStream:
        """Send the head of an answer that ends with the connection, and take it over.

        Its body has no framing, so it can be the same bytes for many peers.

        :param body: the beginning of the body.
        :return: the stream, for the handler's own send groups.
        """
        assert self.status is None, "an answer has begun"
        fields = [*headers, *_common(), ("connection", "close")]
        lines = ["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in fields), "", ""]
        self.status = 200
        self.taken_over = True
        await self._outgoing.send("\r\n".join(lines).encode("ascii") + body)
        await self._outgoing.finish()
        return self.stream

    async def wait_closed(self) -> None:
        """Wait until the peer has closed its half, or the server is being stopped.

        This is for answers that never end; what the peer sends is lost.
        """
        with idling(self._idle, self.stopping):
            while await receive(self.stream):
                pass

    async def _send(self, event: h11.Event) -> None:
        if data := self._http.send(event):
            await self._outgoing.send(data)


def _common() -> list[tuple[str, str]]:
    """Return the headers of every answer."""
    return [
        ("date", formatdate(usegmt=True)),
        ("server", SERVER),
        ("x-content-type-options", "nosniff"),
    ]


Handler: TypeAlias = Callable[[Request, Exchange], Awaitable[None]]


@contextmanager
def idling(scopes: set[anyio.CancelScope], stopping: anyio.Event) -> Iterator[anyio.CancelScope]:
    """Yield a scope that is cancelled at once when the server is stopped."""
    with anyio.CancelScope() as scope:
        scopes.add(scope)
        try:
            if stopping.is_set():
                scope.cancel()
            yield scope
        finally:
            scopes.discard(scope)


async def receive(stream: SocketStream, most: int = RECEIVE) -> bytes:
    """Receive what has come; ``b""`` at the end, as h11 needs it."""
    try:
        return await stream.receive(most)
    except anyio.EndOfStream:
        return b""


def read_request(event: h11.Request, most: int) -> Request:
    """Return a request whose head is not too large.

    :raises HTTPError: 431; 400.
    """
    # h11 checks the size of a head only while it is incomplete.
    fields: Sequence[tuple[bytes, bytes]] = event.headers.raw_items()
    if len(event.target) + sum(len(name) + len(value) + 4 for name, value in fields) > most:
        raise HTTPError(431)
    return Request(event)
