"""Both servers behind nginx with TLS, with the configuration that the page about deploying has."""

from __future__ import annotations

import json
import random
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from tests.examples.certificates import certificates
from tests.streams.web_servers import running
from tests.support.commands import ROOT
from tests.support.peers import listener
from tests.support.secure_websocket import SecureWebSocket, connect_secure
from tests.support.served import BACKENDS, LIMIT, Served, serve

# Another address than nginx has.
CLIENT = "127.0.0.2"
PNG = b"\x89PNG\r\n\x1a\n"
PASSED_ON = "proxy_set_header Host $http_host;"


def configuration() -> str:
    page = (ROOT / "docs/howto/deploying.md").read_text(encoding="utf-8")
    part = re.search(r"<!-- nginx-examples.conf -->\n```nginx\n(.*?)```\n", page, re.DOTALL)
    assert part is not None
    return part[1]


@dataclass(frozen=True)
class Proxy:
    """An nginx in front of a server.

    :ivar host: as clients ask for it.
    """

    port: int
    host: str
    context: ssl.SSLContext

    @contextmanager
    def client(self) -> Iterator[httpx.Client]:
        transport = httpx.HTTPTransport(verify=self.context, local_address=CLIENT)
        with httpx.Client(
            base_url=f"https://localhost:{self.port}",
            headers={"host": self.host},
            transport=transport,
            timeout=LIMIT,
        ) as client:
            yield client

    def join(self, name: str) -> AbstractContextManager[SecureWebSocket]:
        sock = socket.create_connection(("127.0.0.1", self.port), LIMIT, (CLIENT, 0))
        return connect_secure(
            f"wss://{self.host}/chat?room=lobby&name={name}",
            self.context,
            sock=sock,
            server_hostname="localhost",
            origin=Origin(f"https://{self.host}"),
        )


@contextmanager
def proxied(folder: Path, server: Served, name: str, part: str) -> Iterator[Proxy]:
    """Run nginx in front of a server that runs."""
    issued = certificates(folder)
    with listener() as sock:
        port = sock.getsockname()[1]
        for old, new in (
            ("listen 443", f"listen 127.0.0.1:{port}"),
            ("/etc/nginx/examples.pem", str(folder / "cert.pem")),
            ("/etc/nginx/examples.key", str(folder / "key.pem")),
            ("127.0.0.1:8000", f"127.0.0.1:{server.port}"),
            ("127.0.0.1:8001", f"127.0.0.1:{server.port}"),
        ):
            assert old in part
            part = part.replace(old, new)
        with running(folder, part, sock):
            yield Proxy(port, f"{name}:{port}", issued.context)


def addresses(server: Served) -> set[str]:
    """Stop the server, and return whose answers it has logged."""
    server.stop()
    return {line.partition(":")[0] for line in server.output.splitlines() if ' - "' in line}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_chat(tmp_path: Path, backend: str) -> None:
    options = ("--allowed-host=chat.example", "--access-log", f"--backend={backend}")
    with serve("examples.chat", *options) as server:
        with (
            proxied(tmp_path, server, "chat.example", configuration()) as proxy,
            proxy.client() as client,
            proxy.join("ada") as ada,
            proxy.join("bob") as bob,
        ):
            assert "<title>Chat</title>" in client.get("/").text
            assert client.get("/metrics").status_code == 404
            token = ""
            ada.send(json.dumps({"type": "say", "nonce": "1", "text": "hello"}))
            while (told := json.loads(bob.recv()))["type"] != "message":
                if told["type"] == "welcome":
                    token = told["token"]
            assert told["text"] == "hello"
            content = PNG + bytes((8 << 20) - len(PNG))
            posted = client.post(
                f"/pictures?token={token}&name=x.png",
                content=content,
                headers={"origin": f"https://{proxy.host}"},
            )
            assert posted.status_code == 204
            while (told := json.loads(ada.recv()))["type"] != "image":
                pass
            assert client.get(f"/pictures/lobby/{told['id']}").content == content
        assert addresses(server) == {CLIENT}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_stream(tmp_path: Path, backend: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    content = random.Random(1).randbytes(3_000_001)
    (folder / "film.mp4").write_bytes(content)
    options = ("--allowed-host=stream.example", "--access-log", f"--backend={backend}")
    with serve("examples.stream", str(folder), *options) as server:
        with (
            proxied(tmp_path, server, "stream.example", configuration()) as proxy,
            proxy.client() as client,
        ):
            assert "film.mp4" in client.get("/").text
            assert client.get("/files/film.mp4").content == content
            part = client.get("/files/film.mp4", headers={"range": "bytes=-1000"})
            assert (part.status_code, part.content) == (206, content[-1000:])
            seen = b""
            with client.stream("GET", "/live") as answer:
                for data in answer.iter_bytes():
                    seen += data
                    if seen.count(b"X-Frame: ") > 3:
                        break
        assert addresses(server) == {CLIENT}


def test_a_proxy_that_does_not_pass_the_host_on(tmp_path: Path) -> None:
    part = configuration().replace(PASSED_ON, "")
    for option, status in (("--no-proxy-headers", 403), ("--origin=https://chat.example", 101)):
        with serve("examples.chat", option) as server:
            with proxied(tmp_path, server, "chat.example", part) as found:
                # As on the port of HTTPS, which a browser leaves out.
                proxy = Proxy(found.port, "chat.example", found.context)
                if status == 101:
                    with proxy.join("ada") as ada:
                        assert json.loads(ada.recv())["type"] == "welcome"
                    continue
                with pytest.raises(InvalidStatus, match="403"), proxy.join("ada"):
                    pass
            server.stop()
            why = f"pages of https://chat.example may not connect to 127.0.0.1:{server.port}"
            assert f"refused 127.0.0.1: {why}" in server.errors
