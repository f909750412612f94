"""A server of ``examples`` in a process of its own, and plain HTTP towards it."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse

from tests.support.commands import ROOT
from tests.support.needs import missing, why_not

LIMIT = 45
BACKENDS = ["asyncio", "uvloop", "trio"]
DRIVERS = ["io_uring", "msg_zerocopy", "copy"]
# Every event loop over every driver.
COMBINATIONS = [
    f"--backend={backend} --driver={driver}" for backend in BACKENDS for driver in DRIVERS
]


@dataclass(frozen=True)
class Answer:
    """An answer to one request."""

    status: int
    headers: dict[str, str]
    body: bytes


class Served:
    """A running server.

    :ivar port: on 127.0.0.1.
    :ivar told: the first line of its standard output.
    :ivar output: what it wrote there after that, once it was stopped.
    :ivar errors: what it wrote to its error output, warnings as well.
    """

    def __init__(self, process: subprocess.Popen[str], url: str, told: str) -> None:
        self.process = process
        self.url = url
        self.told = told
        self.output = self.errors = ""
        self.port = int(url.rstrip("/").rpartition(":")[2])

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        """Return a connection; the caller closes it."""
        sock = socket.socket()
        sock.settimeout(LIMIT)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.connect(("127.0.0.1", self.port))
        return sock

    def ask(
        self, target: str, *, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> Answer:
        """Send one request on a connection of its own; ``_`` in a header's name is ``-``."""
        return ask(self.port, target, method=method, body=body, **headers)

    def exchange(self, data: bytes) -> bytes:
        """Send bytes as they are, and return all that comes until the connection is closed."""
        with self.connect() as sock:
            sock.sendall(data)
            received = bytearray()
            while chunk := sock.recv(1 << 16):
                received += chunk
            return bytes(received)

    def metrics(self) -> dict[str, float]:
        """Return the metrics, by name; of those with labels, name and labels."""
        text = self.ask("/metrics").body.decode()
        return {
            name: float(value)
            for name, value in re.findall(r"^([a-z]\w*(?:\{.*\})?) (\S+)$", text, re.MULTILINE)
        }

    def stop(self) -> str:
        """Stop it gracefully, and return the errors that it wrote; peers may cause warnings."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.stdout is not None
        # Some of it may have been read with the first line.
        self.output = self.process.stdout.read()
        _, self.errors = self.process.communicate(timeout=LIMIT)
        lines = self.errors.splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("WARNING "))


def ask(
    port: int, target: str, *, method: str = "GET", body: bytes | None = None, **headers: str
) -> Answer:
    """Send one request to a port of this machine."""
    connection = HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    try:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, target, body, names)
        return _read(connection.getresponse())
    finally:
        connection.close()


def _read(response: HTTPResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


@contextmanager
def serve(module: str, *arguments: str, under: Sequence[str] = ()) -> Iterator[Served]:
    """Run a server on a free port; at the end it must stop gracefully and have logged no error.

    :param under: a command that becomes the server, after it has restricted itself.

    The caller may have stopped it already.  Skips where its driver cannot run.  Answers are logged
    only if an argument asks for that, since nobody reads the log while it runs.
    """
    arguments = ("--no-access-log", *arguments)
    for argument in arguments:
        if argument.startswith("--driver=") and (reason := why_not(argument[9:])) is not None:
            missing(f"{argument} cannot run: {reason}")
    process = subprocess.Popen(
        [*under, sys.executable, "-W", "error", "-m", module, "--port=0", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.search(r"https?://\S+", line)
        assert match is not None, (line, process.communicate(timeout=LIMIT))
        served = Served(process, match[0], line)
        yield served
        if process.returncode is None:
            errors = served.stop()
            assert process.wait() == 0, errors
            assert not errors, errors
    finally:
        if process.returncode is None:
            process.kill()
            process.communicate()
