"""A ring to receive with by hand, a turn at a time, from the real kernel."""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable

from tests.support.waiting import LIMIT
from zc_anyio._native._zc import ffi, lib

READY, ANOTHER = lib.ZC_EV_READY, {lib.ZC_EV_AGAIN, lib.ZC_EV_MORE}
RECEIVE, POLL = lib.ZC_RX_RECEIVE, lib.ZC_RX_POLL


class Receiver:
    """A receiver at the end of a connection, and the socket at the other end."""

    def __init__(self, ring: Receiving, number: int, pair: tuple[socket.socket, ...]) -> None:
        self.ring, self.number = ring, number
        self.own, self.peer = pair
        self.peer.settimeout(LIMIT)
        out = ffi.new("zc_rx **")
        assert lib.zc_rx_new(ring.ring, self.own.fileno(), number, out) == 0
        self.handle = out[0]

    def arm(self, what: int = RECEIVE) -> None:
        assert lib.zc_rx_arm(self.ring.ring, self.handle, what) == 0

    def begin(self) -> None:
        """Have the kernel bring what comes, from now on."""
        self.arm()
        self.ring.turn()

    @property
    def ready(self) -> int:
        """Bytes that can be taken, 0 at the end, or a negative errno."""
        return int(lib.zc_rx_ready(self.handle))

    def is_armed(self) -> bool:
        return bool(lib.zc_rx_is_armed(self.handle))

    def is_bulk(self) -> bool:
        return bool(lib.zc_rx_is_bulk(self.handle))

    def take(self, most: int = 1 << 30) -> bytes:
        size = self.ready
        if size in (-errno.EAGAIN, -errno.ENODATA):
            return b""
        size = min(size, most)
        assert size > 0
        data: bytes = ffi.buffer(lib.zc_rx_data(self.handle), size)[:]
        assert lib.zc_rx_consume(self.handle, size) == 0
        return data

    def free(self) -> None:
        assert lib.zc_rx_free(self.ring.ring, self.handle) == 0

    def close(self) -> None:
        self.own.close()
        self.peer.close()


class Receiving:
    """A ring, its receivers, and the numbers of those that it has told of."""

    def __init__(self) -> None:
        out, info = ffi.new("zc_ring **"), ffi.new("struct zc_ring_info *")
        opened = lib.zc_ring_open(lib.ZC_DRIVER_IO_URING, 64, lib.ZC_WAKE_RING_FD, out, info)
        assert opened == 0
        self.ring = out[0]
        self.wake_fd = info.wake_fd
        self.receivers: list[Receiver] = []
        self.told: list[int] = []
        self.barrier = self.add()

    def add(self, pair: tuple[socket.socket, ...] | None = None) -> Receiver:
        made = Receiver(self, len(self.receivers), pair or socket.socketpair())
        self.receivers.append(made)
        return made

    def turn(self, most: int = 100) -> bool:
        """Take a turn that tells of so many; return whether another is to follow."""
        events = ffi.new("int64_t[]", 4 * (most + 2))
        count = lib.zc_ring_turn(self.ring, events, most + 2)
        assert count >= 0
        kinds = [events[4 * i] for i in range(count)]
        self.told += [events[4 * i + 1] for i, kind in enumerate(kinds) if kind == READY]
        return not ANOTHER.isdisjoint(kinds)

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + LIMIT
        while not condition():
            assert time.monotonic() < end
            if not self.turn() and not condition():
                select.select([self.wake_fd], [], [], 0.01)

    def settle(self) -> None:
        """See everything through that has happened up to now."""
        barrier = self.barrier

        def passed() -> bool:
            barrier.arm()
            return barrier.ready > 0

        # What is brought first may have something cancelled.
        for _ in range(2):
            barrier.begin()
            barrier.peer.send(b"x")
            self.until(passed)
            barrier.take()
        self.told = [number for number in self.told if number != barrier.number]

    def stats(self, name: str) -> int:
        stats = ffi.new("struct zc_stats *")
        lib.zc_core_stats(lib.zc_ring_core(self.ring), stats)
        value: int = getattr(stats, name)
        return value

    def close(self) -> None:
        for receiver in self.receivers:
            receiver.close()
        assert lib.zc_ring_close(self.ring) == 0
