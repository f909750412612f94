"""Both servers with TLS of their own: HTTPS, wss, and peers that take nothing."""

from __future__ import annotations

import io
import json
import random
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.examples.certificates import Certificates, certificates
from tests.support.commands import ROOT, run
from tests.support.needs import need_command
from tests.support.secure_websocket import SecureWebSocket, connect_secure
from tests.support.served import BACKENDS, LIMIT, Served, serve
from tests.support.waiting import until_blocking

PNG = b"\x89PNG\r\n\x1a\n"
TEXT = "\N{GRINNING FACE}" * 4000

every_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture
def issued(tmp_path: Path) -> Certificates:
    return certificates(tmp_path)


@pytest.fixture
def client(issued: Certificates) -> Iterator[httpx.Client]:
    with httpx.Client(verify=issued.context, timeout=LIMIT) as made:
        yield made


def join(
    server: Served, issued: Certificates, name: str
) -> AbstractContextManager[SecureWebSocket]:
    url = f"{server.url.replace('http', 'ws', 1)}chat?room=lobby&name={name}"
    return connect_secure(url, issued.context)


def receive(member: SecureWebSocket, kind: str) -> dict[str, Any]:
    while True:
        fields: dict[str, Any] = json.loads(member.recv())
        if fields["type"] == kind:
            return fields


def say(member: SecureWebSocket, text: str) -> None:
    member.send(json.dumps({"type": "say", "nonce": "1", "text": text}))


@every_backend
def test_files_come_over_https(
    tmp_path: Path, issued: Certificates, client: httpx.Client, backend: str
) -> None:
    curl = need_command("curl", "curl")
    content = random.Random(1).randbytes(3_000_001)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "film.mp4").write_bytes(content)
    with serve("examples.stream", str(folder), f"--backend={backend}", *issued.options) as server:
        assert server.url.startswith("https://")
        film = f"{server.url}files/film.mp4"
        part = client.get(film, headers={"range": "bytes=1000000-2999999"})
        assert (part.status_code, part.content) == (206, content[1_000_000:3_000_000])
        taken = run(curl, "-sS", "--cacert", str(issued.authority), "-o", str(tmp_path / "x"), film)
        assert taken.status == 0, taken.errors
        assert (tmp_path / "x").read_bytes() == content


@every_backend
def test_the_live_picture_moves_over_https(
    tmp_path: Path, issued: Certificates, client: httpx.Client, backend: str
) -> None:
    options = (f"--backend={backend}", "--fps=50", *issued.options)
    with serve("examples.stream", str(tmp_path), *options) as server:
        seen: list[bytes] = []
        with client.stream("GET", f"{server.url}live") as answer:
            rest = b""
            for data in answer.iter_bytes():
                *parts, rest = (rest + data).split(b"--frame\r\n")
                seen += [part for part in parts if part]
                if len(seen) > 5:
                    break
        for part in seen:
            head, _, picture = part.partition(b"\r\n\r\n")
            assert b"X-Frame: " in head
            Image.open(io.BytesIO(picture)).load()
        assert len({part.partition(b"X-Time")[0] for part in seen}) == len(seen)
        # A viewer stays while the server stops, and is told of the end.
        with client.stream("GET", f"{server.url}live") as answer:
            assert next(answer.iter_bytes())


def test_a_viewer_over_tls_that_takes_nothing_is_dropped_and_delays_nobody(
    tmp_path: Path, issued: Certificates, client: httpx.Client
) -> None:
    options = ("--fps=50", "--width=3840", "--stall=1", *issued.options)
    with serve("examples.stream", str(tmp_path), *options) as server:

        def metric(name: str) -> float:
            lines = client.get(f"{server.url}metrics").text.splitlines()
            return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])

        with (
            server.connect(receive_buffer=4096) as raw,
            issued.context.wrap_socket(raw, server_hostname="localhost") as stalled,
        ):
            stalled.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            until_blocking(lambda: metric("stream_viewers_dropped_total") == 1)
            assert metric("stream_frames_skipped_total") > 0


