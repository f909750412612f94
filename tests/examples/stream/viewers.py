"""Many viewers of the live picture in one thread."""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.support.served import LIMIT, Served

FRAME = re.compile(rb"X-Frame: (\d+)\r\n")


class Viewers:
    """Connections that read the live picture, and note which frames they saw begin.

    :ivar frames: by viewer, the numbers of frames.
    :ivar ended: viewers whose connection ended.
    """

    def __init__(self, server: Served, count: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._sockets: list[socket.socket] = []
        self._rest: list[bytes] = [b""] * count
        self.frames: list[list[int]] = [[] for _ in range(count)]
        self.ended: set[int] = set()
        for number in range(count):
            sock = watch(server)
            sock.setblocking(False)
            self._sockets.append(sock)
            self._selector.register(sock, selectors.EVENT_READ, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._selector.close()
        for sock in self._sockets:
            sock.close()

    def read_until(self, condition: Callable[[], object]) -> None:
        """Read whatever comes until a condition holds."""
        until = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < until, f"waited {LIMIT} s in vain"
            for key, _ in self._selector.select(0.1):
                self._read(key.data)

    def all_have_seen(self, frame: int) -> bool:
        """Whether all have got as far as a frame."""
        return all(seen and seen[-1] >= frame for seen in self.frames)

    def _read(self, number: int) -> None:
        try:
            data = self._sockets[number].recv(1 << 18)
        except ConnectionResetError:
            data = b""
        if not data:
            self._selector.unregister(self._sockets[number])
            self.ended.add(number)
            return
        data = self._rest[number] + data
        at = 0
        for match in FRAME.finditer(data):
            self.frames[number].append(int(match[1]))
            at = match.end()
        # A head may come in two pieces.
        self._rest[number] = data[max(at, len(data) - 30) :]


def watch(server: Served, *, receive_buffer: int | None = None) -> socket.socket:
    """Return a connection that has asked for the live picture."""
    sock = server.connect(receive_buffer=receive_buffer)
    sock.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return sock
