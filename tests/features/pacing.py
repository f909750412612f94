"""Peers of different speeds."""

from __future__ import annotations

import socket
import time

from tests.support.peers import Reader


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
