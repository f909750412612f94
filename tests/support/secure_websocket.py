"""A blocking WebSocket client over TLS.

``websockets.sync`` receives in a thread of its own, and one TLS connection that two threads use may
lose what is sent, or corrupt memory (CPython until 3.13).  This client has one thread for both.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal
from websockets.asyncio.client import ClientConnection, connect

from tests.support.waiting import LIMIT

__all__ = ["SecureWebSocket", "connect_secure"]


class SecureWebSocket:
    """One connection; its methods are those of ``websockets``."""

    def __init__(self, portal: BlockingPortal, connection: ClientConnection) -> None:
        self._portal = portal
        self._connection = connection

    @property
    def close_code(self) -> int | None:
        return self._connection.close_code

    def recv(self) -> str | bytes:
        return self._portal.call(self._recv)

    async def _recv(self) -> str | bytes:
        with anyio.fail_after(LIMIT):
            return await self._connection.recv()

    def send(self, message: str) -> None:
        self._portal.call(self._connection.send, message)

    def close(self, code: int) -> None:
        self._portal.call(self._connection.close, code)


@contextmanager
def connect_secure(url: str, context: ssl.SSLContext, **options: Any) -> Iterator[SecureWebSocket]:
    """Connect, and close at the end."""
    opening = connect(
        url, ssl=context, max_size=None, open_timeout=LIMIT, close_timeout=LIMIT, **options
    )
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(opening) as connection,
    ):
        yield SecureWebSocket(portal, connection)
