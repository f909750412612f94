"""Applications of real frameworks, as users write them.

These frameworks read annotations, so they are not postponed here.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Form, HTTPException, UploadFile, WebSocket
from litestar import Litestar, get, post, websocket_listener
from litestar.datastructures import UploadFile as LitestarUpload
from litestar.enums import RequestEncodingType
from litestar.params import Body, FromQuery
from litestar.response import Stream
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket as StarletteWebSocket

UPLOAD = os.urandom(3 << 20)

# --- Starlette ---


class Stamp(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["x-stamp"] = "stamped"
        return response


def starlette(folder: Path, log: list[str]) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        log.append("started")
        yield {"store": {"visits": 0}}
        log.append("stopped")

    async def home(request: Request) -> Response:
        request.state.store["visits"] += 1
        return JSONResponse({"visits": request.state.store["visits"]})

    async def form(request: Request) -> Response:
        async with request.form() as fields:
            upload: Any = fields["file"]
            content = await upload.read()
            return JSONResponse({"name": fields["name"], "size": len(content)})

    async def count(request: Request) -> Response:
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
        return PlainTextResponse(str(size))

    async def stream(request: Request) -> Response:
        async def lines() -> AsyncIterator[str]:
            for number in range(1000):
                yield f"{number}\n"

        return StreamingResponse(lines())

    async def background(request: Request) -> Response:
        return PlainTextResponse("soon", background=BackgroundTask(log.append, "background"))

    async def fails(request: Request) -> Response:
        raise ZeroDivisionError

    async def echo(websocket: StarletteWebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)
        log.append("websocket closed")

    return Starlette(
        routes=[
            Route("/", home),
            Route("/form", form, methods=["POST"]),
            Route("/count", count, methods=["POST"]),
            Route("/stream", stream),
            Route("/background", background),
            Route("/fails", fails),
            WebSocketRoute("/echo", echo),
            Mount("/static", StaticFiles(directory=folder)),
        ],
        middleware=[Middleware(Stamp), Middleware(GZipMiddleware, minimum_size=1000)],
        lifespan=lifespan,
    )


# --- FastAPI ---


class Item(BaseModel):
    name: str
    price: float


def fastapi(log: list[str]) -> FastAPI:
    app = FastAPI()

    async def session() -> AsyncIterator[str]:
        log.append("opened")
        try:
            yield "session"
        finally:
            log.append("closed")

    @app.get("/items/{number}")
    async def get_item(
        number: int, opened: Annotated[str, Depends(session)], q: str | None = None
    ) -> dict[str, Any]:
        if number == 0:
            raise HTTPException(404, "no such item")
        return {"number": number, "q": q, "session": opened}

    @app.post("/items")
    async def make_item(item: Item) -> Item:
        return item

    @app.post("/upload")
    async def upload(name: Annotated[str, Form()], file: UploadFile) -> dict[str, Any]:
        return {"name": name, "size": len(await file.read())}

    @app.get("/blocking")
    def blocking() -> str:
        return "from a thread"

    @app.websocket("/echo")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    return app


# --- Django ---


def django(folder: Path) -> Any:
    from django.conf import settings
    from django.http import FileResponse, HttpRequest, HttpResponse, JsonResponse
    from django.http import StreamingHttpResponse as Streaming
    from django.urls import path
    from django.views.decorators.csrf import csrf_exempt

    def home(request: HttpRequest) -> HttpResponse:
        return HttpResponse(f"hello {request.GET.get('name')} by {request.scheme}")

    @csrf_exempt
    async def upload(request: HttpRequest) -> HttpResponse:
        file = request.FILES["file"]
        assert not isinstance(file, list)
        return JsonResponse({"name": request.POST["name"], "size": file.size})

    async def stream(request: HttpRequest) -> Streaming:
        async def lines() -> AsyncIterator[str]:
            for number in range(100):
                yield f"{number}\n"

        return Streaming(lines())

    def file(request: HttpRequest) -> FileResponse:
        return FileResponse((folder / "file.bin").open("rb"))

    def fails(request: HttpRequest) -> HttpResponse:
        raise ZeroDivisionError

    if not settings.configured:
        settings.configure(
            ALLOWED_HOSTS=["*"],
            ROOT_URLCONF=(),
            SECRET_KEY="of a test",
            MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
            LOGGING_CONFIG=None,
        )
    settings.ROOT_URLCONF = tuple(
        path(name, view)
        for name, view in (
            *(("", home), ("upload", upload), ("stream", stream)),
            *(("file", file), ("fails", fails)),
        )
    )
    from django.core.asgi import get_asgi_application

    return get_asgi_application()


# --- Quart ---


def quart() -> Any:
    from quart import Quart, request, websocket

    app = Quart(__name__)

    @app.get("/")
    async def home() -> str:
        return f"hello {request.args['name']}"

    @app.post("/upload")
    async def upload() -> dict[str, Any]:
        form, files = await request.form, await request.files
        return {"name": form["name"], "size": len(files["file"].read())}

    @app.get("/stream")
    async def stream() -> Any:
        async def lines() -> AsyncIterator[bytes]:
            for number in range(100):
                yield f"{number}\n".encode()

        return lines()

    @app.websocket("/echo")
    async def echo() -> None:
        while True:
            await websocket.send(await websocket.receive())

    return app


# --- Litestar ---


def litestar() -> Litestar:
    @get("/")
    async def home(name: FromQuery[str]) -> str:
        return f"hello {name}"

    @post("/upload")
    async def upload(
        data: Annotated[LitestarUpload, Body(media_type=RequestEncodingType.MULTI_PART)],
    ) -> dict[str, int]:
        return {"size": len(await data.read())}

    @get("/stream")
    async def stream() -> Stream:
        async def lines() -> AsyncIterator[bytes]:
            for number in range(100):
                yield f"{number}\n".encode()

        return Stream(lines())

    @websocket_listener("/echo")
    async def echo(data: str) -> str:
        return data

    return Litestar([home, upload, stream, echo])
