"""The client's end of the chat: a connection that uses its format, for clients and loads."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import anyio
from anyio.abc import SocketStream
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    RejectConnection,
    Request,
    TextMessage,
)
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from .messages import PICTURE_FRAME_BYTES, encode, join_picture, split_picture
from .websocket import ClosedError, Incoming

__all__ = ["GONE", "ChatConnection", "ChatError", "Received", "connect", "open_connection"]

RECEIVE = 64 << 10
# A welcome names everybody in the room.
TEXT_BYTES = 4 << 20
GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError)


class ChatError(Exception):
    """The server has refused the connection, or ended it.

    :ivar code: the code of its close frame, or ``None``.
    """

    def __init__(self, reason: str, code: int | None = None) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, slots=True)
class Received:
    """A message to a member.

    :ivar fields: as in ``messages``.
    :ivar content: the content of a picture.
    """

    fields: dict[str, Any]
    content: bytes | None = None

    @property
    def type(self) -> str:
        return str(self.fields["type"])


class ChatConnection:
    """A member's end of the connection.

    :ivar receive_bytes: the most that is received at a time.
    """

    def __init__(self, stream: SocketStream, websocket: WSConnection) -> None:
        assert websocket.connection is not None
        self.stream = stream
        self.receive_bytes = RECEIVE
        self._websocket = websocket.connection
        self._incoming = Incoming(
            self._websocket, text_bytes=TEXT_BYTES, binary_bytes=PICTURE_FRAME_BYTES
        )
        self._sending = anyio.Lock()

    async def say(self, nonce: str, text: str) -> None:
        """Send a text."""
        data = encode(type="say", nonce=nonce, text=text).decode()
        await self._send(TextMessage(data=data))

    async def fetch(self, ident: str) -> None:
        """Ask for a picture of the history."""
        await self._send(TextMessage(data=encode(type="fetch", id=ident).decode()))

    async def drop_picture(self, nonce: str, name: str, content: bytes) -> None:
        """Send a picture."""
        header = encode(nonce=nonce, name=name)
        await self._send(BytesMessage(data=join_picture(header, content)))

    async def close(self) -> None:
        """Send a close frame."""
        await self._send(CloseConnection(code=CloseReason.NORMAL_CLOSURE))

    async def messages(self) -> AsyncGenerator[Received, None]:
        """Receive until the server ends the connection.

        :raises ChatError: it has ended for another reason than :meth:`close`.
        """
        # Bytes that came with the answer to the handshake are in the parser already.
        received = b""
        try:
            while True:
                for message in self._incoming.feed(received):
                    match message:
                        case str():
                            yield Received(json.loads(message))
                        case bytes():
                            yield Received(*split_picture(message))
                        case Ping():
                            await self._send(Pong(payload=bytes(message.payload)))
                received = await self.stream.receive(self.receive_bytes)
        except ClosedError as closed:
            if closed.code != CloseReason.NORMAL_CLOSURE:
                raise ChatError(closed.reason or "closed by the server", closed.code) from None
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            raise ChatError("the connection was lost") from None

    async def _send(self, event: Any) -> None:
        # One frame after the other, whichever task sends it.
        async with self._sending:
            await self.stream.send(self._websocket.send(event))


async def open_connection(
    stream: SocketStream, *, host: str, room: str, name: str
) -> ChatConnection:
    """Enter a room over an open connection.

    :param host: as in the URL.
    :raises ChatError: the server refuses it.
    """
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
    return ChatConnection(stream, websocket)


@asynccontextmanager
async def connect(url: str, *, room: str, name: str) -> AsyncIterator[ChatConnection]:
    """Connect to a chat server, ``http://host:port/``, and enter a room.

    :raises ChatError: the server refuses the connection.
    :raises OSError: the server cannot be reached.
    """
    parts = urlsplit(url)
    if parts.hostname is None:
        raise ChatError(f"{url} names no host")
    async with await anyio.connect_tcp(parts.hostname, parts.port or 80) as stream:
        connection = await open_connection(stream, host=parts.netloc, room=room, name=name)
        yield connection
        # The connection may be closed by the server, or lost.
        with suppress(*GONE, LocalProtocolError):
            await connection.close()
