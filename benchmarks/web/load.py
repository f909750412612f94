"""Clients over HTTP: many small requests by wrk, and one after the other what is large."""

from __future__ import annotations

import json
import subprocess
import time
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

from benchmarks.web.watch import Watch

__all__ = ["BLOCK", "Content", "Load", "Target", "Wrong", "by_wrk", "downloads", "uploads"]

SCRIPT = str(Path(__file__).with_name("report.lua"))
BLOCK = bytes(range(256)) * 4096
# Before it is measured: what a server does once only.
WARMING_UP = 20
LIMIT_SECONDS = 60.0


class Wrong(Exception):  # noqa: N818 - as anyio's exceptions are named
    """What came is not what was asked for."""


@dataclass(frozen=True, slots=True)
class Content:
    """What is to come: its size in bytes and its checksum."""

    size: int
    crc: int

    @classmethod
    def of(cls, data: bytes, times: int = 1) -> Content:
        """Return that of some data, so many times in a row."""
        crc = 0
        for _ in range(times):
            crc = zlib.crc32(data, crc)
        return cls(len(data) * times, crc)


@dataclass(frozen=True, slots=True)
class Target:
    """What a client is to do.

    :ivar seconds: how long, at least.
    """

    port: int
    path: str
    content: Content
    connections: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Load:
    """What a client has measured.

    :ivar operations: requests, or deliveries of messages.
    :ivar latencies: the median and the 99th percentile, in seconds, where there are enough.
    """

    operations: int
    seconds: float
    latencies: tuple[float, float] | None = None


def by_wrk(target: Target, watch: Watch) -> Load:
    """Ask again and again on some connections; what comes is compared before.

    :raises Wrong: an answer is not as it should be.
    """
    found = _wrk(target, watch)
    return Load(found["requests"], found["microseconds"] / 1e6, _latencies(found))


def bytes_by_wrk(target: Target, watch: Watch) -> Load:
    """As :func:`by_wrk`, for large answers: those under way at the end count for what has come.

    :raises Wrong: an answer is not as it should be.
    """
    found = _wrk(target, watch)
    count = found["bytes"] // target.content.size
    return Load(count, found["microseconds"] / 1e6, _latencies(found))


def _latencies(found: dict[str, Any]) -> tuple[float, float]:
    return found["p50"] / 1e6, found["p99"] / 1e6


def _wrk(target: Target, watch: Watch) -> dict[str, Any]:
    with _connection(target) as connection:
        for _ in range(WARMING_UP):
            _check(target, _get(connection, target))
    # Its own limit for an answer, 2 seconds, is too short for large ones.
    command = ["wrk", "--threads", "1", "--timeout", "60s", "--script", SCRIPT]
    command += ["--connections", str(target.connections)]
    seconds = max(1, round(target.seconds))
    url = f"http://127.0.0.1:{target.port}{target.path}"
    command += ["--duration", f"{seconds}s", url]
    with watch:
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(told.splitlines()[-1])
    if found["errors"] or found["bytes"] < found["requests"] * target.content.size:
        raise Wrong(f"not all was answered: {found}")
    return found


def downloads(target: Target, watch: Watch) -> Load:
    """Load something large, one time after the other; the first time it is compared, not measured.

    :raises Wrong: an answer is not as it should be.
    """
    buffer = memoryview(bytearray(1 << 20))
    count = 0
    with _connection(target) as connection:
        _check(target, _get(connection, target))
        with watch:
            until = time.perf_counter() + target.seconds
            while not count or time.perf_counter() < until:
                response, size = _get(connection, target), 0
                while got := response.readinto(buffer):
                    size += got
                if size != target.content.size:
                    raise Wrong(f"{size} bytes came of {target.content.size}")
                count += 1
    return Load(count, watch.seconds)


def uploads(target: Target, watch: Watch) -> Load:
    """Send something large, one time after the other; the first time it is compared, not measured.

    :raises Wrong: the server has received something else.
    """
    count = 0
    with _connection(target) as connection:
        _upload(connection, target, f"{target.path}?crc", target.content.crc)
        with watch:
            until = time.perf_counter() + target.seconds
            while not count or time.perf_counter() < until:
                _upload(connection, target, target.path, 0)
                count += 1
    return Load(count, watch.seconds)


def _connection(target: Target) -> closing[HTTPConnection]:
    return closing(HTTPConnection("127.0.0.1", target.port, timeout=LIMIT_SECONDS))


def _get(connection: HTTPConnection, target: Target) -> HTTPResponse:
    connection.request("GET", target.path)
    response = connection.getresponse()
    if response.status != 200:
        raise Wrong(f"{target.path} is answered {response.status}")
    return response


def _check(target: Target, response: HTTPResponse) -> None:
    size = crc = 0
    while chunk := response.read(1 << 20):
        size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    if Content(size, crc) != target.content:
        raise Wrong(f"{target.path}: {size} bytes came, or others than were to come")


def _upload(connection: HTTPConnection, target: Target, path: str, crc: int) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(target.content.size // len(BLOCK)):
            yield BLOCK

    connection.request("POST", path, body(), {"Content-Length": str(target.content.size)})
    told = json.loads(connection.getresponse().read())
    if told != {"size": target.content.size, "crc": crc}:
        raise Wrong(f"{target.content.size} bytes were sent, and received {told}")
