"""An application for ``python -m zc_anyio.asgi`` that tells which process serves it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

import zc_anyio


async def about(request: Request) -> Response:
    ring = zc_anyio.current_ring()
    assert ring is not None
    return JSONResponse(
        {
            "process": os.getpid(),
            "driver": ring.statistics().driver,
            "client": request.client.host if request.client else None,
            "scheme": request.url.scheme,
            "root_path": request.scope["root_path"],
        }
    )


async def die(request: Request) -> Response:
    os.kill(os.getpid(), signal.SIGKILL)
    raise NotImplementedError


async def slow(request: Request) -> Response:
    # In one write, unlike print(): the workers share the pipe.
    sys.stderr.write("a slow answer begins\n")
    await anyio.sleep(1.0)
    return JSONResponse(os.getpid())


async def file(request: Request) -> Response:
    return FileResponse(Path(__file__))


LARGE = bytes(range(256)) * (16 << 10)


async def large(request: Request) -> Response:
    return Response(LARGE)


app = Starlette(
    routes=[
        Route("/", about),
        Route("/die", die),
        Route("/slow", slow),
        Route("/file", file),
        Route("/large", large),
    ]
)
number = 7


async def fails_to_start(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Send each message of a WebSocket back."""
    if scope["type"] != "websocket":
        raise NotImplementedError
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})
