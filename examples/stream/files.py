"""Video on demand: the files of a folder, whole or in parts."""

from __future__ import annotations

import os
import secrets
from urllib.parse import quote

import anyio.to_thread
from prometheus_client import Counter

from examples.web import Exchange, HTTPError, Metrics, Part, Request

from .folder import Folder, content_type
from .ranges import Range, UnsatisfiableError, Version, parse_range

__all__ = ["Files"]


class Files:
    """A handler that answers a path below ``at`` with a file of the folder."""

    def __init__(self, folder: Folder, metrics: Metrics, *, at: str = "/files/") -> None:
        self._folder = folder
        self._at = at
        self._bytes = Counter("stream_file_bytes", "Bytes of files sent", registry=metrics.registry)

    async def __call__(self, request: Request, exchange: Exchange) -> None:
        request.allow("GET")
        path = request.path.removeprefix(self._at)
        fd, status = await anyio.to_thread.run_sync(self._folder.open, path)
        try:
            await self._answer(request, exchange, path.rpartition("/")[2], fd, status)
        finally:
            # What is being sent is mapped, so the descriptor is not needed any more.
            os.close(fd)

    async def _answer(
        self, request: Request, exchange: Exchange, name: str, fd: int, status: os.stat_result
    ) -> None:
        version = Version(status)
        size = status.st_size
        headers = [
            ("accept-ranges", "bytes"),
            ("etag", version.etag),
            ("last-modified", version.last_modified),
            # A page among the files must not act as a page of this server.
            ("content-security-policy", "sandbox"),
        ]
        answer = version.precondition(request.header)
        if answer is not None:
            if answer == 412:
                raise HTTPError(412)
            await exchange.start(304, headers)
            return
        kind = content_type(name)
        described = [
            *headers,
            ("content-disposition", f"inline; filename*=UTF-8''{quote(name, safe='')}"),
        ]
        ranges = self._ranges(request, version, size)
        if ranges is None:
            await self._send(exchange, 200, fd, Range(0, size), kind, described)
        elif len(ranges) == 1:
            described.append(("content-range", ranges[0].header(size)))
            await self._send(exchange, 206, fd, ranges[0], kind, described)
        else:
            await self._send_parts(exchange, fd, size, ranges, kind, described)

    @staticmethod
    def _ranges(request: Request, version: Version, size: int) -> list[Range] | None:
        """Return the parts to send; ``None``: the whole file."""
        asked = request.header("range")
        # RFC 9110 defines ranges only for GET.
        if asked is None or request.method != "GET":
            return None
        if not version.is_still(request.header("if-range")):
            return None
        try:
            return parse_range(asked, size)
        except UnsatisfiableError:
            raise HTTPError(416, headers=[("content-range", f"bytes */{size}")]) from None

    async def _send(
        self,
        exchange: Exchange,
        status: int,
        fd: int,
        part: Range,
        kind: str,
        headers: list[tuple[str, str]],
    ) -> None:
        count = part.end - part.start
        await exchange.respond(
            status, Part(fd, part.start, count), content_type=kind, headers=headers
        )
        self._bytes.inc(count)

    async def _send_parts(
        self,
        exchange: Exchange,
        fd: int,
        size: int,
        ranges: list[Range],
        kind: str,
        headers: list[tuple[str, str]],
    ) -> None:
        boundary = secrets.token_hex(16)
        heads = [
            f"\r\n--{boundary}\r\nContent-Type: {kind}\r\n"
            f"Content-Range: {part.header(size)}\r\n\r\n".encode()
            for part in ranges
        ]
        end = f"\r\n--{boundary}--\r\n".encode()
        count = sum(part.end - part.start for part in ranges)
        total = sum(map(len, heads)) + count + len(end)
        await exchange.start(
            206,
            [
                ("content-type", f"multipart/byteranges; boundary={boundary}"),
                ("content-length", str(total)),
                *headers,
            ],
        )
        for head, part in zip(heads, ranges, strict=True):
            await exchange.send(head)
            await exchange.send(Part(fd, part.start, part.end - part.start))
        await exchange.send(end)
        await exchange.finish()
        self._bytes.inc(count)
