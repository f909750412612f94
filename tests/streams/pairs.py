"""Pairs of connected streams of this library's own."""

from __future__ import annotations

import socket

from tests.support.peers import SMALL_BUFFER, tcp_pair
from zc_anyio import ZeroCopySocketStream, ZeroCopyUNIXSocketStream


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
