"""The requests of a connection, which are given to the application one after the other."""

from __future__ import annotations

import contextvars
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from anyio.abc import ByteStream
from anyio.streams.tls import TLSStream

from .._ring.ring import Ring
from ._exchange import Exchange, Message
from ._heads import refusal_bytes
from ._http1 import Address, Refusal, Request
from ._peer import ClientDisconnectedError, Limits, Peer, is_disconnect
from ._tls_extension import tls_extension
from ._websocket import WebSocket

__all__ = ["Application", "Connection", "Scope", "Site", "TrustedProxies"]

Scope: TypeAlias = MutableMapping[str, Any]
Application: TypeAlias = Callable[
    [Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]

ASGI = {"version": "3.0", "spec_version": "2.5"}
SCHEMES = {
    ("http", False): "http",
    ("http", True): "https",
    ("websocket", False): "ws",
    ("websocket", True): "wss",
}
EXTENSIONS = {
    "http": (
        "http.response.pathsend",
        "http.response.zerocopysend",
        "http.response.trailers",
    ),
    "websocket": ("websocket.http.response",),
}

log = logging.getLogger("zc_anyio.asgi")
access_log = logging.getLogger("zc_anyio.asgi.access")


@dataclass(eq=False, kw_only=True)
class Site:
    """What the connections of a server share, and what they report to it."""

    app: Application
    ring: Ring
    limits: Limits
    root_path: str
    proxies: TrustedProxies | None
    state: dict[str, Any] | None
    certificate: str | None
    logs_access: bool

    def is_stopping(self) -> bool:
        """Whether connections are to end."""
        raise NotImplementedError

    def is_crowded(self) -> bool:
        """Whether there are more connections than the limit allows."""
        raise NotImplementedError

    def answered(self, connection: Connection, exchange: Exchange | None = None) -> None:
        """Count a request that was answered.

        :param exchange: whose application has not returned yet; the connection's
            :meth:`Connection.hand_over` is called after all tasks that can run now have run.
        """
        raise NotImplementedError

    def closed(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        raise NotImplementedError

    def start(self, function: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Start a task without the context variables of the caller."""
        raise NotImplementedError


class TrustedProxies:
    """The proxies whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are believed.

    :param allowed: addresses and networks, with commas between them; ``*`` for everybody.
    :raises ValueError: one is neither an address nor a network.
    """

    def __init__(self, allowed: str) -> None:
        parts = [part.strip() for part in allowed.split(",") if part.strip()]
        self._all = "*" in parts
        self._networks = [ipaddress.ip_network(part) for part in parts if part != "*"]

    def trusts(self, host: str) -> bool:
        """Whether a peer is one of these proxies."""
        if self._all:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in self._networks)

    def apply(
        self, request: Request, client: Address | None, secure: bool
    ) -> tuple[Address | None, bool]:
        """Return the client and scheme of a request, as far as a trusted proxy tells them."""
        hosts = [host.decode("latin-1") for host in request.values(b"x-forwarded-for") if host]
        if hosts:
            # The last address that is not a proxy's; anybody may have written those before it.
            host = next((host for host in reversed(hosts) if not self.trusts(host)), hosts[0])
            client = (host, 0)
        if schemes := request.values(b"x-forwarded-proto"):
            secure = schemes[-1].lower() in (b"https", b"wss")
        return client, secure


class Connection:
    """Reads the requests of a peer and has them answered.

    One task at a time serves it, but not always the same one.  An application that goes on after
    its answer keeps its task.  So does one that has set context variables, since the next request
    must not see them.

    :ivar idle: it waits for a request, and nothing of that has come.
    :ivar fresh: it has had no request.
    """

    def __init__(self, site: Site, stream: ByteStream) -> None:
        self.peer = Peer(stream, site.ring, site.limits)
        self.idle = False
        self.fresh = True
        self._site = site
        self.websocket: WebSocket | None = None
        common: dict[str, Any] = {}
        if self.peer.is_for_groups:
            common["zc_anyio"] = {"stream": stream, "ring": site.ring}
        if isinstance(stream, TLSStream):
            common["tls"] = tls_extension(stream, site.certificate)
        self._extensions = {
            kind: {**{name: {} for name in names}, **common} for kind, names in EXTENSIONS.items()
        }

    async def serve(self, before: Exchange | None = None) -> None:
        """Serve until the connection ends, or another task takes it over.

        :param before: the exchange before, if its application still runs in another task.
        """
        try:
            if before is not None and not await self._go_on(before):
                return
            clean = contextvars.copy_context()
            while await self._serve_next(clean):
                pass
        except ClientDisconnectedError:
            # Nothing is kept for a client that is gone, or that the application has given up.
            self.peer.reset()
            await self._abort()
        except Exception:
            log.exception("a connection failed")
            await self._abort()
        except BaseException:
            await self._abort()
            raise

    async def _abort(self) -> None:
        self._site.closed(self)
        await self.peer.abort()

    async def _close(self, *, linger: bool = False) -> None:
        try:
            await (self.peer.linger() if linger else self.peer.close())
        finally:
            self._site.closed(self)

    # --- requests ---

    async def _serve_next(self, clean: contextvars.Context) -> bool:
        """Serve one request; return whether this task is to serve the next.

        :param clean: what context variables a request gets.
        """
        if (request := await self._read_request()) is None:
            return False
        if request.websocket:
            await self._serve_websocket(request)
            return False
        site = self._site
        exchange = Exchange(self.peer, request, closing=site.is_stopping, completed=self._completed)
        scope = self._scope("http", request)
        if site.is_crowded():
            log.warning("Exceeded concurrency limit.")
            exchange.returned = True
            await exchange.refuse(Refusal(503))
        else:
            try:
                await site.app(scope, exchange.receive, exchange.send)
            except Exception as exc:
                if not is_disconnect(exc) and not exchange.excused:
                    log.exception("Exception in ASGI application")
            else:
                if not exchange.complete and not exchange.excused:
                    how = "completing" if exchange.begun else "starting"
                    log.error("ASGI callable returned without %s response.", how)
            exchange.returned = True
            if not exchange.complete:
                await exchange.fail()
        if exchange.handed_over or not await self._go_on(exchange):
            return False
        if is_same(contextvars.copy_context(), clean):
            return True
        site.start(self.serve)
        return False

    async def _read_request(self) -> Request | None:
        """Wait for a request; return ``None`` when the connection has ended."""
        peer, parser, limits = self.peer, self.peer.parser, self._site.limits
        seconds = limits.head_seconds if self.fresh else limits.keep_alive_seconds
        deadline = time.monotonic() + seconds
        while not parser.events:
            if self.idle and parser.began:
                deadline = time.monotonic() + limits.head_seconds
            self.idle = not parser.began
            if self.idle and not self.fresh and self._site.is_stopping():
                # Bytes that have arrived are still received.
                peer.stop_receiving()
            if not (data := await peer.receive(deadline)):
                break
            parser.feed(data)
        self.idle = self.fresh = False
        event = parser.events.popleft() if parser.events else None
        if isinstance(event, Request):
            return event
        if event is None and peer.late and parser.began:
            event = Refusal(408)
        if isinstance(event, Refusal):
            log.warning("Invalid HTTP request received: %d %s", event.status, event.text)
            await peer.send([refusal_bytes(event)])
        # A TLS connection that this end closes ends with a farewell.
        await self._close(linger=event is not None or (peer.has_tls and not peer.has_ended()))
        return None

    async def _go_on(self, exchange: Exchange) -> bool:
        """Prepare for the next request, or close; return whether there may be one."""
        whole = exchange.discard_body()
        await exchange.wait_received()
        if whole and exchange.keep_alive and not exchange.broken:
            return True
        if exchange.broken:
            await self._abort()
        else:
            await self._close(linger=not whole or self.peer.has_unread())
        return False

    def _completed(self, exchange: Exchange) -> None:
        """Note that an answer was sent; called before the application has returned."""
        site, request = self._site, exchange.request
        if site.logs_access:
            self._log(request, exchange.status)
        site.answered(self, exchange)

    def hand_over(self, exchange: Exchange) -> None:
        """Have another task take over, if the application goes on after its answer."""
        if not exchange.returned:
            exchange.handed_over = True
            self._site.start(partial(self.serve, exchange))

    def _log(self, request: Request, status: int | None) -> None:
        access_log.info(
            '%s - "%s %s HTTP/%s" %d',
            self._address(request),
            request.method,
            request.target.decode(),
            request.version,
            status,
        )

    def _address(self, request: Request) -> str:
        """Return the client as logs show it."""
        client = request.client
        return "" if client is None else f"{client[0]}:{client[1]}"

    async def _serve_websocket(self, request: Request) -> None:
        site = self._site
        scope = self._scope("websocket", request)
        if site.is_crowded():
            await self.peer.send([refusal_bytes(Refusal(503))])
            await self._close(linger=True)
            return
        websocket = WebSocket(self.peer, request, opened=partial(self._log_websocket, request))
        scope["subprotocols"] = websocket.subprotocols
        self.websocket = websocket
        try:
            await websocket.run(site.app, scope)
        finally:
            self.websocket = None
        site.answered(self)
        await self._close(linger=True)

    def _log_websocket(self, request: Request, verdict: str) -> None:
        log.info('%s - "WebSocket %s" %s', self._address(request), request.target.decode(), verdict)

    # --- scopes ---

    def _scope(self, kind: str, request: Request) -> Scope:
        site = self._site
        path, raw_path, query = request.path()
        secure = isinstance(self.peer.stream, TLSStream)
        client = self.peer.client
        if (
            request.forwarded
            and site.proxies is not None
            and (client is None or site.proxies.trusts(client[0]))
        ):
            client, secure = site.proxies.apply(request, client, secure)
        request.client = client
        scope: Scope = {
            "type": kind,
            "asgi": ASGI,
            "http_version": request.version,
            "server": self.peer.server,
            "client": client,
            "scheme": SCHEMES[kind, secure],
            "method": request.method,
            "root_path": site.root_path,
            "path": site.root_path + path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": request.headers,
            "extensions": self._extensions[kind],
        }
        if site.root_path:
            scope["raw_path"] = site.root_path.encode() + raw_path
        if kind == "websocket":
            del scope["method"]
        if site.state is not None:
            scope["state"] = site.state.copy()
        return scope


def is_same(now: contextvars.Context, before: contextvars.Context) -> bool:
    """Whether no context variable was set in between."""
    try:
        return now == before
    except Exception:
        # Values that cannot be compared count as different.
        return False
