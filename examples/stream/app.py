"""The application: which answer belongs to which path."""

from __future__ import annotations

import html
import time
from pathlib import Path
from string import Template
from urllib.parse import quote

import anyio
import anyio.to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ..serving import Headers, Hosts, Metrics
from ..serving.metrics import Counted
from .files import Files
from .folder import Entry, Folder
from .history import History
from .live import Live

__all__ = ["application"]

PAGES = Path(__file__).parent / "pages"
LISTED_SECONDS = 1.0


def application(
    folder: Folder, live: Live, metrics: Metrics, history: History, hosts: frozenset[str]
) -> Starlette:
    """Return the application; ``live.run`` and ``history.run`` have to run beside it.

    :param hosts: the names that it answers to.
    """
    app = Starlette(
        routes=[
            Route("/", Page(folder).answer),
            Route("/live", live, methods=["GET"]),
            Route("/metrics", metrics.answer),
            Route("/history", history.answer),
            Route("/files/{path:path}", Files(folder, metrics), methods=["GET"]),
            Mount("/assets", StaticFiles(directory=PAGES)),
        ],
        middleware=[
            Middleware(Counted, metrics=metrics),
            Middleware(Headers),
            Middleware(Hosts, allowed=hosts),
        ],
    )
    app.router.redirect_slashes = False
    return app


class Page:
    """The page, with a list of the files in the folder, which is read at most once a second."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._template = Template((PAGES / "index.html").read_text())
        self._looking = anyio.Lock()
        self._page = ""
        self._looked = 0.0

    async def answer(self, _request: Request) -> Response:
        """Answer ``/``."""
        async with self._looking:
            if not self._page or time.monotonic() - self._looked > LISTED_SECONDS:
                self._page = self._template.substitute(files=await self._list())
                self._looked = time.monotonic()
        return HTMLResponse(self._page)

    async def _list(self) -> str:
        try:
            entries = await anyio.to_thread.run_sync(self._folder.list)
        except OSError as exc:
            return f"<li>The folder cannot be read: {html.escape(exc.strerror or str(exc))}.</li>"
        return "\n".join(map(_item, entries)) or "<li>There are no files here yet.</li>"


def _item(entry: Entry) -> str:
    """Return a link to a file; the page's script plays the file if it can be played."""
    playable = entry.content_type.startswith(("video/", "audio/"))
    return (
        f'<li><a href="/files/{quote(entry.path)}"{" data-play" if playable else ""}>'
        f"{html.escape(entry.path)}</a> <small>{_size(entry.size)}</small></li>"
    )


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
