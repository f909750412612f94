"""Applications of real frameworks, as users write them, with a client as users have one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import httpx
import pytest
from websockets.sync.client import connect

from tests.asgi.frameworks import UPLOAD, django, fastapi, litestar, quart, starlette
from tests.asgi.rig import Rig, failures, serving
from tests.support.backends import only_asyncio
from tests.support.waiting import LIMIT, until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def clients(rig: Rig) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=rig.url, timeout=LIMIT) as client:
        yield client


async def converse(rig: Rig, path: str) -> None:
    """Have a WebSocket echo, and close it."""

    def run() -> None:
        with connect(f"ws://127.0.0.1:{rig.port}{path}", open_timeout=LIMIT) as websocket:
            for message in ("hello", "ünïcode"):
                websocket.send(message)
                assert websocket.recv(LIMIT) == message

    await anyio.to_thread.run_sync(run)


async def test_starlette(driver: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file.bin").write_bytes(UPLOAD)
    log: list[str] = []
    async with serving(starlette(tmp_path, log), driver=driver) as rig, clients(rig) as client:
        for visits in (1, 2):
            answer = await client.get("/")
            assert answer.json() == {"visits": visits}
            assert answer.headers["x-stamp"] == "stamped"
        answer = await client.post(
            "/form", data={"name": "ünïcode"}, files={"file": ("a.bin", UPLOAD)}
        )
        assert answer.json() == {"name": "ünïcode", "size": len(UPLOAD)}

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(UPLOAD), 100_000):
                yield UPLOAD[start : start + 100_000]

        assert (await client.post("/count", content=pieces())).text == str(len(UPLOAD))
        answer = await client.get("/stream")
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.text == "".join(f"{number}\n" for number in range(1000))
        assert (await client.get("/static/file.bin")).content == UPLOAD
        assert (await client.head("/static/file.bin")).headers["content-length"] == "3145728"
        assert (await client.get("/none")).status_code == 404
        assert (await client.delete("/")).status_code == 405
        assert (await client.get("/background")).text == "soon"
        await until(lambda: "background" in log)
        await converse(rig, "/echo")
        await until(lambda: "websocket closed" in log)
        assert not failures(caplog)
        assert (await client.get("/fails")).status_code == 500
        assert (await client.get("/")).status_code == 200
        assert rig.ring.statistics().bytes_sent > len(UPLOAD)
    assert log == ["started", "background", "websocket closed", "stopped"]
    assert len(failures(caplog)) == 1


async def test_fastapi(caplog: pytest.LogCaptureFixture) -> None:
    log: list[str] = []
    async with serving(fastapi(log)) as rig, clients(rig) as client:
        answer = await client.get("/items/7", params={"q": "a b"})
        assert answer.json() == {"number": 7, "q": "a b", "session": "session"}
        assert (await client.get("/items/0")).json() == {"detail": "no such item"}
        assert (await client.get("/items/x")).status_code == 422
        item = {"name": "a", "price": 1.5}
        assert (await client.post("/items", json=item)).json() == item
        answer = await client.post("/upload", data={"name": "a"}, files={"file": UPLOAD})
        assert answer.json() == {"name": "a", "size": len(UPLOAD)}
        assert (await client.get("/blocking")).json() == "from a thread"
        assert "/items" in (await client.get("/openapi.json")).json()["paths"]
        assert (await client.get("/docs")).status_code == 200
        await converse(rig, "/echo")
    assert log == ["opened", "closed"] * 3
    assert not failures(caplog)


@only_asyncio
@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume synchronous:Warning")
async def test_django(tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(UPLOAD)
    async with serving(django(tmp_path)) as rig, clients(rig) as client:
        assert (await client.get("/", params={"name": "a"})).text == "hello a by http"
        answer = await client.post("/upload", data={"name": "a"}, files={"file": UPLOAD})
        assert answer.json() == {"name": "a", "size": len(UPLOAD)}
        assert (await client.get("/stream")).text == "".join(f"{n}\n" for n in range(100))
        assert (await client.get("/file")).content == UPLOAD
        assert (await client.get("/fails")).status_code == 500
        assert (await client.get("/none")).status_code == 404


@only_asyncio
async def test_quart(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(quart()) as rig, clients(rig) as client:
        assert (await client.get("/", params={"name": "a"})).text == "hello a"
        answer = await client.post("/upload", data={"name": "a"}, files={"file": UPLOAD})
        assert answer.json() == {"name": "a", "size": len(UPLOAD)}
        assert (await client.get("/stream")).text == "".join(f"{n}\n" for n in range(100))
        assert (await client.get("/none")).status_code == 404
        await converse(rig, "/echo")
    assert not failures(caplog)


async def test_litestar(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(litestar()) as rig, clients(rig) as client:
        assert (await client.get("/", params={"name": "a"})).text == "hello a"
        answer = await client.post("/upload", files={"data": UPLOAD})
        assert answer.json() == {"size": len(UPLOAD)}
        assert (await client.get("/stream")).text == "".join(f"{n}\n" for n in range(100))
        assert (await client.get("/none")).status_code == 404
        await converse(rig, "/echo")
    assert not failures(caplog)
