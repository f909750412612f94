"""The application that every server runs: Starlette, as users write it.

Only ``/group`` is for this library's server: a message goes to all members by one send group.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

import zc_anyio
from zc_anyio.asgi import websocket_frame

__all__ = ["GREETING", "PAGE", "RECORD", "app"]

# Of the large bodies and files.
FOLDER = Path(os.environ.get("BENCHMARK_FILES", "."))
PAGE = bytes(range(256)) * 4096
# 1 KiB as JSON, which Starlette makes anew for each answer.
RECORD = {
    "items": [{"id": 1000 + n, "name": f"item {n:02}", "price": 9.5} for n in range(20)],
    "next": "x" * 183,
}

# Tells a member that it is in the room.
GREETING = "welcome"

in_room: set[WebSocket] = set()
in_group: set[Any] = set()


async def hello(_request: Request) -> Response:
    return PlainTextResponse("Hello, world!")


async def record(_request: Request) -> Response:
    return JSONResponse(RECORD)


async def page(_request: Request) -> Response:
    return Response(PAGE)


async def file(request: Request) -> Response:
    return FileResponse(FOLDER / request.path_params["name"])


async def upload(request: Request) -> Response:
    """Count what is received; ``?crc`` asks for its checksum as well."""
    size = crc = 0
    async for chunk in request.stream():
        size += len(chunk)
        if request.query_params:
            crc = zlib.crc32(chunk, crc)
    return JSONResponse({"size": size, "crc": crc})


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


async def room(websocket: WebSocket) -> None:
    """Send each message to all members, as one does under any server."""
    await websocket.accept()
    in_room.add(websocket)
    await websocket.send_text(GREETING)
    try:
        async for text in websocket.iter_text():
            for member in list(in_room):
                await member.send_text(text)
    finally:
        in_room.discard(websocket)


async def group(websocket: WebSocket) -> None:
    """Send each message to all members by one send group."""
    await websocket.accept()
    stream = websocket.scope["extensions"]["zc_anyio"]["stream"]
    in_group.add(stream)
    await websocket.send_text(GREETING)
    try:
        async for text in websocket.iter_text():
            async with zc_anyio.send_group(on_error="collect") as sends:
                await sends.broadcast(in_group, websocket_frame(text))
    finally:
        in_group.discard(stream)


app = Starlette(
    routes=[
        Route("/hello", hello),
        Route("/json", record),
        Route("/bytes", page),
        Route("/files/{name}", file),
        Route("/upload", upload, methods=["POST"]),
        WebSocketRoute("/echo", echo),
        WebSocketRoute("/room", room),
        WebSocketRoute("/group", group),
    ]
)
