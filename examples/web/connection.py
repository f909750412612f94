"""One connection: its requests, one after the other, and what happens to wrong ones."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import anyio
import h11
from anyio.abc import SocketStream

from .exchange import Exchange, Handler, HTTPError, Request, idling, read_request, receive
from .metrics import Metrics
from .outgoing import Outgoing

__all__ = ["Connection", "Limits", "is_gone"]

log = logging.getLogger("examples.web")

# The peer went away, or takes nothing.
GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, TimeoutError, ConnectionError)
# For how long, and how much of it, what a peer still sends after an early answer is read: a
# connection that is closed with bytes unread is reset, and the answer may be lost.
LINGER_SECONDS = 2.0
LINGER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a peer may ask of the server.

    :ivar connections: connections at once; further ones are answered 503.
    :ivar header_bytes: bytes of a request's head; a larger one is answered 431.
    :ivar header_seconds: time for a request's head to arrive; a slower one is answered 408.
    :ivar idle_seconds: time between requests; then the connection is closed.
    :ivar body_seconds: time for a request's body to arrive; a slower one is answered 408.
    :ivar stall_seconds: time that a peer may take nothing of an answer; then it is reset.
    :ivar stop_seconds: time for what is under way when the server is stopped.
    """

    connections: int = 1000
    header_bytes: int = 16 << 10
    header_seconds: float = 10.0
    idle_seconds: float = 30.0
    body_seconds: float = 30.0
    stall_seconds: float = 20.0
    stop_seconds: float = 5.0


class Serving(Protocol):
    """What a connection needs of its server."""

    handler: Handler
    limits: Limits
    metrics: Metrics
    stopping: anyio.Event
    idle: set[anyio.CancelScope]


class Connection:
    """Reads the requests of a peer, and has them answered."""

    def __init__(self, server: Serving, stream: SocketStream, outgoing: Outgoing) -> None:
        self._server = server
        self._stream = stream
        self._outgoing = outgoing
        most = server.limits.header_bytes
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=most)

    async def serve(self) -> None:
        """Answer requests until the peer, a limit or a handler ends the connection."""
        first = True
        while True:
            try:
                request = await self._next_request(first)
            except HTTPError as refusal:
                await self.refuse(refusal)
                return
            if request is None:
                await self._stream.aclose()
                return
            first = False
            exchange = self._exchange(request)
            await self._handle(request, exchange)
            if exchange.status is not None:
                self._server.metrics.requests.labels(str(exchange.status)).inc()
            if exchange.taken_over:
                await self._stream.aclose()
                return
            if not self._can_go_on():
                await self._linger()
                return
            self._http.start_next_cycle()

    async def refuse(self, refusal: HTTPError) -> None:
        """Answer what is not a request, and close."""
        self._server.metrics.requests.labels(str(refusal.status)).inc()
        refusal.headers.append(("connection", "close"))
        await self._exchange(None).refuse(refusal)
        await self._linger()

    def _exchange(self, request: Request | None) -> Exchange:
        return Exchange(
            self._http,
            request,
            self._stream,
            self._outgoing,
            stopping=self._server.stopping,
            idle=self._server.idle,
            body_seconds=self._server.limits.body_seconds,
        )

    async def _handle(self, request: Request, exchange: Exchange) -> None:
        try:
            await self._server.handler(request, exchange)
        except HTTPError as refusal:
            if exchange.status is not None or exchange.taken_over:
                raise
            await exchange.refuse(refusal)
        except Exception as exc:
            if is_gone(exc) or exchange.status is not None or exchange.taken_over:
                raise
            log.exception("%s %r failed", request.method, request.path)
            await exchange.refuse(HTTPError(500))
        if not exchange.taken_over:
            await exchange.finish()

    async def _next_request(self, first: bool) -> Request | None:
        """Wait for a request; ``None`` when the peer has closed, or for an idle connection.

        :raises HTTPError: the request is malformed, too large or too slow.
        """
        limits, http = self._server.limits, self._http
        began = bool(http.trailing_data[0])
        idle_seconds = limits.header_seconds if first else limits.idle_seconds
        try:
            if not began:
                with idling(self._server.idle, self._server.stopping) as idle:
                    idle.deadline = anyio.current_time() + idle_seconds
                    http.receive_data(await receive(self._stream))
                if idle.cancelled_caught:
                    return None
            with anyio.fail_after(limits.header_seconds):
                while (event := http.next_event()) is h11.NEED_DATA:
                    http.receive_data(await receive(self._stream))
        except TimeoutError:
            raise HTTPError(408) from None
        except h11.RemoteProtocolError as exc:
            raise HTTPError(exc.error_status_hint) from exc
        if not isinstance(event, h11.Request):
            return None  # h11.ConnectionClosed
        return read_request(event, limits.header_bytes)

    def _can_go_on(self) -> bool:
        """Whether the connection is ready for another request.

        It is not if the handler has not asked for a body, since that is not waited for.
        """
        http = self._http
        with suppress(h11.RemoteProtocolError):
            while http.their_state is h11.SEND_BODY and http.next_event() is not h11.NEED_DATA:
                pass
        return http.our_state is h11.DONE and http.their_state is h11.DONE

    async def _linger(self) -> None:
        """Close a connection on which the peer may still be sending."""
        left = LINGER_BYTES
        with suppress(*GONE), anyio.move_on_after(LINGER_SECONDS):
            await self._stream.send_eof()
            while left > 0 and (data := await receive(self._stream)):
                left -= len(data)
        await self._stream.aclose()


def is_gone(error: BaseException) -> bool:
    """Whether an error, or each one in an exception group, means that the peer is gone."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_gone, error.exceptions))
    return isinstance(error, GONE)
