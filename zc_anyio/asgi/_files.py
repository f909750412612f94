"""Starlette's ``FileResponse``, with ranges that are sent without a copy as well."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import anyio.to_thread
import starlette.responses
from starlette.types import Message, Receive, Scope, Send

__all__ = ["FileResponse"]

RANGE = re.compile(rb"bytes (\d+)-(\d+)/\d+")
Part = tuple[bytes, int, int]


class FileResponse(starlette.responses.FileResponse):
    """Starlette's, with its arguments; parts of the file go out by ``http.response.zerocopysend``.

    Starlette itself reads what a ``Range`` asks for and sends it in pieces.  Under a server that
    does not offer the extension, this class does the same.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        offered = scope["type"] == "http" and scope["method"] == "GET"
        if not offered or "http.response.zerocopysend" not in scope.get("extensions", {}):
            await super().__call__(scope, receive, send)
            return
        try:
            fd = await anyio.to_thread.run_sync(os.open, self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise RuntimeError(f"File at path {self.path} does not exist.") from None
        try:
            await self._send(fd, scope, receive, send)
        finally:
            os.close(fd)
        if self.background is not None:
            await self.background()

    async def _send(self, fd: int, scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette decides what is answered and which parts of the file are wanted: asked for the
        # head alone, it sends no part of the file.
        asked = _Asked(self)
        if asked.stat_result is None:
            asked.stat_result = os.fstat(fd)
            asked.set_stat_headers(asked.stat_result)
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        await asked({**scope, "method": "HEAD"}, receive, keep)
        start = messages[0]
        parts: list[Part]
        after = b""
        if start["status"] == self.status_code:
            parts = [(b"", 0, asked.stat_result.st_size)]
        elif asked.parts is not None:
            parts, after = asked.parts
        elif start["status"] == 206 and (found := _content_range(start)) is not None:
            parts = [(b"", *found)]
        else:
            for message in messages:
                await send(message)
            return
        await send(start)
        for before, begin, end in parts:
            if before:
                await send({"type": "http.response.body", "body": before, "more_body": True})
            message = {"type": "http.response.zerocopysend", "file": fd, "more_body": True}
            await send({**message, "offset": begin, "count": end - begin})
        await send({"type": "http.response.body", "body": after})


class _Asked(starlette.responses.FileResponse):
    """A copy that remembers the parts of a multipart answer.

    :ivar parts: the bytes before each part, and its place in the file; and the end of the answer.
    """

    def __init__(self, response: starlette.responses.FileResponse) -> None:
        vars(self).update(copy.copy(vars(response)))
        self.raw_headers = list(response.raw_headers)
        vars(self).pop("_headers", None)
        self.background = None
        self.parts: tuple[list[Part], bytes] | None = None

    def generate_multipart(
        self, ranges: Sequence[tuple[int, int]], boundary: str, max_size: int, content_type: str
    ) -> tuple[int, Callable[[int, int], bytes]]:
        length, head = super().generate_multipart(ranges, boundary, max_size, content_type)
        parts = [
            ((b"\r\n" if number else b"") + head(start, end), start, end)
            for number, (start, end) in enumerate(ranges)
        ]
        self.parts = parts, b"\r\n" + f"--{boundary}--".encode("latin-1")
        return length, head


def _content_range(start: Any) -> tuple[int, int] | None:
    """Return the part that the head of an answer announces."""
    for name, value in start["headers"]:
        if name.lower() == b"content-range" and (match := RANGE.fullmatch(value)) is not None:
            return int(match[1]), int(match[2]) + 1
    return None
