"""Which handler answers which path, and the files that pages are made of."""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Mapping
from pathlib import Path

from .exchange import Exchange, Handler, HTTPError, Request

__all__ = ["Asset", "Routes", "assets"]

# Pages load nothing from other sites, and make only pictures themselves (blob:, data:).
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


class Routes:
    """A handler that chooses another by the path.

    :param exact: handlers by the whole path.
    :param below: handlers by the beginning of the path, which ends with ``/``.
    """

    def __init__(
        self, exact: Mapping[str, Handler], below: Mapping[str, Handler] | None = None
    ) -> None:
        self._exact = dict(exact)
        self._below = dict(below or {})

    async def __call__(self, request: Request, exchange: Exchange) -> None:
        handler = self._exact.get(request.path)
        if handler is None:
            for beginning, candidate in self._below.items():
                if request.path.startswith(beginning):
                    handler = candidate
                    break
        if handler is None:
            raise HTTPError(404)
        await handler(request, exchange)


class Asset:
    """A handler that answers with a small file: a page, its style, its script.

    :param name: name of the file; its ending decides the content type.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self._data = data
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        self._type = f"{kind}; charset=utf-8" if kind.startswith("text/") else kind
        self._etag = f'"{hashlib.sha256(self._data).hexdigest()[:16]}"'

    async def __call__(self, request: Request, exchange: Exchange) -> None:
        request.allow("GET")
        headers = [
            ("etag", self._etag),
            ("cache-control", "no-cache"),
            ("content-security-policy", POLICY),
            ("referrer-policy", "no-referrer"),
        ]
        if request.header("if-none-match") == self._etag:
            await exchange.start(304, headers)
        else:
            await exchange.respond(200, self._data, content_type=self._type, headers=headers)


def assets(folder: Path, at: str = "/assets/") -> dict[str, Handler]:
    """Return the exact routes for all files of a folder."""
    return {
        f"{at}{path.name}": Asset(path.read_bytes(), path.name)
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
