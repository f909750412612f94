"""More receivers than in ``tests.support.peers``: of different speeds, and of datagrams."""

from __future__ import annotations

import socket
import threading
import time
from types import TracebackType
from typing import Self

from tests.support.peers import Reader
from tests.support.waiting import LIMIT


class PacedReader(Reader):
    """Reads ``chunk`` bytes at most at a time, and rests ``pause`` seconds after each."""

    def __init__(self, sock: socket.socket, *, chunk: int, pause: float = 0.0) -> None:
        super().__init__(sock, chunk=chunk)
        self._pause = pause

    def _read(self) -> None:
        try:
            while chunk := self._socket.recv(self._chunk):
                self._received += chunk
                if self._pause:
                    time.sleep(self._pause)
        except OSError as exc:
            self.error = exc


class Collector:
    """Takes datagrams in a thread until an empty one comes."""

    def __init__(self, sock: socket.socket) -> None:
        self.received: list[bytes] = []
        self._socket = sock
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while data := self._socket.recv(1 << 16):
            self.received.append(data)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread.is_alive() and exc is not None:
            with socket.socket(self._socket.family, socket.SOCK_DGRAM) as waker:
                waker.sendto(b"", self._socket.getsockname())
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()
