"""Answers to requests: files of a folder, by GET and HEAD."""

from __future__ import annotations

import os
from urllib.parse import unquote

import anyio.to_thread
from aioquic.h3.events import HeadersReceived
from starlette.exceptions import HTTPException

from ..stream.folder import Folder, content_type
from .endpoint import INTERNAL_ERROR, Endpoint, Link

__all__ = ["Files"]

CHUNK = 1 << 20


class Files:
    """Sends files of a folder, which decides what may be seen."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    async def answer(self, endpoint: Endpoint, link: Link, request: HeadersReceived) -> None:
        """Answer one request.

        :raises ConnectionError: the connection has ended.
        """
        fields = dict(request.headers)
        method = fields.get(b":method")
        try:
            if method not in (b"GET", b"HEAD"):
                raise HTTPException(405)
            path = unquote(fields.get(b":path", b"").decode("latin-1").partition("?")[0])
            if "\0" in path:
                raise HTTPException(400)
            fd, status = await anyio.to_thread.run_sync(self._open, path.removeprefix("/"))
        except HTTPException as exc:
            self.refuse(link, request.stream_id, exc.status_code)
            endpoint.changed(link)
            endpoint.transmit_soon()
            return
        try:
            if method == b"HEAD":
                # Without the size: aioquic's clients hold it against the empty body.
                self._start(link, request.stream_id, 200, content_type(path), None)
                endpoint.changed(link)
                endpoint.transmit_soon()
                return
            size = status.st_size
            self._start(link, request.stream_id, 200, content_type(path), size)
            while size:
                await link.wait_room(request.stream_id)
                data = await anyio.to_thread.run_sync(os.read, fd, min(size, CHUNK))
                if not data:
                    # The file has become shorter: the client has to see that this is not all.
                    link.quic.reset_stream(request.stream_id, INTERNAL_ERROR)
                    break
                size -= len(data)
                link.h3.send_data(request.stream_id, data, end_stream=not size)
                endpoint.changed(link)
                endpoint.transmit_soon()
            endpoint.changed(link)
            endpoint.transmit_soon()
        finally:
            os.close(fd)

    def _open(self, path: str) -> tuple[int, os.stat_result]:
        place, status = self._folder.open(path)
        try:
            return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC), status
        finally:
            os.close(place)

    def refuse(self, link: Link, stream_id: int, status: int) -> None:
        """Answer with a status and no body."""
        self._start(link, stream_id, status, "text/plain", 0)

    def _start(self, link: Link, stream_id: int, status: int, kind: str, size: int | None) -> None:
        """Send the header, which is all if there is no body."""
        link.check()
        fields = [(b":status", str(status).encode()), (b"content-type", kind.encode())]
        if size is not None:
            fields.append((b"content-length", str(size).encode()))
        if status == 405:
            fields.append((b"allow", b"GET, HEAD"))
        link.h3.send_headers(stream_id, fields, end_stream=not size)
