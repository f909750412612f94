"""Many at once: downloads in parallel among clients that trickle, and wrk."""

from __future__ import annotations

import hashlib
import os
import random
import re
import selectors
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.support.commands import ROOT
from tests.support.needs import need_command
from tests.support.served import LIMIT, Served, serve

MIB = 1 << 20
SIZE = 1024 * MIB
PARTS = 4
TRICKLERS = 100


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random bytes here and there, and holes between."""
    path = tmp_path_factory.mktemp("load") / "large.bin"
    noise = random.Random(2)
    with path.open("wb") as file:
        for at in range(0, SIZE, MIB):
            file.seek(at + noise.randrange(MIB - 70_000))
            file.write(noise.randbytes(65_537))
        file.truncate(SIZE)
    return path


class Tricklers:
    """Clients that send, or take, one byte a second, in a thread; half of them each."""

    def __init__(self, server: Served, target: str) -> None:
        self._stop = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._sockets: list[socket.socket] = []
        self._request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        for number in range(TRICKLERS):
            sock = server.connect(receive_buffer=4096)
            self._sockets.append(sock)
            if number % 2:
                sock.sendall(self._request)
        self._thread = threading.Thread(target=self._run)
        self.rounds = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def wait_round(self) -> None:
        """Wait until each has sent, or taken, another byte."""
        seen = self.rounds
        until = time.monotonic() + LIMIT
        while self.rounds == seen:
            assert time.monotonic() < until
            time.sleep(0.05)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(LIMIT)
        for sock in self._sockets:
            sock.close()

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            for number, sock in enumerate(self._sockets):
                try:
                    if number % 2:
                        sock.recv(1)
                    else:
                        sock.send(self._request[self.rounds % 10 :][:1])
                except OSError:
                    pass  # the server has closed the connection
            self.rounds += 1


def download(server: Served, target: str, start: int, end: int, output: int) -> None:
    """Download a part of a file from the server into a file."""
    with server.connect() as sock, sock.makefile("rb") as file:
        request = (
            f"GET {target} HTTP/1.1\r\nHost: localhost\r\nRange: bytes={start}-{end - 1}\r\n\r\n"
        )
        sock.sendall(request.encode())
        assert file.readline() == b"HTTP/1.1 206 Partial Content\r\n"
        while file.readline() != b"\r\n":
            pass
        while start < end:
            chunk = file.read(min(MIB, end - start))
            assert chunk, f"the answer ended at {start}"
            os.pwrite(output, chunk, start)
            start += len(chunk)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("driver", "size"), [("io_uring", SIZE), ("msg_zerocopy", SIZE // 8)])
def test_parallel_downloads_are_right_while_others_trickle(
    large: Path, tmp_path: Path, driver: str, size: int
) -> None:
    with serve("examples.stream", str(large.parent), f"--driver={driver}") as server:
        target = f"/files/{large.name}"
        output = os.open(tmp_path / "got", os.O_RDWR | os.O_CREAT)
        try:
            with Tricklers(server, target) as tricklers, ThreadPoolExecutor(PARTS) as pool:
                tricklers.wait_round()
                values = server.metrics()
                assert values["process_open_fds"] > TRICKLERS
                share = size // PARTS
                done = [
                    pool.submit(download, server, target, at, at + share, output)
                    for at in range(0, size, share)
                ]
                for part in done:
                    part.result()
                values = server.metrics()
                tricklers.wait_round()
            assert digest(tmp_path / "got") == digest(large, size)
        finally:
            os.close(output)
            (tmp_path / "got").unlink()
        assert values["stream_file_bytes_total"] >= size
        # The pages that go out are the page cache's.
        assert values["process_private_memory_bytes"] < 150 * MIB


def digest(path: Path, size: int = SIZE) -> str:
    """Return the SHA-256 of the beginning of a file."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        for at in range(0, size, MIB):
            hashed.update(file.read(min(MIB, size - at)))
    return hashed.hexdigest()


@pytest.mark.parametrize(
    ("backend", "name"),
    [("asyncio", "small.webm"), ("uvloop", "film.mp4"), ("trio", "small.webm")],
)
def test_wrk_finds_no_error(folder: Path, backend: str, name: str) -> None:
    wrk = need_command("wrk", "wrk")
    with serve("examples.stream", str(folder), f"--backend={backend}") as server:
        done = subprocess.run(
            [wrk, "-t1", "-c20", "-d1s", "--timeout=40s", f"{server.url}files/{name}"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=True,
        )
        assert "Socket errors" not in done.stdout, done.stdout
        assert "Non-2xx" not in done.stdout, done.stdout
        match = re.search(r"(\d+) requests in", done.stdout)
        assert match is not None, done.stdout
        assert int(match[1]) > 0
