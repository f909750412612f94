"""The application: which answer belongs to which path."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from ..serving import Headers, Hosts, Metrics
from ..serving.metrics import Counted
from .chat import Chat
from .pictures import PictureRoutes

__all__ = ["application"]

PAGE = Path(__file__).parent / "page"


def application(chat: Chat, metrics: Metrics, hosts: frozenset[str]) -> Starlette:
    """Return the application; ``chat.run`` has to run beside it.

    :param hosts: the names that it answers to.
    """
    page = (PAGE / "index.html").read_text()

    async def index(_request: Request) -> Response:
        return HTMLResponse(page)

    return Starlette(
        routes=[
            Route("/", index),
            WebSocketRoute("/chat", chat.talk),
            *PictureRoutes(chat).routes(),
            Route("/metrics", metrics.answer),
            Mount("/assets", StaticFiles(directory=PAGE)),
        ],
        middleware=[
            Middleware(Counted, metrics=metrics),
            Middleware(Headers),
            Middleware(Hosts, allowed=hosts),
        ],
    )
