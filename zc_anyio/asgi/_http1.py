"""Parsing requests of HTTP/1.1.

httptools does it with llhttp.  It refuses what servers and proxies are known to read in
different ways: both ``Content-Length`` and ``Transfer-Encoding``, either of them twice, line ends
without CR, folded headers, a space before the colon.  h11 accepts all of these but the last.
:class:`RequestParser` checks what llhttp does not: ``Host``, versions, encodings other than
chunked, sizes.
"""

from __future__ import annotations

from collections import deque
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import unquote

import httptools

__all__ = ["Address", "Header", "Refusal", "Request", "RequestParser"]

Header: TypeAlias = tuple[bytes, bytes]
Address: TypeAlias = tuple[str, int | None]

# The headers of a request that the server itself reads.
TELLING = frozenset(
    {
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"expect",
        b"upgrade",
        b"x-forwarded-for",
        b"x-forwarded-proto",
    }
)


class Refusal:
    """An answer in place of the application's, after which the connection is closed."""

    __slots__ = ("status", "text")

    def __init__(self, status: int, text: str = "") -> None:
        self.status = status
        self.text = text or HTTPStatus(status).phrase


class Request:
    """The head of a request.

    :ivar method: as sent; methods are upper case.
    :ivar target: path and query, as sent; without the scheme and host in requests to a proxy.
    :ivar version: ``"1.0"`` or ``"1.1"``.
    :ivar headers: names in lower case, in the order of the request.
    :ivar client: the client's address, once the application gets the request.
    :ivar keep_alive: whether the peer may send another request after this one.
    :ivar forwarded: a proxy has told the client's address.
    :ivar expects_continue: the peer waits for status 100 before it sends the body.
    :ivar length: bytes of the body; ``None`` if it is chunked.
    :ivar websocket: it asks for a WebSocket.
    """

    __slots__ = (
        "client",
        "expects_continue",
        "forwarded",
        "headers",
        "keep_alive",
        "length",
        "method",
        "target",
        "version",
        "websocket",
    )

    def __init__(
        self, method: str, target: bytes, version: str, headers: list[Header], keep_alive: bool
    ) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.headers = headers
        self.keep_alive = keep_alive
        self.client: Address | None = None
        self.expects_continue = self.forwarded = False
        self.length: int | None = 0
        self.websocket = False

    def path(self) -> tuple[str, bytes, bytes]:
        """Return the decoded path, the path as sent, and the query."""
        raw, _, query = self.target.partition(b"?")
        path = raw.decode("ascii")
        return (unquote(path) if "%" in path else path), raw, query

    def values(self, name: bytes) -> list[bytes]:
        """Return the values of a header, split at lines and commas, without spaces around them."""
        return [
            part.strip() for key, value in self.headers if key == name for part in value.split(b",")
        ]


# What a parser yields: a head; if that announces a body, the body's parts and ``None`` at its end;
# or, as the last event, a refusal.
Event: TypeAlias = Request | bytes | Refusal | None


