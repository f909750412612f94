"""Where sends go: the lab's peers, or a process that receives over loopback."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

from benchmarks.lab.network import ADDRESS, STALLED_PORT
from benchmarks.lab.receiver import receiving

__all__ = ["LAB", "Place", "loopback"]

# Python's socket module has no name for it; root may go beyond net.core.wmem_max.
SO_SNDBUFFORCE = 32
# Room for all that is sent to a stalled peer (the kernel doubles it).
STALLED_BUFFER = 4 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where sends go.

    :ivar name: ``"lab"`` or ``"loopback"``.
    :ivar peer: a TCP peer that accepts everything.
    :ivar stalled: a peer that takes nothing; ``None`` if there is none.
    :ivar sink: an address where datagrams are counted; ``None`` if there is none.
    """

    name: Literal["lab", "loopback"]
    peer: tuple[str, int]
    stalled: tuple[str, int] | None
    sink: tuple[str, int] | None

    @contextmanager
    def connections(self, count: int) -> Iterator[list[socket.socket]]:
        """Make connections to the peer; at the end unsent bytes are dropped."""
        with ExitStack() as stack:
            yield [stack.enter_context(_connected(self.peer)) for _ in range(count)]

    @contextmanager
    def stalled_connections(self, count: int) -> Iterator[list[socket.socket]]:
        """Make connections to a peer that takes nothing, with room for all in the socket."""
        assert self.stalled is not None
        with ExitStack() as stack:
            sockets = [stack.enter_context(_connected(self.stalled)) for _ in range(count)]
            for sock in sockets:
                sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, STALLED_BUFFER)
            yield sockets

    @contextmanager
    def datagrams(self) -> Iterator[list[socket.socket]]:
        """Make a UDP socket that is connected to the sink."""
        assert self.sink is not None
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.connect(self.sink)
            sock.setblocking(False)
            yield [sock]


def _connected(address: tuple[str, int]) -> socket.socket:
    sock = socket.create_connection(address, timeout=10)
    # Closing resets the connection, so that thousands of them are gone at once.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.setblocking(False)
    return sock


LAB = Place("lab", (ADDRESS, 80), (ADDRESS, STALLED_PORT), (ADDRESS, 9))


@contextmanager
def loopback(core: int) -> Iterator[Place]:
    """Run a receiver on a core."""
    with receiving(core) as address:
        yield Place("loopback", address, None, None)
