"""The server: accepting, the loop of a connection, limits, and a graceful stop."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import anyio
import h11
from anyio.abc import Listener, SocketStream, TaskGroup

import zc_anyio

from .exchange import Exchange, Handler, HTTPError, Request, idling, read_request, receive
from .metrics import Metrics
from .outgoing import abort, open_outgoing

__all__ = ["Limits", "Server"]

log = logging.getLogger("examples.web")

# The peer went away, or takes nothing.
GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, TimeoutError, ConnectionError)
# So many connections above the limit are told so; the others are reset.
REFUSED_AT_ONCE = 64
# What a peer still sends when it was answered early is read for so long, and so much of it: a
# connection that is closed with bytes unread is reset, and the answer may be lost.
LINGER_SECONDS = 2.0
LINGER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a peer may ask of the server.

    :ivar connections: at once; more are answered 503.
    :ivar header_bytes: of a request's head; more is answered 431.
    :ivar header_seconds: for a request's head to arrive; more is answered 408.
    :ivar idle_seconds: between requests; then the connection is closed.
    :ivar body_seconds: for a request's body to arrive; more is answered 408.
    :ivar stall_seconds: how long a peer may take nothing of an answer; then it is reset.
    :ivar stop_seconds: for what is under way when the server is stopped.
    """

    connections: int = 1000
    header_bytes: int = 16 << 10
    header_seconds: float = 10.0
    idle_seconds: float = 30.0
    body_seconds: float = 30.0
    stall_seconds: float = 20.0
    stop_seconds: float = 5.0


