"""Connections to the peer: the library's own, anyio's, trio's and plain sockets."""

from __future__ import annotations

import itertools
import os
import random
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.abc import SocketAttribute

import zc_anyio
from tests.soak import frames, peer

# What may come of a connection whose peer does not read, or that was cut short.
LOSSES = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)
CALM = (peer.READ, peer.READ_SLOWLY)
SIZES = (1, 100, 1000, 4000, 15_000, 17_000, 66_000, 300_000, 1 << 20, 3 << 20)
MOST_TO_SLOW_PEERS = 66_000
ANSWER_SECONDS = 30
MOST_STALL = 700  # milliseconds
# What a talking peer writes has arrived by then, or the event loop has received it ahead.
TALK_SECONDS = 2


@dataclass(frozen=True)
class Place:
    """Where the peer listens."""

    tcp: int
    small: int
    """Its sockets take little that is not read."""
    udp: int
    unix: str


def kinds() -> list[str]:
    """The kinds of connection that this event loop has."""
    own = ["own", "own", "unix", "anyio", "plain", "plain"]
    return own + ["trio"] * ("trio" in sys.modules and is_trio())


def is_trio() -> bool:
    """Whether trio runs here."""
    import sniffio

    return sniffio.current_async_library() == "trio"


async def connect(kind: str, place: Place, *, small: bool) -> Any:
    """Connect to the peer."""
    port = place.small if small else place.tcp
    if kind == "own":
        return await zc_anyio.connect_tcp("127.0.0.1", port)
    if kind == "unix":
        return await zc_anyio.connect_unix(place.unix)
    if kind == "anyio":
        return await anyio.connect_tcp("127.0.0.1", port)
    if kind == "trio":
        import trio

        return await trio.open_tcp_stream("127.0.0.1", port)
    sock = socket.create_connection(("127.0.0.1", port))
    sock.setblocking(False)
    return sock


class Link:
    """One connection, and how many frames have been sent on it.

    :ivar is_calm: the peer reads all of it.
    :ivar spoiled: something of it was lost, so that the peer cannot know how much there was.
    """

    def __init__(self, kind: str, stream: Any, behaviour: int, source: int) -> None:
        self.kind = kind
        self.stream = stream
        self.behaviour = behaviour
        self.source = source
        self.is_calm = behaviour in CALM
        self.spoiled = False
        self.count = 0

    @classmethod
    async def open(
        cls, rng: random.Random, place: Place, source: int, behaviour: int, kind: str | None = None
    ) -> Link:
        """Connect, and tell the peer how to behave."""
        kind = kind or rng.choice(kinds())
        stream = await connect(kind, place, small=behaviour != peer.READ or rng.random() < 0.2)
        link = cls(kind, stream, behaviour, source)
        most = MOST_STALL if behaviour in (peer.STALL, peer.STALL_AND_CLOSE) else 3000
        hello = frames.header(frames.HELLO, behaviour, rng.randrange(most))
        try:
            async with zc_anyio.send_group() as group:
                await group.send(stream, hello)
        except BaseException:
            await link.close()
            raise
        if behaviour == peer.TALK:
            await link.until_talked()
        return link

    @property
    def is_own(self) -> bool:
        return self.kind in ("own", "unix")

    def size(self, rng: random.Random) -> int:
        """Choose how long a frame is."""
        size = rng.choice(SIZES)
        return min(size, MOST_TO_SLOW_PEERS) if self.behaviour == peer.READ_SLOWLY else size

    async def finish(self) -> None:
        """Send the end, and wait until the peer says that everything has arrived."""
        end = frames.header(frames.END, number=self.count)
        with anyio.fail_after(ANSWER_SECONDS):
            async with zc_anyio.send_group() as group:
                await group.send(self.stream, end)
            answer = await self._receive()
        if answer != peer.ANSWER:
            raise frames.WrongBytesError(f"the peer answers {answer!r} on {self.kind}")

    async def _receive(self) -> bytes:
        if self.kind == "plain":
            while True:
                await anyio.wait_readable(self.stream)
                # A notification of MSG_ZEROCOPY wakes whoever polls the socket.
                with suppress(BlockingIOError):
                    return bytes(self.stream.recv(100))
        if self.kind == "trio":
            return bytes(await self.stream.receive_some(100))
        return bytes(await self.stream.receive(100))

    async def until_talked(self) -> None:
        """Wait for the peer's bytes: closing a socket with bytes unread resets its connection."""
        with anyio.move_on_after(TALK_SECONDS):
            while not self._has_unread():
                await anyio.sleep(0.005)

    def _has_unread(self) -> bool:
        if self.is_own:
            return bool(self.stream.is_readable())
        if self.kind == "anyio":
            fd = self.stream.extra(SocketAttribute.raw_socket).fileno()
        else:
            fd = (self.stream if self.kind == "plain" else self.stream.socket).fileno()
        with socket.socket(fileno=os.dup(fd)) as sock:
            try:
                return sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
            except BlockingIOError:
                return False

    async def close(self) -> None:
        """Close it as its program would."""
        if self.kind == "plain":
            self.stream.close()
        else:
            await self.stream.aclose()


class Numbers:
    """The numbers of a source's frames."""

    def __init__(self, source: int) -> None:
        self.source = source
        self._numbers = itertools.count()

    def frame(self, size: int) -> bytes:
        """Return the next frame."""
        return frames.frame(self.source, next(self._numbers), size)

    def parts(self, size: int) -> list[bytes | memoryview]:
        """Return the next frame in parts: its header, and pieces of its body, one of them empty."""
        number = next(self._numbers)
        body = frames.body(self.source, number, size)
        middle = size // 2
        head = frames.header(frames.DATA, self.source, number, size)
        return [head, body[:middle], b"", body[middle:]]