@every_backend
def test_members_chat_over_wss(issued: Certificates, client: httpx.Client, backend: str) -> None:
    with (
        serve("examples.chat", f"--backend={backend}", *issued.options) as server,
        join(server, issued, "ada") as ada,
        join(server, issued, "bob") as bob,
    ):
        for size in (5, 120, 300, 4000):
            say(ada, "x" * size)
            assert receive(bob, "message")["text"] == "x" * size
        say(ada, TEXT)
        assert receive(bob, "message")["text"] == TEXT
        content = PNG + random.Random(1).randbytes(1 << 20)
        token = receive(ada, "welcome")["token"]
        posted = client.post(f"{server.url}pictures?token={token}&name=x.png", content=content)
        assert posted.status_code == 204
        told = receive(bob, "image")
        assert client.get(f"{server.url}pictures/lobby/{told['id']}").content == content
        # Everybody is told when the server goes, after what was said before.
        say(ada, "last words")
        assert receive(bob, "message")["text"] == "last words"
        server.process.terminate()
        for member in (ada, bob):
            with pytest.raises(Exception, match="1001"):
                receive(member, "nothing")
        _, errors = server.process.communicate(timeout=LIMIT)
        assert (server.process.returncode, errors) == (0, "")


@pytest.mark.parametrize("reads_on", [True, False])
def test_a_slow_member_over_tls_is_told_or_reset(
    issued: Certificates, client: httpx.Client, reads_on: bool
) -> None:
    options = ("--queue=0.5", "--message-rate=100000", *issued.options)
    with serve("examples.chat", *options) as server, ExitStack() as stack:
        quick = stack.enter_context(join(server, issued, "quick"))
        receive(quick, "presence")
        raw = stack.enter_context(server.connect(receive_buffer=4096))
        slow = stack.enter_context(issued.context.wrap_socket(raw, server_hostname="localhost"))
        slow.sendall(
            b"GET /chat?room=lobby&name=slow HTTP/1.1\r\nHost: localhost\r\n"
            b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        while "slow" not in receive(quick, "presence")["joined"]:
            pass
        delivered = 1

        def dropped() -> bool:
            nonlocal delivered
            say(quick, TEXT)
            while (message := json.loads(quick.recv()))["type"] != "message":
                if message["type"] == "presence":
                    delivered += 1
                    if "slow" in message["left"]:
                        return True
            delivered += 1
            return False

        until_blocking(dropped)
        if not reads_on:
            # It has not taken its close frame.
            until_blocking(lambda: is_reset(slow))
            return
        texts, code = read_frames(slow)
        assert code == 1013
        # Everything that was queued for it came before that: what was queued less what quick got,
        # which includes the presence that has told of both.
        quick_got = delivered + 1
        while json.loads(quick.recv())["type"] != "message":
            pass
        quick_got += 1
        metrics = client.get(f"{server.url}metrics").text
        (total,) = re.findall(r"^chat_deliveries_total (\S+)$", metrics, re.MULTILINE)
        kinds = [json.loads(text)["type"] for text in texts]
        assert kinds.count("message") + kinds.count("presence") == float(total) - quick_got


def is_reset(sock: socket.socket) -> bool:
    """Whether the connection was reset; a pong asks again if a reset was lost."""
    try:
        sock.send(b"\x8a\x80\0\0\0\0")
    except OSError:
        return True
    return False


def read_frames(sock: socket.socket) -> tuple[list[bytes], int]:
    """Read the texts of a server until it closes, and its close code."""
    texts: list[bytes] = []
    with sock.makefile("rb") as file:
        while file.readline() != b"\r\n":
            pass
        while True:
            opcode, size = file.read(2)
            if size >= 126:
                size = int.from_bytes(file.read(2 if size == 126 else 8), "big")
            payload = file.read(size)
            if opcode == 0x88:
                return texts, int.from_bytes(payload[:2], "big")
            texts.append(payload)


def test_the_terminal_client_takes_an_https_url(issued: Certificates) -> None:
    with serve("examples.chat", *issued.options) as server, join(server, issued, "ada") as ada:
        receive(ada, "welcome")
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "examples.chat.client", server.url, "--name=zoe"],
            cwd=ROOT,
            env={"SSL_CERT_FILE": str(issued.authority), "PATH": ""},
            input="hello\n",
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert receive(ada, "message")["text"] == "hello"


@pytest.mark.parametrize("module", ["examples.chat", "examples.stream"])
def test_a_certificate_that_is_not_there(module: str) -> None:
    for arguments, told in (
        (["--tls-cert=/no/such/file"], "--tls-cert /no/such/file: "),
        (["--tls-key=key.pem"], "--tls-key needs --tls-cert"),
    ):
        done = run(sys.executable, "-m", module, "--port=0", *arguments)
        assert done.status == 1
        assert done.errors.startswith(told)
        assert "Traceback" not in done.errors
