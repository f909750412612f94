"""A chat server in the test's own event loop, and members that talk to it over real sockets."""

from __future__ import annotations

import itertools
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import anyio
from anyio.abc import SocketStream, TaskStatus

import zc_anyio
from examples.chat.__main__ import parse, serve_chat
from examples.chat.connection import ChatConnection, ChatError, open_connection
from examples.chat.limits import ChatLimits
from tests.support.waiting import LIMIT

PNG = b"\x89PNG\r\n\x1a\n"
# Nothing is refused or dropped for being fast or slow, unless a test is about that.
LIMITS = ChatLimits(
    message_rate=1000,
    message_burst=10_000,
    picture_burst=1 << 30,
    address_rooms=1000,
    lag_seconds=LIMIT,
    ping_seconds=LIMIT,
    close_seconds=LIMIT,
)


class Running:
    """A server in this event loop.

    :ivar ring: what it sends with.
    """

    def __init__(self, url: str, ring: zc_anyio.Ring) -> None:
        self.url = f"{url}/"
        self.host = urlsplit(url).netloc
        self.ring = ring
        self.port = int(url.rpartition(":")[2])


@asynccontextmanager
async def chat_server(
    *arguments: str, limits: ChatLimits = LIMITS, **changed: Any
) -> AsyncIterator[Running]:
    """Run a chat server for the length of a scope, and stop it gracefully at its end.

    :param arguments: arguments of the command line.
    :param changed: limits that differ from those of the other tests.
    """
    options = parse(["--port=0", "--no-access-log", *arguments])
    stop = anyio.Event()
    async with (
        zc_anyio.open_ring(driver=options.driver) as ring,
        anyio.create_task_group() as tasks,
    ):

        async def run(*, task_status: TaskStatus[list[str]]) -> None:
            await serve_chat(
                options, replace(limits, **changed), ring=ring, stop=stop, task_status=task_status
            )

        (url,) = await tasks.start(run)
        yield Running(url, ring)
        stop.set()


class Member:
    """A member of a room."""

    def __init__(self, connection: ChatConnection) -> None:
        self.connection = connection
        self.welcome: dict[str, Any] = {}
        self.messages = connection.messages()
        self._nonces = map(str, itertools.count(1))

    async def receive(self, *types: str) -> dict[str, Any]:
        """Receive the next message of these types; others are passed over."""
        with anyio.fail_after(LIMIT):
            async for message in self.messages:
                if message["type"] in types:
                    return message
        raise AssertionError("the connection was closed")

    async def receive_texts(self, count: int) -> list[str]:
        """Receive ``count`` messages, and return their texts."""
        return [(await self.receive("message"))["text"] for _ in range(count)]

    async def say(self, text: str) -> str:
        """Say something, and return its nonce."""
        nonce = next(self._nonces)
        await self.connection.say(nonce, text)
        return nonce

    async def say_and_wait(self, text: str) -> dict[str, Any]:
        """Say something, and return the acknowledgement."""
        nonce = await self.say(text)
        answer = await self.receive("ack", "refused")
        assert answer["nonce"] == nonce
        return answer

    async def post_picture(
        self, content: bytes, name: str = "a picture.png", preview: bytes = b""
    ) -> str:
        """Post a picture, and return its nonce."""
        nonce = next(self._nonces)
        await self.connection.post_picture(nonce, name, content, preview)
        return nonce

    async def see_picture(self) -> bytes | None:
        """Receive what is told of the next picture, and fetch it."""
        return await self.connection.picture((await self.receive("image"))["id"])

    async def closed(self) -> ChatError:
        """Receive until the server ends the connection, and return how."""
        with anyio.fail_after(LIMIT):
            try:
                async for _ in self.messages:
                    pass
            except ChatError as exc:
                return exc
        raise AssertionError("the connection was closed as asked")


@asynccontextmanager
async def member(
    server: Running,
    name: str,
    *,
    room: str = "lobby",
    receive_buffer: int | None = None,
) -> AsyncIterator[Member]:
    """Be a member of a room for the length of a scope."""
    async with await stream_to(server, receive_buffer=receive_buffer) as stream:
        connection = await open_connection(stream, url=server.url, room=room, name=name)
        joined = Member(connection)
        async with aclosing(joined.messages):
            joined.welcome = await joined.receive("welcome")
            yield joined


async def stream_to(server: Running, *, receive_buffer: int | None = None) -> SocketStream:
    """Connect to a server; a small receive buffer imitates a peer that is far away."""
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.connect(("127.0.0.1", server.port))
    sock.setblocking(False)
    return await SocketStream.from_socket(sock)
