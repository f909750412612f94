"""A program that closes a stream of its own, and what the ring still keeps of it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

import zc_anyio
from tests.support.peers import LARGE_BUFFER, wrap
from tests.support.waiting import LIMIT, until, until_held, until_idle

TCP_NOTSENT_LOWAT = 25
DATA = os.urandom(1 << 20)


async def stream_of(kind: str, sock: socket.socket) -> Any:
    """Make a stream of a connected socket, which belongs to the stream from now on."""
    if kind == "trio stream":
        trio: Any = sys.modules["trio"]
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        # trio lets the kernel take little at a time; these sends should be taken whole.
        sock.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, LARGE_BUFFER)
        return stream
    return sock if kind == "socket" else await wrap(sock)


async def close(stream: Any) -> None:
    if isinstance(stream, socket.socket):
        stream.close()
    else:
        await stream.aclose()


@asynccontextmanager
async def ring_of(driver: str, **options: Any) -> AsyncIterator[zc_anyio.Ring]:
    """Open a ring that zero-copies everything it can."""
    async with zc_anyio.open_ring(
        driver=driver, zero_copy="always", threshold=0, **options
    ) as ring:
        yield ring


async def hold(ring: zc_anyio.Ring, stream: Any, data: Any = DATA) -> None:
    """Have the kernel hold a send whose group was cancelled."""
    with anyio.CancelScope() as scope:
        async with zc_anyio.send_group() as group:
            await group.send(stream, data)
            group.flush()
            if ring.capabilities.driver != "copy":
                await until_held(ring, 1)
            scope.cancel()


async def until_ended(ring: zc_anyio.Ring) -> None:
    """Wait until the ring has ended all connections, or has let go of them."""
    table = ring._sockets
    await until(lambda: len(table._by_inode) == len(table._suspended), "ended connections")


def has_learned(peer: socket.socket) -> bool:
    """Whether the peer's sends are refused."""
    peer.setblocking(False)
    try:
        peer.send(b"?")
    except BlockingIOError:
        return False
    except (ConnectionResetError, BrokenPipeError):
        return True
    finally:
        peer.settimeout(LIMIT)
    return False


async def until_nothing_is_left(ring: zc_anyio.Ring) -> None:
    await until_idle(ring)
    table = ring._sockets
    await until(lambda: not (table._by_ident or table.by_stream))
    assert not table._by_inode
    counters: Any = ring._native.statistics()
    assert (counters.sockets, counters.contexts, counters.allocations) == (0, 0, 0)
    assert ring._reaper.contexts == []