class RequestParser:
    """The requests of one connection, one after the other.

    :param head_bytes: bytes that a head may have, or 431 is answered; trailers and the lines
        between chunks may have as many.
    :param body_bytes: bytes that a body may have, or 413 is answered; ``None`` for any number.
    :ivar events: what was parsed and not taken yet.
    :ivar began: a head has begun, and has not ended.
    :ivar rest: bytes that the peer has sent after a request for a WebSocket.
    """

    def __init__(self, *, head_bytes: int, body_bytes: int | None) -> None:
        self.events: deque[Event] = deque()
        self.began = False
        self.rest = b""
        self._head_bytes = head_bytes
        self._body_bytes = body_bytes
        # Bytes since the message began, or since the latest part of its body.
        self._framing = 0
        self._body = 0
        self._ended = False
        self._parser = httptools.HttpRequestParser(self)
        self._request: Request
        self._url = b""
        self._headers: list[Header] = []
        self._telling: list[Header] = []
        self._in_head = True

    def feed(self, data: bytes) -> None:
        """Parse what was received."""
        while data and not self._ended:
            self._framing += len(data)
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as exc:
                data = self._upgrade(data[exc.args[0] :])
                continue
            except httptools.HttpParserError:
                self._refuse(Refusal(400))
            if self._framing > self._head_bytes:
                self._refuse(Refusal(431 if self._in_head else 400))
            return

    def _refuse(self, refusal: Refusal) -> None:
        if not self._ended:
            self._ended = True
            self.began = False
            self.events.append(refusal)

    def _upgrade(self, rest: bytes) -> bytes:
        """Go on after a head that names another protocol, where llhttp stops."""
        if self._ended:
            return b""
        if self._request.websocket:
            self._ended = True
            self.rest = rest
            return b""
        # Any other protocol is declined by answering in HTTP.  llhttp has left out the body, so the
        # request is parsed once more, without the header that made it stop.
        while self.events.pop() is not self._request:
            pass
        lines = [b"%b %b HTTP/1.1" % (self._parser.get_method(), self._url)]
        lines += [b"%b: %b" % field for field in self._headers if field[0] != b"upgrade"]
        self._parser = httptools.HttpRequestParser(self)
        return b"\r\n".join(lines) + b"\r\n\r\n" + rest

    # --- called by httptools ---

    def on_message_begin(self) -> None:
        self.began = not self._ended
        self._url = b""
        self._headers = []
        self._telling = []
        self._in_head = True
        self._framing = self._body = 0

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers are dropped.
        if self._in_head:
            name = name.lower()
            self._headers.append((name, value))
            if name in TELLING:
                self._telling.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = self.began = False
        if not self._ended:
            result = self._read_head()
            if isinstance(result, Refusal):
                self._refuse(result)
            else:
                self._request = result
                self.events.append(result)

    def on_body(self, body: bytes) -> None:
        if self._ended:
            return
        self._framing = 0
        self._body += len(body)
        if self._body_bytes is not None and self._body > self._body_bytes:
            self._refuse(Refusal(413))
        else:
            self.events.append(body)

    def on_message_complete(self) -> None:
        # Whatever follows is the next request.
        self._in_head = True
        self._framing = 0
        if not self._ended and self._request.length != 0:
            self.events.append(None)

    # --- what llhttp does not check ---

    def _read_head(self) -> Request | Refusal:
        parser, headers = self._parser, self._headers
        hosts = 0
        length: int | None = 0
        expects_continue = forwarded = False
        upgrade = b""
        for name, value in self._telling:
            if name == b"host":
                hosts += 1
            elif name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                if value.lower() != b"chunked":
                    return Refusal(501, "The transfer encoding is not supported")
                length = None
            elif name == b"expect":
                expects_continue = value.lower() == b"100-continue"
            elif name == b"upgrade":
                upgrade = value.lower()
            else:
                forwarded = True
        size = len(self._url) + sum([len(name) + len(value) + 4 for name, value in headers])
        if size > self._head_bytes:
            return Refusal(431)
        version = parser.get_http_version()
        if version not in ("1.0", "1.1"):
            return Refusal(505)
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            return Refusal(400, "A request needs one Host header")
        if length is None and version == "1.0":
            return Refusal(400, "HTTP/1.0 has no transfer encodings")
        if length and self._body_bytes is not None and length > self._body_bytes:
            return Refusal(413)
        method = parser.get_method().decode("ascii")
        target = self._url
        if not target.startswith(b"/"):
            if target[:8].lower().startswith((b"http://", b"https://")):
                # A client that takes this server for a proxy puts the host into the target.
                after = target.split(b"://", 1)[1]
                slash, query = after.find(b"/"), after.find(b"?")
                start = min(at for at in (slash, query, len(after)) if at >= 0)
                target = after[start:] if slash == start else b"/" + after[start:]
            elif method == "CONNECT":
                return Refusal(501, "This server is not a proxy")
            elif target != b"*" or method != "OPTIONS":
                return Refusal(400)
        if b"#" in target or b"%00" in target:
            return Refusal(400)
        request = Request(method, target, version, headers, parser.should_keep_alive())
        request.length = length
        request.forwarded = forwarded
        request.expects_continue = expects_continue and version == "1.1"
        if upgrade and parser.should_upgrade():
            request.websocket = upgrade == b"websocket" and version == "1.1"
            if request.websocket and (method != "GET" or length != 0):
                return Refusal(400, "A request for a WebSocket is a GET without a body")
        return request
