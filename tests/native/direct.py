"""A ring without an event loop, whose turns the test takes."""

from __future__ import annotations

import errno
import itertools
import os
import select
import socket
import time
from typing import Any

from tests.native.model_state import AUTO, DATAGRAM, MORE, NOTIF, STAGED, STREAM
from tests.support.waiting import LIMIT
from zc_anyio._native._zc import ffi, lib

THRESHOLD = 1000


class Direct:
    """A ring without a loop, one socket and one context of it."""

    def __init__(self, sock: socket.socket, *, window: int = 1 << 40, policy: int = AUTO) -> None:
        out, info = ffi.new("zc_ring **"), ffi.new("struct zc_ring_info *")
        opened = lib.zc_ring_open(lib.ZC_DRIVER_IO_URING, 64, lib.ZC_WAKE_RING_FD, out, info)
        assert opened == 0
        self.ring, self.wake_fd = out[0], info.wake_fd
        self.core = lib.zc_ring_core(self.ring)
        self.ctx = lib.zc_ctx_new(self.core, 1, 0, window, policy, THRESHOLD)
        self._ids = itertools.count(1)
        self.sock = self.add(sock)
        self.events: list[tuple[int, ...]] = []
        # What was queued has to stay where it is.
        self.kept: list[Any] = []

    def add(self, sock: socket.socket) -> Any:
        kind = STREAM if sock.type == socket.SOCK_STREAM else DATAGRAM
        # The ring closes the descriptor.
        return lib.zc_sock_new(self.core, next(self._ids), os.dup(sock.fileno()), kind, 1)

    def send(
        self, data: bytes, *, flags: int = 0, to: bytes | None = None, sock: Any = None
    ) -> int:
        memory = ffi.new("char[]", data)
        self.kept.append(memory)
        address = (to or ffi.NULL, len(to or b""))
        common = (self.ring, self.ctx, sock or self.sock)
        return int(lib.zc_queue_or_send(*common, memory, len(data), flags, *address))

    def queue(self, data: bytes, sock: Any = None) -> int:
        memory = ffi.new("char[]", data)
        self.kept.append(memory)
        return int(lib.zc_queue(self.core, self.ctx, sock or self.sock, memory, len(data), 0))

    def turn(self) -> None:
        events = ffi.new("int64_t[]", 4 * 100)
        count = lib.zc_ring_turn(self.ring, events, 100)
        assert count >= 0
        self.events += [tuple(events[4 * i : 4 * i + 4]) for i in range(count)]

    def stats(self, *names: str) -> tuple[int, ...]:
        stats = ffi.new("struct zc_stats *")
        lib.zc_core_stats(self.core, stats)
        return tuple(getattr(stats, name) for name in names)

    def ctx_stats(self, *names: str) -> tuple[int, ...]:
        stats = ffi.new("struct zc_ctx_stats *")
        assert lib.zc_ctx_get_stats(self.ctx, stats) == 0
        return tuple(getattr(stats, name) for name in names)

    @property
    def copy_left(self) -> int:
        learned = ffi.new("struct zc_learned *")
        lib.zc_sock_learned(self.sock, learned)
        return int(learned.copy_left)

    def fill(self) -> bytes:
        """Send until the socket takes nothing more, part of a send included."""
        sent = bytearray()
        while True:
            data = os.urandom(30_000)
            sent += data
            if (result := self.send(data)) != STAGED:
                assert result >= 0
                return bytes(sent)

    def read(self, peer: socket.socket, size: int) -> bytes:
        """Read so much at the other end, while turns are taken."""
        received = bytearray()
        peer.setblocking(False)
        end = time.monotonic() + LIMIT
        while len(received) < size:
            assert time.monotonic() < end
            self.turn()
            select.select([peer], [], [], 0.01)
            try:
                received += peer.recv(1 << 20)
            except BlockingIOError:
                continue
        assert len(received) == size
        return bytes(received)

    def answer(self, result: int, notification: int | None = None) -> None:
        """Play the kernel: take the next request, and answer it."""
        view = ffi.new("struct zc_request_view *")
        assert lib.zc_next_request(self.core, view) == 1
        more = 0 if notification is None else MORE
        assert lib.zc_complete(self.core, view.user_data, result, more) == 0
        if notification is not None:
            assert lib.zc_complete(self.core, view.user_data, 0, NOTIF | notification) == 0

    def close(self) -> None:
        # Of a test that ends with sends under way the memory stays.
        lib.zc_core_reset(self.core, errno.ECONNRESET)
        end = time.monotonic() + LIMIT
        while any(self.stats("queued", "in_flight", "held")):
            assert time.monotonic() < end
            self.turn()
        lib.zc_ctx_flush(self.core, self.ctx, 0)
        assert lib.zc_ring_close(self.ring) == 0
