"""Streams of this library's own, connected to each other or to a plain socket."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel

from tests.support.peers import SMALL_BUFFER, tcp_pair
from zc_anyio import ZeroCopySocketStream, ZeroCopyUNIXSocketStream, current_ring

# What waits in a stream that is clogged, or that nothing comes to.
BLOCKED: dict[str, Callable[[ZeroCopySocketStream], Awaitable[Any]]] = {
    "send": lambda stream: stream.send(b"x"),
    "send of a changeable buffer": lambda stream: stream.send(bytearray(b"x") * (1 << 20)),
    "send_eof": lambda stream: stream.send_eof(),
    "wait_send_might_not_block": lambda stream: stream.wait_send_might_not_block(),
    "receive": lambda stream: stream.receive(),
    "receive_into": lambda stream: stream.receive_into(bytearray(10)),
}


async def stream_pair(
    kind: str = "tcp", *, small: bool = False
) -> tuple[ZeroCopySocketStream, ZeroCopySocketStream]:
    """Connect two streams of the ambient ring.

    :param small: the sockets between them take little.
    """
    if kind == "unix":
        sockets = socket.socketpair()
    else:
        size = SMALL_BUFFER if small else None
        with tcp_pair(send_buffer=size, receive_buffer=size) as (one, other):
            # The pair closes its own.
            sockets = one.dup(), other.dup()
    made = ZeroCopyUNIXSocketStream if kind == "unix" else ZeroCopySocketStream
    first, second = [await made.from_socket(sock) for sock in sockets]
    return first, second


@asynccontextmanager
async def connected(
    kind: str = "tcp", *, small: bool = False
) -> AsyncIterator[tuple[ZeroCopySocketStream, ZeroCopySocketStream]]:
    """Connect two streams for the length of a scope; see :func:`stream_pair`."""
    one, other = await stream_pair(kind, small=small)
    async with one, other:
        yield one, other


@asynccontextmanager
async def facing(
    *, small: bool = False, receive_buffer: int | None = None
) -> AsyncIterator[tuple[ZeroCopySocketStream, socket.socket]]:
    """Connect a stream to a plain blocking socket.

    :param small: the sockets between them take little.
    """
    size = SMALL_BUFFER if small else None
    with tcp_pair(send_buffer=size, receive_buffer=receive_buffer or size) as (client, peer):
        async with await ZeroCopySocketStream.from_socket(client.dup()) as stream:
            client.close()
            yield stream, peer


async def settle() -> None:
    """Let the other tasks run until they most likely wait."""
    for _ in range(5):
        await anyio.lowlevel.checkpoint()


async def clog(stream: ZeroCopySocketStream) -> None:
    """Send until a call for a single byte would wait, with nobody reading at the other end."""
    ring = current_ring()
    assert ring is not None
    for size in (1 << 20, 1 << 16, 1 << 12, 1 << 8, 1):
        refused = 0
        while refused < 3:
            refused = 0 if stream._output.offer(bytes(size)) else refused + 1
            ring._reaper.turn()
            await settle()


async def outcome(call: Callable[..., Awaitable[Any]], *arguments: Any) -> type[BaseException]:
    """Return the type of the exception that a call raises."""
    try:
        await call(*arguments)
    except Exception as exc:
        return type(exc)
    raise AssertionError("nothing was raised")
