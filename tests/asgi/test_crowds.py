"""Thousands of clients that are idle, slow or hostile: others are served, and memory is bounded."""

from __future__ import annotations

import re
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.asgi.command import Command, command
from tests.asgi.served_app import LARGE
from tests.support.needs import missing
from tests.support.waiting import until_blocking

pytestmark = pytest.mark.timeout(150)

BACKENDS = ["asyncio", "uvloop", "trio"]
KIB, MIB = 1 << 10, 1 << 20
LIMIT = 20.0
# Connections that wait to be accepted: fewer than the listener keeps.
BATCH = 250
IDLE = 9_500


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """As many descriptors as this process and the server may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * IDLE + 500:
        missing(f"descriptors for a process, two for each connection; the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def private_memory(process: int) -> int:
    """Return a process's memory without mapped files, in bytes."""
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"^RssAnon:\s*(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return int(found[1]) * KIB


def open_descriptors(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


class Crowd:
    """Clients of one server, which are all closed at the end."""

    def __init__(self, served: Command) -> None:
        self.port = int(served.urls[0].rpartition(":")[2])
        self.clients: list[socket.socket] = []

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *exc: object) -> None:
        for client in self.clients:
            client.close()

    def connect(self, data: bytes, *, receive_buffer: int | None = None) -> socket.socket:
        """Return a client that has sent something."""
        client = socket.socket()
        self.clients.append(client)
        client.settimeout(LIMIT)
        if receive_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect(("127.0.0.1", self.port))
        client.sendall(data)
        return client


def receive_all(client: socket.socket) -> bytes:
    """Return all that comes until the server closes or resets."""
    received = bytearray()
    try:
        while data := client.recv(64 * KIB):
            received += data
    except ConnectionResetError:
        pass
    return bytes(received)


GET = b"GET %b HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("backend", BACKENDS)
def test_thousands_of_idle_connections(backend: str) -> None:
    with command(f"--backend={backend}", "--no-access-log", "--timeout-keep-alive=600") as served:
        process = served.ask()["process"]
        before, opened = private_memory(process), open_descriptors(process)
        with Crowd(served) as crowd:
            for _ in range(IDLE // BATCH):
                for client in [crowd.connect(GET % b"/") for _ in range(BATCH)]:
                    assert client.recv(4 * KIB).startswith(b"HTTP/1.1 200 ")
            assert served.ask()["process"] == process
            assert (private_memory(process) - before) / IDLE < 24 * KIB
            for client in crowd.clients[::100]:
                client.sendall(GET % b"/")
                assert client.recv(4 * KIB).startswith(b"HTTP/1.1 200 ")
        until_blocking(lambda: open_descriptors(process) <= opened + 40, "all are closed")
        assert served.stop() == 0
        assert not served.errors()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_thousand_clients_that_take_nothing(driver: str, backend: str) -> None:
    count = 1_000
    options = (f"--backend={backend}", f"--driver={driver}", "--no-access-log")
    with command(*options) as served:
        process = served.ask()["process"]
        before = private_memory(process)
        with Crowd(served) as crowd:
            for _ in range(count // BATCH):
                clients = [
                    crowd.connect(GET % b"/large", receive_buffer=4 * KIB) for _ in range(BATCH)
                ]
                # Each has its answer's head, so the server sends to all of them.
                for client in clients:
                    assert client.recv(12) == b"HTTP/1.1 200"
            for _ in range(20):
                assert served.ask()["process"] == process
            # Their answers are the same 4 MiB, which are there once.
            assert (private_memory(process) - before) / count < 64 * KIB
            answer = httpx.get(f"{served.urls[0]}/large", timeout=LIMIT)
            assert answer.content == LARGE
        assert served.stop() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_thousand_heads_that_do_not_end(backend: str) -> None:
    count = 1_000
    with command(f"--backend={backend}", "--no-access-log", "--timeout-head=1") as served:
        with Crowd(served) as crowd:
            for _ in range(count):
                crowd.connect(b"GET / HTTP/1.1\r\nHost: a\r\n")
            crowd.clients[0].sendall(b"X: a")
            served.ask()
            answers = [receive_all(client)[:12] for client in crowd.clients]
        assert answers == [b"HTTP/1.1 408"] * count
        assert served.stop() == 0
        assert all("Invalid HTTP request" in line for line in served.errors())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_flood_of_connections_that_say_nothing_or_nonsense(backend: str) -> None:
    with command(f"--backend={backend}", "--no-access-log") as served:
        process = served.ask()["process"]
        opened, before = open_descriptors(process), private_memory(process)
        for number in range(6_000):
            with Crowd(served) as crowd:
                crowd.connect([b"", b"\x16\x03\x01\x02" * 500, GET[:20]][number % 3])
            if number % BATCH == 0:
                assert served.ask()["process"] == process
        until_blocking(lambda: open_descriptors(process) <= opened + 40, "all are closed")
        assert private_memory(process) - before < 64 * MIB
        assert served.stop() == 0
        assert all("Invalid HTTP request" in line for line in served.errors())
