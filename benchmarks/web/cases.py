"""What is asked of each server."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.web.application import PAGE, RECORD
from benchmarks.web.load import (
    BLOCK,
    Content,
    Load,
    Target,
    by_wrk,
    bytes_by_wrk,
    downloads,
    uploads,
)
from benchmarks.web.messages import echoes, to_all
from benchmarks.web.servers import Server
from benchmarks.web.watch import Watch

__all__ = ["Case", "cases", "make_files"]


@dataclass(frozen=True, slots=True)
class Case:
    """Work for a server.

    :ivar path: ``{room}`` is that of the server's room.
    :ivar content: of an answer, of an upload, or of a message.
    """

    name: str
    path: str
    content: Content
    connections: int
    run: Callable[[Target, Watch], Load]

    def is_for(self, server: Server) -> bool:
        """Whether a server takes part."""
        return self.path.startswith(server.only)


def cases(folder: Path, *, quick: bool) -> list[Case]:
    """Return the cases, for the files that :func:`make_files` has made.

    :param quick: what is large is small, and members are few.
    """
    small, middle, large = (_content(folder / name) for name in ("small", "middle", "large"))
    record = json.dumps(RECORD, separators=(",", ":")).encode()
    members = 50 if quick else 500
    return [
        Case("hello", "/hello", Content.of(b"Hello, world!"), 50, by_wrk),
        Case("JSON of 1 KiB", "/json", Content.of(record), 50, by_wrk),
        Case("bytes of 1 MiB", "/bytes", Content.of(PAGE), 8, by_wrk),
        Case("file of 100 KiB", "/files/small", small, 20, by_wrk),
        Case("file of 64 MiB to 100", "/files/middle", middle, 100, bytes_by_wrk),
        Case("file of 1 GiB", "/files/large", large, 1, downloads),
        Case("upload of 1 GiB", "/upload", large, 1, uploads),
        Case("WebSocket echo of 1 KiB", "/echo", Content(1 << 10, 0), 50, echoes),
        Case("200 B to 500 WebSockets", "{room}", Content(200, 0), members, to_all),
    ]


def make_files(folder: Path, *, quick: bool) -> None:
    """Make the files that are asked for."""
    sizes = {
        "small": 100 << 10,
        "middle": 1 << 20 if quick else 64 << 20,
        "large": 16 << 20 if quick else 1 << 30,
    }
    for name, size in sizes.items():
        with (folder / name).open("wb") as file:
            while (left := size - file.tell()) > 0:
                file.write(BLOCK[:left])


def _content(path: Path) -> Content:
    size = path.stat().st_size
    return Content.of(BLOCK, size // len(BLOCK)) if size > len(BLOCK) else Content.of(BLOCK[:size])
