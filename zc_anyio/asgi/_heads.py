"""Heads of responses of HTTP/1.1, as bytes."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from ._http1 import Header, Refusal

__all__ = [
    "END",
    "Head",
    "check_name",
    "join_lines",
    "own_lines",
    "refusal_bytes",
    "response_head",
    "status_line",
]

END = b"\r\n\r\n"
TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


@dataclass(frozen=True, slots=True)
class Head:
    """What an application has said of a response.

    :ivar lines: the status and the application's headers, but for those that the server decides.
    :ivar length: its ``Content-Length``.
    :ivar closes: it wants the connection to be closed.
    :ivar dated: it has a ``Date``.
    :ivar named: it has a ``Server``.
    """

    lines: bytes
    length: int | None
    closes: bool
    dated: bool
    named: bool


# Many responses of an application have the same head.
@lru_cache(256)
def response_head(status: int, headers: tuple[Header, ...]) -> Head:
    """Return what an application says of a response.

    :raises ValueError: the status, or a header, cannot be sent.
    :raises RuntimeError: there is a second ``Content-Length``.
    """
    lines = [status_line(status)]
    length = None
    closes = dated = named = False
    for name, value in headers:
        lowered = name.lower()
        if lowered == b"content-length":
            if length is not None:
                raise RuntimeError("a response has only one Content-Length")
            length = int(value)
            if status == 204:
                continue
        elif lowered == b"transfer-encoding":
            continue
        elif lowered == b"connection":
            closes = closes or b"close" in value.lower()
            continue
        elif lowered == b"date":
            dated = True
        elif lowered == b"server":
            named = True
        check_name(name)
        lines.append(b"%b: %b" % (name, value))
    return Head(join_lines(lines), length, closes, dated, named)


@lru_cache(4)
def own_lines(seconds: int, *, dated: bool, named: bool) -> bytes:
    """Return ``Date`` and ``Server``, as far as a response lacks them.

    :param seconds: since the epoch.
    """
    lines = [] if dated else [b"date: " + formatdate(seconds, usegmt=True).encode("ascii")]
    return b"\r\n".join(lines if named else [*lines, b"server: zc_anyio"])


@lru_cache(1000)
def status_line(status: int) -> bytes:
    """Return the first line of a response."""
    if not 200 <= status <= 999:
        raise ValueError(f"{status} is not the status of a response")
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}".encode("ascii")


@lru_cache(1000)
def check_name(name: bytes) -> None:
    """Refuse bytes that are not the name of a header."""
    if TOKEN.fullmatch(name) is None:
        raise ValueError(f"{name!r} is not the name of a header")


def join_lines(lines: list[bytes]) -> bytes:
    """Join the lines of a head; refuse a value that would add lines of its own."""
    joined = b"\r\n".join(lines)
    breaks = len(lines) - 1
    if joined.count(b"\n") != breaks or joined.count(b"\r") != breaks or b"\0" in joined:
        raise ValueError("a header's value has a line break or a NUL")
    return joined


def refusal_bytes(refusal: Refusal, *, head_only: bool = False) -> bytes:
    """Return the whole answer to a request that the application does not see."""
    text = f"{refusal.text}\n".encode()
    lines = [
        status_line(refusal.status),
        b"content-type: text/plain; charset=utf-8",
        b"content-length: %d" % len(text),
        own_lines(int(time.time()), dated=False, named=False),
        b"connection: close",
    ]
    return b"\r\n".join(lines) + END + (b"" if head_only else text)
