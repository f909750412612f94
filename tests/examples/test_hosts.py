"""Names that the servers answer to, and those that they refuse."""

from __future__ import annotations

import sys

import httpx
import pytest
from starlette.responses import PlainTextResponse

from examples.serving import Hosts
from tests.support.commands import run
from tests.support.served import Served, serve

HANDSHAKE = (
    "GET /chat?room=lobby&name=x HTTP/1.1\r\nHost: {}\r\n{}Connection: Upgrade\r\n"
    "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
MODULES = ["examples.chat", "examples.stream"]


def warnings(server: Served) -> list[str]:
    """Stop the server, and return what it has logged."""
    server.stop()
    return [line.partition(": ")[2] for line in server.errors.splitlines()]


def handshake(server: Served, host: str, origin: str | None = None) -> int:
    """Return the status of the answer to a handshake."""
    with server.connect() as sock:
        line = "" if origin is None else f"Origin: {origin}\r\n"
        sock.sendall(HANDSHAKE.format(host, line).encode())
        return int(sock.recv(12).split()[1])


@pytest.mark.parametrize("module", MODULES)
def test_another_name_is_refused_and_told_of(module: str) -> None:
    with serve(module, "--allowed-host=Friend.example") as server:
        for host in ("localhost", f"127.0.0.1:{server.port}", "[::1]:1", "friend.example:80"):
            assert server.ask("/", host=host).status == 200, host
        others = ["evil.example", "friend.example.evil.example", "10.0.0.1", "[::1", ""]
        for host in others:
            refused = server.ask("/metrics", host=host)
            assert refused.status == 400, host
            assert b"--allowed-host" in refused.body
        told = [f"refused 127.0.0.1: this server is not called {host}," for host in others]
        assert [line.rpartition(" see")[0] for line in warnings(server)] == told


@pytest.mark.parametrize("host", ["friend.example:8001", "http://friend.example", "a b", "", "."])
def test_what_is_no_name_is_not_taken(host: str) -> None:
    done = run(sys.executable, "-m", "examples.chat", "--port=0", f"--allowed-host={host}")
    assert done.status == 2
    assert f"{host!r} is not a name or an address, without a port" in done.errors


@pytest.mark.parametrize("host", ["[fd00::0:1]", "fd00::1"])
def test_an_address_may_be_written_as_in_a_url(host: str) -> None:
    with serve("examples.chat", f"--allowed-host={host}") as server:
        assert server.ask("/", host="[fd00::1]:8001").status == 200


def test_a_websocket_to_another_name_is_refused() -> None:
    with serve("examples.chat") as server:
        # As after DNS rebinding: the origin is the name that was asked for.
        assert handshake(server, "evil.example", "http://evil.example") == 400
        assert handshake(server, "localhost", "http://localhost") == 101
        (told,) = warnings(server)
    assert "not called evil.example" in told


def test_any_name_can_be_allowed() -> None:
    with serve("examples.chat", "--allowed-host=*") as server:
        assert server.ask("/", host="whatever.example").status == 200


def test_what_a_proxy_without_the_host_causes_is_told_of() -> None:
    with serve("examples.chat") as server:
        host, origin = f"127.0.0.1:{server.port}", "https://chat.example"
        assert handshake(server, host, origin) == 403
        answer = server.ask("/pictures?token=x", method="POST", body=b"", host=host, origin=origin)
        assert answer.status == 403
        told = warnings(server)
    why = f"pages of https://chat.example may not connect to {host}, see --origin"
    assert told == [f"refused 127.0.0.1: {why}", f"refused a picture of 127.0.0.1: {why}"]


@pytest.mark.anyio
async def test_a_server_at_all_addresses_answers_to_each_of_them() -> None:
    app = Hosts(PlainTextResponse("hello"), frozenset({"0.0.0.0"}))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport) as client:
        for host, status in (("10.0.0.1", 200), ("[fe80::1]:80", 200), ("evil.example", 400)):
            answer = await client.get("http://a/", headers={"host": host})
            assert answer.status_code == status
