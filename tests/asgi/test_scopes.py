"""What an application is told about a request, and what is logged."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.asgi.applications import Application, respond
from tests.asgi.rig import (
    CLOSE,
    GET,
    body,
    receive_all,
    serving,
    status,
)
from tests.support.backends import one_backend

pytestmark = pytest.mark.anyio


@one_backend
async def test_the_scope_of_a_request() -> None:
    async with serving(Application(), root_path="/mounted") as rig:

        def run(sock: socket.socket) -> tuple[Any, bytes]:
            sock.sendall(GET % (b"/d%c3%a9crire/?a=%20b", CLOSE))
            return sock.getsockname(), receive_all(sock)

        app_path = "/mounted/décrire/"
        assert status((await rig.client(run))[1]) == 404
    seen: dict[str, Any] = {}

    async def look(scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            seen.update(scope)
            await respond(send, b"")
        else:
            raise NotImplementedError

    async with serving(look, root_path="/mounted") as rig:
        (client, port), answer = await rig.client(run)
        assert status(answer) == 200
        assert seen["path"] == app_path
        assert seen["raw_path"] == b"/mounted/d%c3%a9crire/"
        assert seen["query_string"] == b"a=%20b"
        assert seen["root_path"] == "/mounted"
        assert tuple(seen["client"]) == (client, port)
        assert tuple(seen["server"]) == ("127.0.0.1", rig.port)
        assert (seen["scheme"], seen["method"], seen["http_version"]) == ("http", "GET", "1.1")
        assert seen["headers"] == [(b"host", b"a"), (b"connection", b"close")]
        assert "state" not in seen
        assert seen["extensions"]["zc_anyio"]["ring"] is rig.ring


@one_backend
@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (None, "127.0.0.1"),
        ("10.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "4.4.4.4"),
        ("127.0.0.0/8, 4.0.0.0/8", "3.3.3.3"),
        ("*", "2.2.2.2"),
    ],
)
async def test_only_trusted_proxies_are_believed(allowed: str | None, expected: str) -> None:
    forwarded = b"X-Forwarded-For: 2.2.2.2, 3.3.3.3\r\nX-Forwarded-For: 4.4.4.4\r\n"
    async with serving(Application(), forwarded_allow_ips=allowed) as rig:
        answer = await rig.get("/describe", forwarded + b"X-Forwarded-Proto: https\r\n")
        assert f"'client': ('{expected}'," in body(answer).decode()
        scheme = "http" if expected == "127.0.0.1" else "https"
        assert f"'scheme': '{scheme}'" in body(answer).decode()


@one_backend
async def test_answers_are_logged_as_uvicorn_does(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with serving(Application()) as rig:
        await rig.get("/hello?a=b")
    (record,) = [record for record in caplog.records if record.name == "zc_anyio.asgi.access"]
    assert isinstance(record.args, tuple)
    client, *others = record.args
    assert str(client).startswith("127.0.0.1:")
    assert others == ["GET", "/hello?a=b", "1.1", 200]
