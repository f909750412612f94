"""Redis of one's own: Debian's redis-server on a free port, in a folder of the test."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.needs import need_command
from tests.support.waiting import LIMIT


class RedisServer:
    """A Redis that keeps nothing on disk, and can be killed and started again.

    :ivar url: where it is, or will be.
    """

    def __init__(self, folder: Path) -> None:
        self._command = need_command("redis-server", "redis-server")
        self._folder = folder
        # Bound, this keeps the port while Redis is down: without it, a connection of another test
        # can get it as its own port, and then Redis does not start again.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self._port = int(self._place.getsockname()[1])
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        arguments = ["--bind", "127.0.0.1", "--port", str(self._port), "--dir", str(self._folder)]
        self._process = subprocess.Popen(
            [self._command, *arguments, "--save", "", "--appendonly", "no"],
            stdout=subprocess.DEVNULL,
        )
        end = time.monotonic() + LIMIT
        while self.ask("PING") != "+PONG":
            assert time.monotonic() < end, "redis-server does not start"
            time.sleep(0.01)

    def url_of(self, user: str) -> str:
        """Return where it is for a user: Redis can be kept from one server of several."""
        return self.url.replace("://", f"://{user}:secret@")

    def let_in(self, user: str) -> None:
        """Allow a user everything."""
        assert self.ask(f"ACL SETUSER {user} on >secret ~* &* +@all") == "+OK"

    def kill(self) -> None:
        """End it at once; what it had is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        """End it for good."""
        self.kill()
        self._place.close()

    def freeze(self) -> None:
        """Let it answer nothing, with all connections open; it can only be killed then."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def ask(self, command: str) -> str | None:
        """Return the first line of its answer, or ``None`` if it does not answer."""
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=LIMIT) as sock:
                sock.sendall(f"{command}\r\n".encode())
                return sock.makefile("rb").readline().decode().strip()
        except OSError:
            return None


@contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """Run Redis for the length of a scope."""
    server = RedisServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.close()
