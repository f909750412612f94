"""Video on demand: the files of a folder, whole or in parts."""

from __future__ import annotations

import os

import anyio.to_thread
from prometheus_client import Counter
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send

from zc_anyio.asgi import FileResponse

from ..serving import Metrics
from .folder import Folder, content_type
from .ranges import Version, satisfiable

__all__ = ["Files"]


class Files:
    """Answers with the file of the folder that the route's ``path`` names."""

    def __init__(self, folder: Folder, metrics: Metrics) -> None:
        self._folder = folder
        self._bytes = Counter("stream_file_bytes", "Bytes of files sent", registry=metrics.registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        path = request.path_params["path"]

        async def counted(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.zerocopysend":
                self._bytes.inc(message["count"])

        place, status = await anyio.to_thread.run_sync(self._folder.open, path)
        try:
            response = self._response(request, path.rpartition("/")[2], place, status)
            await response(scope, receive, counted)
        finally:
            os.close(place)

    def _response(
        self, request: Request, name: str, place: int, status: os.stat_result
    ) -> Response:
        version = Version(status)
        headers = {
            "etag": version.etag,
            "last-modified": version.last_modified,
            # A page among the files must not act as a page of this server.
            "content-security-policy": "sandbox",
        }
        answer = version.precondition(request.headers)
        if answer == 412:
            return PlainTextResponse("Precondition Failed", 412)
        if answer is not None:
            return Response(status_code=answer, headers=headers)
        _clean_range(request, version, status.st_size)
        return FileResponse(
            # What was opened, whatever has been renamed or linked meanwhile.
            f"/proc/self/fd/{place}",
            stat_result=status,
            headers=headers,
            media_type=content_type(name),
            filename=name,
            content_disposition_type="inline",
        )


def _clean_range(request: Request, version: Version, size: int) -> None:
    """Leave a ``Range`` only if it can be answered, or has to be refused (RFC 9110, 14.2)."""
    headers = MutableHeaders(scope=request.scope)
    asked = headers.get("range")
    if asked is None:
        return
    plain = satisfiable(asked, size) if request.method == "GET" else None
    if plain is None or not version.is_still(headers.get("if-range")):
        del headers["range"]
    else:
        headers["range"] = plain
