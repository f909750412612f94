"""A WebSocket, as an ASGI application sees it; wsproto has the protocol, and compresses.

Only messages that are not compressed are framed here, so that large ones leave without a copy.
"""

from __future__ import annotations

import logging
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import anyio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason
from wsproto.handshake import server_extensions_handshake
from wsproto.utilities import generate_accept_token

from ._exchange import Message
from ._heads import END, check_name, join_lines, refusal_bytes, status_line
from ._http1 import Refusal, Request
from ._peer import ClientDisconnectedError, Peer, is_disconnect

__all__ = ["WebSocket", "websocket_frame"]

log = logging.getLogger("zc_anyio.asgi")

# When the application has this much to take, nothing more is received.
PENDING_BYTES = 64 << 10
PENDING_MESSAGES = 32
# Frames that bring the application nothing, such as pings and empty fragments: so many may come at
# once, and so many a second in the long run.
IDLE_FRAMES = 1000
IDLE_FRAMES_RATE = 100
# A piece may become a thousand times as large when inflated, before its size is seen.
COMPRESSED_PIECE = 4 << 10

VERSION = b"13"
# The first byte of a message that is one frame.
TEXT, BINARY = 0x81, 0x82
Fields: TypeAlias = Iterable[tuple[bytes, bytes]]


def websocket_frame(data: str | bytes) -> bytes:
    """Return a message as an unmasked frame, to be broadcast to WebSockets of this server.

    It is not compressed, which clients with ``permessage-deflate`` accept as well.

    :param data: a text or a binary message.
    """
    return b"".join(_frame(data))


def _frame(data: str | bytes) -> tuple[bytes, bytes]:
    """Return a message as one unmasked frame: its head, and its payload (RFC 6455, 5.2)."""
    first, payload = (TEXT, data.encode()) if isinstance(data, str) else (BINARY, data)
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", first, size), payload
    if size < 1 << 16:
        return struct.pack("!BBH", first, 126, size), payload
    return struct.pack("!BBQ", first, 127, size), payload


