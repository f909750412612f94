"""Help for tests of programs that send through a ring: a ring, hard peers, checks for leftovers.

It is a pytest plugin, for tests of anyio and of ``pytest-trio`` alike::

    pytest_plugins = ["zc_anyio.testing"]  # in conftest.py


    @pytest.mark.anyio
    async def test_a_slow_peer(ring):  # the ambient ring of the test
        with zc_anyio.testing.silent_pair() as (client, peer):
            ...

The fixtures are :func:`ring`, :func:`ring_options` and :func:`nothing_left_open`.
"""

from __future__ import annotations

import gc
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ._ring.opening import open_ring
from ._ring.ring import Ring

__all__ = [
    "assert_nothing_held",
    "nothing_left",
    "nothing_left_open",
    "open_descriptors",
    "reset",
    "ring",
    "ring_options",
    "silent_pair",
    "tcp_pair",
]

# The kernel caps what is asked for at net.core.wmem_max, and doubles it.
_LARGE_BUFFER = 4 << 20
# Small, yet larger than a segment of loopback; below that TCP is very slow once the peer reads.
_SMALL_BUFFER = 128 << 10
# How long a peer waits for bytes that do not come.
_PEER_SECONDS = 20.0


# --- assertions ---


def assert_nothing_held(ring: Ring) -> None:
    """Assert that a ring has nothing under way, and that every send has been counted once.

    :param ring: open or closed; of a closed ring, its last counters are checked.
    :raises AssertionError: a send is queued, in flight or held, a generation is not released, or
        the sends zero-copied, copied, staged and failed do not add up; it shows the counters.
    """
    counters = ring.statistics()
    assert (counters.queued, counters.in_flight, counters.held) == (0, 0, 0), counters
    assert counters.generations_open == 0, counters
    ends = counters.zero_copied + counters.copied + counters.staged + counters.failed
    assert counters.sends == ends, counters


def open_descriptors() -> dict[int, str]:
    """Return the open descriptors of this process, and what each one is."""
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the descriptor of the listing itself
            found[int(path.name)] = str(path.readlink())
    return found


@contextmanager
def nothing_left() -> Iterator[list[Ring]]:
    """Assert that a block leaves no ring open, nothing held, and no descriptor open.

    All rings that anybody opens in the block are checked.  Descriptors are those of the whole
    process, so nothing else may open any meanwhile.

    :return: the rings that were opened so far.
    :raises AssertionError: something is left; raised only if the block itself raised nothing.
    """
    rings: list[Ring] = []
    made = Ring.__init__

    def record(ring: Ring, *args: Any, **kwargs: Any) -> None:
        made(ring, *args, **kwargs)
        rings.append(ring)

    before = open_descriptors()
    # No public name gives the ring that a send group opens for itself.
    with mock.patch.object(Ring, "__init__", record):
        yield rings
    for ring in rings:
        assert ring._closed, f"left open: {ring!r}"
        assert_nothing_held(ring)
    after = open_descriptors()
    if len(after) > len(before):
        gc.collect()  # an unreferenced socket closes itself, with a ResourceWarning
        after = open_descriptors()
    left = {number: what for number, what in after.items() if number not in before}
    assert len(after) <= len(before), f"left open: {left}"


# --- fixtures ---


@pytest.fixture
def ring_options() -> dict[str, Any]:
    """Arguments of :func:`zc_anyio.open_ring` for :func:`ring`; override it to give others."""
    return {}


@pytest.fixture
async def ring(ring_options: dict[str, Any]) -> AsyncIterator[Ring]:
    """An open ring, ambient in an asynchronous test, at whose end nothing may be held."""
    async with open_ring(**ring_options) as opened:
        yield opened
        assert_nothing_held(opened)


@pytest.fixture
def nothing_left_open() -> Iterator[None]:
    """:func:`nothing_left` around a test."""
    with nothing_left():
        yield


# --- peers ---


@contextmanager
def tcp_pair(
    *, send_buffer: int | None = None, receive_buffer: int | None = None
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Connect two TCP sockets over loopback, and close them at the end of the block.

    :param send_buffer: ``SO_SNDBUF`` of the first in bytes; the kernel doubles it (socket(7)).
    :param receive_buffer: ``SO_RCVBUF`` of the second in bytes.
    :return: the socket to send on, non-blocking, and its peer, which stops receiving with
        :exc:`TimeoutError` after 20 seconds.
    """
    with socket.socket() as server, socket.socket() as client:
        if receive_buffer is not None:  # connections inherit it
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        server.bind(("127.0.0.1", 0))
        server.listen(1)
        if send_buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        client.connect(server.getsockname())
        client.setblocking(False)
        peer, _ = server.accept()
        peer.settimeout(_PEER_SECONDS)
        with peer:
            yield client, peer


@contextmanager
def silent_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Connect two sockets, of which the second accepts almost nothing until it is read.

    The send buffer of the first has room for a few megabytes: the kernel takes a send at once, and
    holds it for as long as the peer does not read.
    """
    with tcp_pair(send_buffer=_LARGE_BUFFER, receive_buffer=_SMALL_BUFFER) as pair:
        yield pair


def reset(peer: socket.socket) -> None:
    """Close a TCP socket so that its peer sees a reset (``SO_LINGER``, socket(7)).

    :param peer: a connected socket of the standard library.
    """
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
