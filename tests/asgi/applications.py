"""A plain ASGI application with an answer of each kind."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Handler = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]

TEXT = (b"content-type", b"text/plain")
LARGE = os.urandom(3 << 20)


async def respond(send: Send, content: bytes, status: int = 200, *fields: Any) -> None:
    """Send a whole answer."""
    headers = [TEXT, (b"content-length", b"%d" % len(content)), *fields]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def read_body(receive: Receive) -> bytes:
    """Receive a body; if it is cut short, return what has come."""
    received = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return received
        received += message["body"]
        if not message["more_body"]:
            return received


async def hello(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await respond(send, b"hello")


async def echo(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await respond(send, await read_body(receive))


async def lazy(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Answers without reading the body."""
    await respond(send, b"lazy")


async def large(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await respond(send, LARGE)


async def changing(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Sends one buffer again and again, with other contents."""
    buffer = bytearray(100_000)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for number in range(10):
        buffer[:] = bytes([number]) * len(buffer)
        await send({"type": "http.response.body", "body": buffer, "more_body": True})
    await send({"type": "http.response.body"})


async def stream(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [TEXT]})
    for size in (1, 10, 70_000, 0, 300_000):
        await send({"type": "http.response.body", "body": LARGE[:size], "more_body": True})
    await send({"type": "http.response.body", "body": b"end"})


async def unsized(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Sends one part without saying how large it is."""
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"whole"})


async def empty(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 204})
    await send({"type": "http.response.body"})


async def fails(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    raise ZeroDivisionError


async def fails_with_head(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200})
    raise ZeroDivisionError


async def fails_late(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    headers = [(b"content-length", b"10")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"12345", "more_body": True})
    raise ZeroDivisionError


async def short(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    headers = [(b"content-length", b"10")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"12345"})


async def long(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    headers = [(b"content-length", b"3")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"12345"})


async def silent(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Answers nothing."""


async def splits(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Tries to smuggle another header into a value."""
    await respond(send, b"", 200, (b"x-from", b"a\r\nSet-Cookie: b"))


async def goes_on(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Goes on working after it has answered."""
    await respond(send, b"answered")
    scope["state"]["began"].set()
    await scope["state"]["done"].wait()


async def waits(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Waits for the client to go."""
    await read_body(receive)
    scope["state"]["began"].set()
    scope["state"]["told"].append((await receive())["type"])


async def floods(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Sends until sending fails."""
    await send({"type": "http.response.start", "status": 200})
    scope["state"]["began"].set()
    try:
        while True:
            await send({"type": "http.response.body", "body": LARGE, "more_body": True})
    except OSError as exc:
        scope["state"]["told"].append(type(exc).__name__)
        raise


async def lasts(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    scope["state"]["began"].set()
    await scope["state"]["done"].wait()
    await send({"type": "http.response.body", "body": b"last"})


async def trailers(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "trailers": True})
    await send({"type": "http.response.body", "body": b"abc"})
    fields = [(b"x-sum", b"6")]
    await send({"type": "http.response.trailers", "headers": fields, "more_trailers": True})
    await send({"type": "http.response.trailers", "headers": [(b"x-end", b"yes")]})


async def describe(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """Answers with what it is told about the request."""
    names = ("client", "scheme", "path", "raw_path", "query_string", "root_path", "http_version")
    await respond(send, repr({name: scope[name] for name in names}).encode())


HANDLERS: dict[str, Handler] = {
    function.__name__: function
    for function in (
        *(hello, echo, lazy, large, changing, stream, unsized, empty, fails, fails_with_head),
        *(fails_late, short, long, silent, splits, goes_on, waits, floods, lasts, trailers),
        describe,
    )
}


class Application:
    """Chooses by the path; answers what it does not know with 404.

    :ivar began: a handler that waits has begun.
    :ivar done: handlers that wait are to go on.
    :ivar told: what handlers were told.
    """

    def __init__(self, **handlers: Handler) -> None:
        self.handlers = {**HANDLERS, **handlers}
        self.began = anyio.Event()
        self.done = anyio.Event()
        self.told: list[str] = []

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            scope["state"].update(began=self.began, done=self.done, told=self.told)
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        handler = self.handlers.get(scope["path"].strip("/"))
        if handler is None:
            await respond(send, b"", 404)
        else:
            await handler(scope, receive, send)
