"""Which names of this server are answered to."""

from __future__ import annotations

import argparse
import ipaddress
import logging
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["Hosts", "allowed_hosts"]

log = logging.getLogger("examples")

LOOPBACK = ("localhost", "127.0.0.1", "::1")
ANY = "*"


def allowed_hosts(options: argparse.Namespace) -> frozenset[str]:
    """Return the names and addresses that the command line allows."""
    return frozenset(map(str.lower, (*LOOPBACK, options.host, *options.allowed_host)))


class Hosts:
    """Middleware that refuses requests to other names, WebSockets as well.

    A page of another site can have its own name lead here (DNS rebinding), and would then read
    and act as a page of this server.  A server that listens at all addresses is reached by each of
    them: no name can be one.
    """

    def __init__(self, app: ASGIApp, allowed: frozenset[str]) -> None:
        self._app = app
        self._allowed = allowed
        self._addresses = not allowed.isdisjoint(("0.0.0.0", "::"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Browsers always send it; HTTP/1.0 needs none.
        asked = Headers(scope=scope).get("host")
        if asked is None or ANY in self._allowed or self._is_allowed(asked):
            await self._app(scope, receive, send)
            return
        reason = f"this server is not called {asked}, see --allowed-host"
        client = scope["client"]
        log.warning("refused %s: %s", client[0] if client else "a client", reason)
        await PlainTextResponse(reason, 400)(scope, receive, send)

    def _is_allowed(self, asked: str) -> bool:
        try:
            name = urlsplit(f"//{asked}").hostname or ""
            return name in self._allowed or (self._addresses and bool(ipaddress.ip_address(name)))
        except ValueError:
            return False
