"""The other end of a connection: plain sockets, read by threads or by child processes.

A peer that never reads is a socket that the test leaves alone.  One that closes calls
``socket.close()``; one that resets, :func:`zc_anyio.testing.reset`.
"""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import SocketStream

from tests.support.waiting import LIMIT
from zc_anyio import testing

# More than a sending socket may hold, whatever it was set to: the limit is net.ipv4.tcp_wmem's.
MORE_THAN_FITS = 24 << 20
# Small, yet larger than a segment of loopback; below that TCP is very slow once the peer reads.
SMALL_BUFFER = 128 << 10
# The kernel caps what is asked for at net.core.wmem_max, and doubles it.
LARGE_BUFFER = 4 << 20


def listener(*, family: int = socket.AF_INET, receive_buffer: int | None = None) -> socket.socket:
    """Return a listening socket on loopback; connections inherit its receive buffer."""
    server = socket.socket(family, socket.SOCK_STREAM)
    if receive_buffer is not None:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    server.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
    server.listen(256)
    return server


@contextmanager
def tcp_pair(
    *, stalled: bool = False, send_buffer: int | None = None, receive_buffer: int | None = None
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Connect two sockets over loopback: the sending one, and its peer.

    :param stalled: as :func:`zc_anyio.testing.silent_pair`.
    """
    pair = (
        testing.silent_pair()
        if stalled
        else testing.tcp_pair(send_buffer=send_buffer, receive_buffer=receive_buffer)
    )
    with pair as made:
        yield made


@contextmanager
def parked_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Connect two sockets with small buffers: a send of a megabyte waits for the peer."""
    with tcp_pair(send_buffer=SMALL_BUFFER, receive_buffer=SMALL_BUFFER) as pair:
        yield pair


def bound(family: int = socket.AF_INET) -> socket.socket:
    """Return a UDP socket on loopback that holds many datagrams."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, LARGE_BUFFER)
    sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
    sock.settimeout(LIMIT)
    return sock


@contextmanager
def udp_pair(family: int = socket.AF_INET) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connected UDP socket, and the one that receives from it."""
    with bound(family) as receiver, socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.connect(receiver.getsockname())
        yield sender, receiver


async def wrap(sock: socket.socket) -> SocketStream:
    """Make an anyio stream of a connected socket; it belongs to the stream from now on."""
    return await SocketStream.from_socket(sock)


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """Receive so many bytes."""
    received = bytearray()
    while len(received) < size:
        chunk = sock.recv(min(size - len(received), 1 << 20))
        assert chunk, f"the stream ended after {len(received)} of {size} bytes"
        received += chunk
    return bytes(received)


def receive_to_end(sock: socket.socket) -> bytes:
    """Receive until the end of the stream."""
    received = bytearray()
    while chunk := sock.recv(1 << 20):
        received += chunk
    return bytes(received)


def at_end(sock: socket.socket) -> bool:
    """Whether the end of the stream has arrived, and nothing before it waits."""
    timeout = sock.gettimeout()
    sock.setblocking(False)  # a socket with a timeout waits even with MSG_DONTWAIT
    try:
        return sock.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    finally:
        sock.settimeout(timeout)


class Reader:
    """Reads a socket to its end, or reset, in a thread; ``chunk`` bytes at a time.

    Left while the connection is still open, it shuts the socket down so that the thread ends.

    :param keep: whether to keep what is received.
    """

    def __init__(self, sock: socket.socket, *, chunk: int = 1 << 20, keep: bool = True) -> None:
        self._socket = sock
        self._chunk = chunk
        self._keep = keep
        self._received = bytearray()
        self.error: OSError | None = None
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread.is_alive():
            with suppress(OSError):  # not connected any more
                self._socket.shutdown(socket.SHUT_RD)
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()

    def _read(self) -> None:
        try:
            while chunk := self._socket.recv(self._chunk):
                if self._keep:
                    self._received += chunk
        except OSError as exc:
            self.error = exc

    @property
    def size(self) -> int:
        """Bytes received so far."""
        return len(self._received)

    async def all(self) -> bytes:
        """Wait for the end of the stream and return all that was received."""
        await anyio.to_thread.run_sync(self._thread.join, LIMIT)
        assert not self._thread.is_alive(), "the stream did not end"
        return bytes(self._received)


CHILD_READER = """
import hashlib, socket, sys
sock = socket.socket(fileno=int(sys.argv[1]))
chunk, size, digest = int(sys.argv[2]), 0, hashlib.sha256()
while data := sock.recv(chunk):
    size += len(data)
    digest.update(data)
print(size, digest.hexdigest())
"""


class ChildReader:
    """Reads a socket to its end in a child process, a little at a time, and digests it."""

    def __init__(self, sock: socket.socket, *, chunk: int) -> None:
        sock.settimeout(None)
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", CHILD_READER, str(sock.fileno()), str(chunk)],
            pass_fds=[sock.fileno()],
            stdout=subprocess.PIPE,
            text=True,
        )
        sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    async def result(self) -> tuple[int, str]:
        """Wait for the end of the stream; return the bytes received and their SHA-256."""
        output, _ = await anyio.to_thread.run_sync(lambda: self._process.communicate(timeout=60))
        size, digest = output.split()
        return int(size), digest


def digest(data: bytes) -> str:
    """Return the SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()
