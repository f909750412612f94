"""The server: accepting, the limit of connections, and a graceful stop."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import Listener, SocketStream, TaskGroup

import zc_anyio

from .connection import Connection, Limits, is_gone
from .exchange import Handler, HTTPError
from .metrics import Metrics
from .outgoing import abort, open_outgoing

__all__ = ["Limits", "Server"]

log = logging.getLogger("examples.web")

# How many connections above the limit are answered at once; others are reset.
REFUSED_AT_ONCE = 64


class Server:
    """Answers HTTP/1.1 requests by a handler.

    :param ring: the ring that sends; ``None`` for anyio's own streams.
    :ivar stopping: set when the server is being stopped.
    :ivar idle: scopes that a stop need not wait for: between two requests, and endless answers.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        ring: zc_anyio.Ring | None,
        limits: Limits | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.metrics = metrics or Metrics()
        self.stopping = anyio.Event()
        self.handler = handler
        self._ring = ring
        self._connections = 0
        self._refusing = 0
        self._all_closed = anyio.Event()
        self.idle: set[anyio.CancelScope] = set()

    async def serve(self, listener: Listener[SocketStream], stop: anyio.Event) -> None:
        """Serve until ``stop`` is set, then stop gracefully.

        Accepting ends at once, and idle connections are closed; answers under way get
        ``stop_seconds``.  Cancelling closes everything at once.
        """
        async with anyio.create_task_group() as connections:
            async with listener, anyio.create_task_group() as accepting:
                accepting.start_soon(listener.serve, self._accepted, connections)
                await stop.wait()
                accepting.cancel_scope.cancel()
            self.stopping.set()
            for scope in self.idle:
                scope.cancel()
            connections.start_soon(self._end, connections)

    async def _end(self, connections: TaskGroup) -> None:
        with anyio.move_on_after(self.limits.stop_seconds):
            if self._connections:
                await self._all_closed.wait()
        connections.cancel_scope.cancel()

    async def _accepted(self, stream: SocketStream) -> None:
        try:
            if self._connections < self.limits.connections:
                await self._serve(stream)
            else:
                await self._refuse(stream)
        except Exception as exc:
            if not is_gone(exc):
                log.exception("a connection failed")
            await abort(stream)
        finally:
            # A connection that ended well is closed already; a cancelled one is not waited for.
            await anyio.aclose_forcefully(stream)

    async def _serve(self, stream: SocketStream) -> None:
        self._connections += 1
        self.metrics.connections.set(self._connections)
        try:
            async with self._connection(stream) as connection:
                await connection.serve()
        finally:
            self._connections -= 1
            self.metrics.connections.set(self._connections)
            if not self._connections and self.stopping.is_set():
                self._all_closed.set()

    async def _refuse(self, stream: SocketStream) -> None:
        self.metrics.refused.labels("connections").inc()
        if self._refusing >= REFUSED_AT_ONCE:
            raise ConnectionRefusedError
        self._refusing += 1
        try:
            refusal = HTTPError(503, "Too many connections", [("retry-after", "5")])
            async with self._connection(stream) as connection:
                await connection.refuse(refusal)
        finally:
            self._refusing -= 1

    @asynccontextmanager
    async def _connection(self, stream: SocketStream) -> AsyncIterator[Connection]:
        async with open_outgoing(
            stream, ring=self._ring, stall_seconds=self.limits.stall_seconds
        ) as outgoing:
            yield Connection(self, stream, outgoing)