class Server:
    """Answers HTTP/1.1 requests by a handler.

    :param ring: what sends; ``None`` for anyio's own streams.
    :ivar stopping: set when the server is being stopped.
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
        self._handler = handler
        self._ring = ring
        self._connections = 0
        self._refusing = 0
        self._all_closed = anyio.Event()
        # What a stop need not wait for: connections between two requests, endless answers.
        self._idle: set[anyio.CancelScope] = set()

    async def serve(self, listener: Listener[SocketStream], stop: anyio.Event) -> None:
        """Serve until ``stop`` is set, then stop gracefully.

        Accepting ends at once, and idle connections are closed; answers under way have
        ``stop_seconds``.  Cancelling it closes everything at once.
        """
        async with anyio.create_task_group() as connections:
            async with listener, anyio.create_task_group() as accepting:
                accepting.start_soon(listener.serve, self._accepted, connections)
                await stop.wait()
                accepting.cancel_scope.cancel()
            self.stopping.set()
            for scope in self._idle:
                scope.cancel()
            connections.start_soon(self._end, connections)

    async def _end(self, connections: TaskGroup) -> None:
        with anyio.move_on_after(self.limits.stop_seconds):
            if self._connections:
                await self._all_closed.wait()
        connections.cancel_scope.cancel()

    async def _accepted(self, stream: SocketStream) -> None:
        try:
            if self._connections >= self.limits.connections:
                await self._refuse_connection(stream)
                return
            self._connections += 1
            self.metrics.connections.set(self._connections)
            try:
                await self._serve(stream)
            finally:
                self._connections -= 1
                self.metrics.connections.set(self._connections)
                if not self._connections and self.stopping.is_set():
                    self._all_closed.set()
        except Exception as exc:
            if not _is_gone(exc):
                log.exception("a connection failed")
            await abort(stream)
        finally:
            # Already closed by what went well; a cancelled one is not waited for.
            await anyio.aclose_forcefully(stream)

    async def _refuse_connection(self, stream: SocketStream) -> None:
        self.metrics.refused.labels("connections").inc()
        if self._refusing >= REFUSED_AT_ONCE:
            await abort(stream)
            return
        self._refusing += 1
        try:
            refusal = HTTPError(503, "Too many connections", [("retry-after", "5")])
            await self._refuse(stream, h11.Connection(h11.SERVER), refusal)
        finally:
            self._refusing -= 1

    async def _serve(self, stream: SocketStream) -> None:
        """Answer the requests of one connection."""
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=self.limits.header_bytes)
        first = True
        while True:
            try:
                request = await self._next_request(stream, http, first)
            except HTTPError as refusal:
                await self._refuse(stream, http, refusal)
                return
            if request is None:
                await stream.aclose()
                return
            first = False
            async with self._exchange(stream, http, request) as exchange:
                await self._handle(request, exchange)
            if exchange.status is not None:
                self.metrics.requests.labels(str(exchange.status)).inc()
            if exchange.taken_over:
                await stream.aclose()
                return
            if not _can_go_on(http):
                await _linger(stream)
                return
            http.start_next_cycle()

    @asynccontextmanager
    async def _exchange(
        self, stream: SocketStream, http: h11.Connection, request: Request | None
    ) -> AsyncIterator[Exchange]:
        async with open_outgoing(
            stream, ring=self._ring, stall_seconds=self.limits.stall_seconds
        ) as outgoing:
            exchange = Exchange(
                http,
                request,
                stream,
                outgoing,
                stopping=self.stopping,
                idle=self._idle,
                body_seconds=self.limits.body_seconds,
            )
            yield exchange
            if not exchange.taken_over:
                await exchange.finish()

    async def _handle(self, request: Request, exchange: Exchange) -> None:
        try:
            await self._handler(request, exchange)
        except HTTPError as refusal:
            if exchange.status is not None or exchange.taken_over:
                raise
            await exchange.refuse(refusal)
        except Exception as exc:
            if _is_gone(exc) or exchange.status is not None or exchange.taken_over:
                raise
            log.exception("%s %r failed", request.method, request.path)
            await exchange.refuse(HTTPError(500))

    async def _next_request(
        self, stream: SocketStream, http: h11.Connection, first: bool
    ) -> Request | None:
        """Wait for a request; ``None`` when the peer has closed, or for an idle connection.

        :raises HTTPError: it is malformed, too large or too slow.
        """
        limits = self.limits
        began = bool(http.trailing_data[0])
        idle_seconds = limits.header_seconds if first else limits.idle_seconds
        try:
            if not began:
                with idling(self._idle, self.stopping) as idle:
                    idle.deadline = anyio.current_time() + idle_seconds
                    http.receive_data(await receive(stream))
                if idle.cancelled_caught:
                    return None
            with anyio.fail_after(limits.header_seconds):
                while (event := http.next_event()) is h11.NEED_DATA:
                    http.receive_data(await receive(stream))
        except TimeoutError:
            raise HTTPError(408) from None
        except h11.RemoteProtocolError as exc:
            raise HTTPError(exc.error_status_hint) from exc
        if not isinstance(event, h11.Request):
            return None  # h11.ConnectionClosed
        return read_request(event, limits.header_bytes)

    async def _refuse(self, stream: SocketStream, http: h11.Connection, refusal: HTTPError) -> None:
        """Answer what is not a request, and close."""
        self.metrics.requests.labels(str(refusal.status)).inc()
        refusal.headers.append(("connection", "close"))
        async with self._exchange(stream, http, None) as exchange:
            await exchange.refuse(refusal)
        await _linger(stream)


def _is_gone(error: BaseException) -> bool:
    """Whether an error, or all that a handler's task group has gathered, is the peer's doing."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_gone, error.exceptions))
    return isinstance(error, GONE)


def _can_go_on(http: h11.Connection) -> bool:
    """Whether the connection is ready for another request.

    A body that the handler has not asked for is not waited for.
    """
    with suppress(h11.RemoteProtocolError):
        while http.their_state is h11.SEND_BODY and http.next_event() is not h11.NEED_DATA:
            pass
    return http.our_state is h11.DONE and http.their_state is h11.DONE


async def _linger(stream: SocketStream) -> None:
    """Close a connection on which the peer may still be sending."""
    left = LINGER_BYTES
    with suppress(*GONE), anyio.move_on_after(LINGER_SECONDS):
        await stream.send_eof()
        while left > 0 and (data := await receive(stream)):
            left -= len(data)
    await stream.aclose()