class WebSocket:
    """One WebSocket, from the request on.

    :param opened: called with how the request was answered, for the log.
    :ivar subprotocols: the subprotocols that the client offers.
    """

    def __init__(self, peer: Peer, request: Request, opened: Callable[[str], None]) -> None:
        self.subprotocols = [
            value.decode("latin-1") for value in request.values(b"sec-websocket-protocol")
        ]
        self._peer = peer
        self._request = request
        self._opened = opened
        self._connection: Connection | None = None
        self._compressed = False
        self._sending = anyio.Lock(fast_acquire=True)
        # The messages that the application gets next, and what wakes it.
        self._messages: deque[tuple[int, Message]] = deque([(0, {"type": "websocket.connect"})])
        self._pending = 0
        self._arrived = anyio.Event()
        self._taken = anyio.Event()
        self._parts: list[Any] = []
        self._size = 0
        self._disconnected: Message | None = None
        self._closed = False
        # A response in place of the handshake, until its body has come.
        self._denial: list[bytes] | None = None
        self._answered = False
        self._heard = True
        self._pinged = time.monotonic()
        self._idle_frames = 0.0
        self._idle_since = self._pinged

    async def run(self, app: Any, scope: Any) -> None:
        """Call the application, and end the WebSocket after it.

        :raises ClientDisconnectedError: the peer is gone.
        """
        if (refusal := self._refusal()) is not None:
            await self._peer.send([refusal])
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._receive_all)
            code = CloseReason.NORMAL_CLOSURE
            given_up = False
            try:
                await app(scope, self.receive, self.send)
            except Exception as exc:
                given_up = is_disconnect(exc) and self._disconnected is None
                if not is_disconnect(exc):
                    log.exception("Exception in ASGI application")
                code = CloseReason.INTERNAL_ERROR
            tasks.cancel_scope.cancel()
        if given_up:
            raise ClientDisconnectedError("the application has given the client up")
        if self._connection is None:
            if not self._answered:
                log.error("ASGI callable returned without accepting or closing the WebSocket.")
                self._opened("500")
                await self._peer.send([refusal_bytes(Refusal(500))])
        elif not self._closed and self._disconnected is None:
            await self._close(code, "")

    def _refusal(self) -> bytes | None:
        """Return the answer to a request that is not for a WebSocket."""
        version = self._request.values(b"sec-websocket-version")
        if version != [VERSION]:
            lines = [status_line(426), b"sec-websocket-version: " + VERSION, b"content-length: 0"]
            return join_lines([*lines, b"connection: close"]) + END
        if len(self._request.values(b"sec-websocket-key")) != 1:
            return refusal_bytes(Refusal(400))
        return None

    # --- receive ---

    async def receive(self) -> Message:
        """The application's ``receive``."""
        while not self._messages:
            if self._disconnected is not None:
                await anyio.lowlevel.checkpoint()
                return self._disconnected
            self._arrived = anyio.Event()
            await self._arrived.wait()
        size, message = self._messages.popleft()
        self._pending -= size
        self._taken.set()
        return message

    async def _receive_all(self) -> None:
        """Receive until the peer or the protocol ends it."""
        # Frames that come before the answer wait in the socket.
        while self._connection is None:
            self._taken = anyio.Event()
            await self._taken.wait()
        data = self._peer.parser.rest
        with suppress(ClientDisconnectedError):
            while True:
                for piece in self._pieces(data):
                    if not await self._feed(piece):
                        return
                while self._is_full():
                    self._taken = anyio.Event()
                    await self._taken.wait()
                if not (data := await self._peer.receive()):
                    self._disconnect(CloseReason.ABNORMAL_CLOSURE, "")
                    return
                self._heard = True

    def _pieces(self, data: bytes) -> Iterable[bytes]:
        if not self._compressed:
            return [data]
        return [data[at : at + COMPRESSED_PIECE] for at in range(0, len(data), COMPRESSED_PIECE)]

    def _is_full(self) -> bool:
        return self._pending >= PENDING_BYTES or len(self._messages) >= PENDING_MESSAGES

    async def _feed(self, data: bytes) -> bool:
        """Process received bytes; return ``False`` when the WebSocket has ended."""
        connection = self._connection
        assert connection is not None
        connection.receive_data(data)
        for event in connection.events():
            if not getattr(event, "data", b"") and self._is_flooding():
                await self._fail(CloseReason.POLICY_VIOLATION, "flooding")
                return False
            if isinstance(event, TextMessage | BytesMessage):
                self._size += len(event.data)
                if self._size > self._peer.limits.websocket_bytes:
                    await self._fail(CloseReason.MESSAGE_TOO_BIG, "")
                    return False
                if event.data:
                    self._parts.append(event.data)
                if event.message_finished:
                    self._take_message(text=isinstance(event, TextMessage))
            elif isinstance(event, Ping):
                await self._send_event(event.response())
            elif isinstance(event, CloseConnection):
                # wsproto reports a violation by the peer as if it were the peer's close frame.
                if connection.state is ConnectionState.OPEN:
                    await self._fail(event.code, event.reason or "")
                else:
                    if connection.state is ConnectionState.REMOTE_CLOSING:
                        with suppress(ClientDisconnectedError):
                            await self._send_event(event.response())
                    self._disconnect(event.code, event.reason or "")
                return False
        return True

    def _is_flooding(self) -> bool:
        """Count a frame that brings nothing; whether there have been too many."""
        now = time.monotonic()
        left = self._idle_frames - (now - self._idle_since) * IDLE_FRAMES_RATE
        self._idle_frames, self._idle_since = max(left, 0.0) + 1, now
        return self._idle_frames > IDLE_FRAMES

    def _take_message(self, *, text: bool) -> None:
        parts, size, self._parts, self._size = self._parts, self._size, [], 0
        message: Message = {"type": "websocket.receive"}
        if text:
            message["text"] = parts[0] if len(parts) == 1 else "".join(parts)
        else:
            message["bytes"] = b"".join(parts)
        self._pending += size
        self._messages.append((size, message))
        self._arrived.set()

    async def _fail(self, code: int, reason: str) -> None:
        """Close because the peer has violated the protocol or a limit."""
        with suppress(ClientDisconnectedError):
            await self._close(code, reason)
        self._disconnect(code, reason)

    def _disconnect(self, code: int, reason: str) -> None:
        self._disconnected = {"type": "websocket.disconnect", "code": int(code), "reason": reason}
        self._arrived.set()

    # --- send ---

    async def send(self, message: Message) -> None:
        """The application's ``send``.

        :raises ClientDisconnectedError: the client is gone, or has closed.
        :raises RuntimeError: the message is not allowed here.
        """
        kind = message["type"]
        if self._disconnected is not None:
            raise ClientDisconnectedError("the client is gone")
        if self._connection is None:
            await self._answer(kind, message)
        elif self._closed:
            raise RuntimeError(f"{kind} comes after websocket.close")
        elif kind == "websocket.send":
            text = message.get("text")
            data = message.get("bytes") if text is None else text
            if data is None:
                raise RuntimeError("websocket.send needs bytes or text")
            # What can be changed may change when this has returned.
            immutable = isinstance(data, str | bytes)
            await self._send_message(data if immutable else bytes(memoryview(data)))
        elif kind == "websocket.close":
            await self._close(message.get("code", 1000), message.get("reason") or "")
        else:
            raise RuntimeError(f"{kind} comes after websocket.accept")

    async def _answer(self, kind: str, message: Message) -> None:
        if self._denial is None and self._answered:
            raise RuntimeError(f"{kind} comes after the end of the response")
        if kind == "websocket.accept" and self._denial is None:
            await self._accept(message.get("subprotocol"), message.get("headers", ()))
        elif kind == "websocket.close" and self._denial is None:
            self._answered = True
            self._opened("403")
            await self._peer.send([refusal_bytes(Refusal(403))])
            self._disconnect(CloseReason.ABNORMAL_CLOSURE, "")
        elif kind == "websocket.http.response.start" and self._denial is None:
            self._answered = True
            self._opened(str(message["status"]))
            names = (b"connection", b"transfer-encoding")
            fields = [
                field for field in message.get("headers", ()) if field[0].lower() not in names
            ]
            self._denial = [status_line(message["status"]), *_lines(fields), b"connection: close"]
        elif kind == "websocket.http.response.body" and self._denial is not None:
            # Without a Content-Length the body ends with the connection.
            head, self._denial = self._denial, []
            parts = [join_lines(head) + END] if head else []
            await self._peer.send([*parts, bytes(memoryview(message.get("body", b"")))])
            if not message.get("more_body", False):
                self._denial = None
                self._disconnect(CloseReason.ABNORMAL_CLOSURE, "")
        else:
            raise RuntimeError(f"{kind} comes before websocket.accept")

    async def _accept(self, subprotocol: str | None, fields: Fields) -> None:
        request = self._request
        (key,) = request.values(b"sec-websocket-key")
        lines = [
            b"HTTP/1.1 101 Switching Protocols",
            b"upgrade: websocket",
            b"connection: Upgrade",
            b"sec-websocket-accept: " + generate_accept_token(key),
        ]
        if subprotocol is not None:
            lines.append(b"sec-websocket-protocol: " + subprotocol.encode("ascii"))
        offers = [o.decode("latin-1") for o in request.values(b"sec-websocket-extensions") if o]
        deflate = PerMessageDeflate()
        try:
            accepted = server_extensions_handshake(offers, [deflate])
        except ValueError:
            # A parameter is not a number.
            accepted = None
        if accepted:
            lines.append(b"sec-websocket-extensions: " + accepted)
            self._compressed = True
        await self._peer.send([join_lines([*lines, *_lines(fields)]) + END])
        self._connection = Connection(ConnectionType.SERVER, [deflate] if accepted else [])
        self._answered = True
        self._opened("[accepted]")
        self._taken.set()

    async def _close(self, code: int, reason: str) -> None:
        if not self._closed:
            self._closed = True
            await self._send_event(CloseConnection(code=code, reason=reason), last=True)

    async def _send_message(self, data: str | bytes) -> None:
        connection = self._connection
        assert connection is not None
        frame: Sequence[bytes] = () if self._compressed else _frame(data)
        if (
            frame
            # Nothing may come between the parts of what another task is sending.
            and not self._sending.locked()
            and connection.state is ConnectionState.OPEN
            and self._peer.send_at_once(frame)
        ):
            return
        async with self._sending:
            if self._closed:
                return
            if connection.state is not ConnectionState.OPEN:
                raise ClientDisconnectedError("the client has closed")
            if not frame:
                message: Event = (
                    TextMessage(data=data) if isinstance(data, str) else BytesMessage(data=data)
                )
                frame = [connection.send(message)]
            await self._peer.send(frame)

    async def _send_event(self, event: Event, *, last: bool = False) -> None:
        """Frame an event and send it; one frame after the other, whichever task sends it."""
        connection = self._connection
        assert connection is not None
        async with self._sending:
            if self._closed and not last:
                return
            await self._peer.send([connection.send(event)])

    # --- keeping alive ---

    def is_due(self, now: float) -> bool:
        """Whether the peer has to be pinged; it is dropped if it has not answered the last ping."""
        seconds = self._peer.limits.websocket_ping_seconds
        if self._connection is None or now - self._pinged < seconds:
            return False
        self._pinged = now
        heard, self._heard = self._heard, False
        if not heard and not self._is_full():
            self._peer.stop_receiving()
            return False
        return not self._sending.locked()

    async def ping(self) -> None:
        """Send a ping."""
        with suppress(ClientDisconnectedError):
            await self._send_event(Ping())

    async def go_away(self) -> None:
        """Close because the server stops."""
        if self._connection is not None:
            await self._fail(CloseReason.SERVICE_RESTART, "")


def _lines(fields: Fields) -> list[bytes]:
    for name, _ in fields:
        check_name(name)
    return [b"%b: %b" % field for field in fields]
