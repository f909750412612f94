"""The client's end of the chat: a connection that uses its format, for clients and loads."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.error import HTTPError
from urllib.parse import SplitResult, quote, urlencode, urlsplit
from urllib.request import urlopen

import anyio
import anyio.to_thread
from anyio.abc import ByteStream
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    CloseConnection,
    Ping,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from .messages import encode

__all__ = ["GONE", "ChatConnection", "ChatError", "connect", "open_connection"]

RECEIVE = 64 << 10
REQUEST_SECONDS = 60.0
GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError)


class ChatError(Exception):
    """The server has refused the connection, or ended it.

    :ivar code: the code of its close frame, or ``None``.
    """

    def __init__(self, reason: str, code: int | None = None) -> None:
        super().__init__(reason)
        self.code = code


class ChatConnection:
    """A member's end of the connection.

    :ivar receive_bytes: the most that is received at a time.
    """

    def __init__(self, stream: ByteStream, websocket: WSConnection, url: str) -> None:
        self.stream = stream
        self.receive_bytes = RECEIVE
        self.room = self.token = ""
        self._websocket = websocket
        self._url = url
        self._sending = anyio.Lock()

    async def say(self, nonce: str, text: str) -> None:
        """Send a text."""
        data = encode(type="say", nonce=nonce, text=text).decode()
        await self._send(TextMessage(data=data))

    async def post_picture(
        self, nonce: str, name: str, content: bytes, preview: bytes = b""
    ) -> None:
        """Post a picture; what becomes of it is told by a message.

        :param preview: a small picture, which others may show instead.
        :raises OSError: the server cannot be reached.
        """
        fields = {"token": self.token, "nonce": nonce, "name": name, "preview": len(preview)}
        await self._request(f"pictures?{urlencode(fields)}", preview + content)

    async def picture(self, ident: str) -> bytes | None:
        """Fetch a picture; ``None`` if it is not kept any more.

        :raises OSError: the server cannot be reached.
        """
        return await self._request(f"pictures/{quote(self.room)}/{quote(ident)}", None)

    async def _request(self, target: str, content: bytes | None) -> bytes | None:
        def ask() -> bytes | None:
            try:
                with urlopen(f"{self._url}{target}", content, timeout=REQUEST_SECONDS) as answer:
                    return bytes(answer.read())
            except HTTPError as exc:
                exc.close()
                return None

        return await anyio.to_thread.run_sync(ask)

    async def close(self) -> None:
        """Send a close frame."""
        await self._send(CloseConnection(code=CloseReason.NORMAL_CLOSURE))

    async def messages(self) -> AsyncGenerator[dict[str, Any], None]:
        """Receive until the server ends the connection.

        :raises ChatError: it has ended for another reason than :meth:`close`.
        """
        text = ""
        try:
            while True:
                # Bytes that came with the answer to the handshake are in the parser already.
                for event in self._websocket.events():
                    match event:
                        case TextMessage():
                            text += event.data
                            if event.message_finished:
                                fields: dict[str, Any] = json.loads(text)
                                text = ""
                                if fields["type"] == "welcome":
                                    self.room, self.token = fields["room"], fields["token"]
                                yield fields
                        case Ping():
                            await self._send(event.response())
                        case CloseConnection():
                            if event.code != CloseReason.NORMAL_CLOSURE:
                                reason = event.reason or "closed by the server"
                                raise ChatError(reason, event.code)
                            return
                self._websocket.receive_data(await self.stream.receive(self.receive_bytes))
        except (anyio.EndOfStream, anyio.BrokenResourceError, RemoteProtocolError):
            raise ChatError("the connection was lost") from None

    async def _send(self, event: Any) -> None:
        # One frame after the other, whichever task sends it.
        async with self._sending:
            await self.stream.send(self._websocket.send(event))


async def open_connection(stream: ByteStream, *, url: str, room: str, name: str) -> ChatConnection:
    """Enter a room over an open connection.

    :param url: the server's, with a slash at its end.
    :raises ChatError: the server refuses it.
    """
    host = urlsplit(url).netloc
    websocket = WSConnection(ConnectionType.CLIENT)
    target = f"/chat?{urlencode({'room': room, 'name': name})}"
    await stream.send(websocket.send(Request(host=host, target=target)))
    while websocket.connection is None:
        try:
            websocket.receive_data(await stream.receive(RECEIVE))
        except anyio.EndOfStream:
            raise ChatError("the server has closed the connection") from None
        except RemoteProtocolError as exc:
            raise ChatError(f"this is not a chat server: {exc}") from None
        for event in websocket.events():
            if isinstance(event, RejectConnection):
                raise ChatError(f"the server answers {event.status_code}")
            if isinstance(event, AcceptConnection):
                break
    return ChatConnection(stream, websocket, url)


async def _connect(parts: SplitResult) -> ByteStream:
    assert parts.hostname is not None
    if parts.scheme != "https":
        return await anyio.connect_tcp(parts.hostname, parts.port or 80)
    return await anyio.connect_tcp(
        parts.hostname, parts.port or 443, tls=True, tls_standard_compatible=False
    )


@asynccontextmanager
async def connect(url: str, *, room: str, name: str) -> AsyncIterator[ChatConnection]:
    """Connect to a chat server, ``http://host:port/`` or ``https:``, and enter a room.

    :raises ChatError: the server refuses the connection.
    :raises OSError: the server cannot be reached.
    """
    parts = urlsplit(url)
    if parts.hostname is None:
        raise ChatError(f"{url} names no host")
    async with await _connect(parts) as stream:
        connection = await open_connection(stream, url=url, room=room, name=name)
        yield connection
        # The connection may be closed by the server, or lost.
        with suppress(*GONE, LocalProtocolError):
            await connection.close()
