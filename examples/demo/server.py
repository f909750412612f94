"""The receiving side: a plain anyio server in a process of its own.

That process runs this file as a script and does not use zc_anyio, so it receives what any peer
would.  A connection begins with a header of :data:`HEADER_SIZE` bytes: its number, and "slow" or
"fast".  The rest of the stream is hashed.  The server writes lines of JSON to its standard output:
first its port, then one for every connection that has ended.
"""

from __future__ import annotations

import hashlib
import json
import socket
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

HEADER_SIZE = 32
FAST_READ = 1 << 20
# How much a slow reader takes at a time, and in a second.
SLOW_READ = 64 << 10
SLOW_BYTES_A_SECOND = 4 << 20
LONGEST_LINE = 1 << 16


def header(connection: int, *, slow: bool) -> bytes:
    """Return the header of a connection."""
    return f"{connection} {'slow' if slow else 'fast'}".encode().ljust(HEADER_SIZE)


@dataclass(frozen=True, slots=True)
class Received:
    """What the server got on one connection.

    :ivar sha256: digest of everything after the header, in hexadecimal.
    :ivar error: why the connection ended before the end of its stream, or ``None``.
    """

    connection: int
    size: int
    sha256: str
    error: str | None


# --- in the sending process ---


class Server:
    """The server, as the sending process sees it.

    :ivar pid: the id of its process.
    :ivar port: where it listens, on 127.0.0.1.
    """

    def __init__(self, pid: int, port: int, lines: BufferedByteReceiveStream) -> None:
        self.pid = pid
        self.port = port
        self._lines = lines

    async def received(self) -> Received:
        """Wait until the next connection has ended, and return what came over it.

        :raises RuntimeError: the server has ended.
        """
        return Received(**await _next_answer(self._lines))


async def _next_answer(lines: BufferedByteReceiveStream) -> dict[str, Any]:
    try:
        line = await lines.receive_until(b"\n", LONGEST_LINE)
    except (anyio.EndOfStream, anyio.IncompleteRead) as exc:
        raise RuntimeError("the receiving server has ended") from exc
    answer: dict[str, Any] = json.loads(line)
    return answer


@asynccontextmanager
async def start_server() -> AsyncGenerator[Server, None]:
    """Run the server for the length of a scope; leaving the scope in any way ends it."""
    process = await anyio.open_process([sys.executable, __file__], stderr=None)
    try:
        assert process.stdout is not None
        lines = BufferedByteReceiveStream(process.stdout)
        yield Server(process.pid, (await _next_answer(lines))["port"], lines)
    finally:
        if process.returncode is None:
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.aclose()


# --- in the server's process ---


def _answer(fields: dict[str, object]) -> None:
    print(json.dumps(fields), flush=True)


async def _receive_all(stream: SocketStream) -> Received:
    head = b""
    while len(head) < HEADER_SIZE:
        head += await stream.receive(HEADER_SIZE - len(head))
    connection, pace = head.decode().split()
    slow = pace == "slow"
    if slow:
        # Otherwise the receive buffer of a slow reader would hold megabytes.
        raw: socket.socket = stream.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_READ)
    digest = hashlib.sha256()
    size = 0
    error = None
    try:
        while True:
            chunk = await stream.receive(SLOW_READ if slow else FAST_READ)
            digest.update(chunk)
            size += len(chunk)
            if slow:
                await anyio.sleep(len(chunk) / SLOW_BYTES_A_SECOND)
    except anyio.EndOfStream:
        pass
    except anyio.BrokenResourceError as exc:
        error = str(exc.__cause__ or exc)
    return Received(int(connection), size, digest.hexdigest(), error)


async def _serve_one(stream: SocketStream) -> None:
    async with stream:
        try:
            received = await _receive_all(stream)
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return  # it ended before its header was complete, so nobody waits for it
        _answer(asdict(received))


async def _serve() -> None:
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1", backlog=1024) as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, _serve_one)
        _answer({"port": listener.extra(SocketAttribute.local_port)})
        # Standard input ends when the sending process does, even if that was killed.
        await anyio.to_thread.run_sync(sys.stdin.buffer.read)
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    try:
        anyio.run(_serve)
    except KeyboardInterrupt:
        sys.exit(130)
