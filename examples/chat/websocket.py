"""WebSocket over bytes, by wsproto: frames to send, and whole messages from what is received."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from wsproto import ConnectionType
from wsproto.connection import Connection, ConnectionState
from wsproto.events import (
    BytesMessage,
    CloseConnection,
    Ping,
    Pong,
    TextMessage,
)
from wsproto.frame_protocol import CloseReason

__all__ = [
    "PING",
    "ClosedError",
    "Incoming",
    "TooBigError",
    "binary_frame",
    "close_frame",
    "pong_frame",
    "text_frame",
]

# A server's frames are not masked, and without extensions they have no state.  So one connection
# object makes the frames for all, and the same bytes go to every member.
_framer = Connection(ConnectionType.SERVER)


def text_frame(data: bytes) -> bytes:
    """Return an unmasked text frame."""
    return _framer.send(TextMessage(data=data.decode()))


def binary_frame(data: bytes) -> bytes:
    """Return an unmasked binary frame."""
    return _framer.send(BytesMessage(data=data))


def close_frame(code: int, reason: str) -> bytes:
    """Return an unmasked close frame."""
    # Closing changes the state, so a close frame needs a connection object of its own.
    return Connection(ConnectionType.SERVER).send(CloseConnection(code=code, reason=reason))


def pong_frame(payload: bytes) -> bytes:
    """Return an unmasked pong frame."""
    return _framer.send(Pong(payload=payload))


PING = _framer.send(Ping())


class TooBigError(Exception):
    """A message is larger than the limit."""


class ClosedError(Exception):
    """The peer has sent a close frame, or has violated the protocol.

    :ivar violation: it has violated the protocol; ``code`` and ``reason`` are for the peer then.
    """

    def __init__(self, code: int, reason: str, *, violation: bool) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.violation = violation


Message: TypeAlias = str | bytes | Ping | Pong


class Incoming:
    """Whole messages from the bytes that a connection receives.

    :param text_bytes: about the most that a text message may have; characters are counted.
    :param binary_bytes: the most that a binary message may have.
    :ivar frames: how many frames came.
    :ivar partial: bytes of a message that has not ended.
    """

    def __init__(self, connection: Connection, *, text_bytes: int, binary_bytes: int) -> None:
        self.connection = connection
        self.frames = 0
        self.partial = 0
        self._text: list[str] = []
        self._binary: list[bytes] = []
        self._text_bytes = text_bytes
        self._binary_bytes = binary_bytes

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take in bytes, and return the messages that they complete.

        :raises TooBigError: a message is larger than the limit, as soon as that is known.
        :raises ClosedError: the peer closes, or violates the protocol (UTF-8 and frames).
        """
        self.connection.receive_data(data)
        for event in self.connection.events():
            match event:
                case TextMessage():
                    self._text.append(event.data)
                    self._count(event, self._text_bytes)
                    if event.message_finished:
                        whole = "".join(self._text)
                        self._text.clear()
                        yield whole
                case BytesMessage():
                    self._binary.append(bytes(event.data))
                    self._count(event, self._binary_bytes)
                    if event.message_finished:
                        joined = b"".join(self._binary)
                        self._binary.clear()
                        yield joined
                case Ping() | Pong():
                    self.frames += 1
                    yield event
                case CloseConnection():
                    # wsproto reports a violation by the peer as if it were the peer's close frame.
                    violation = self.connection.state is ConnectionState.OPEN
                    code = event.code or CloseReason.NORMAL_CLOSURE
                    raise ClosedError(code, event.reason or "", violation=violation)

    def _count(self, event: TextMessage | BytesMessage, most: int) -> None:
        self.frames += event.frame_finished
        self.partial += len(event.data)
        if self.partial > most:
            raise TooBigError
        if event.message_finished:
            self.partial = 0
