"""What tests of a program need that sends through a ring: a ring, hard peers, and nothing left.

It is a pytest plugin for anyio's and trio's (``pytest-trio``) tests alike::

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

# The kernel doubles what is asked for, and takes no more than net.core.wmem_max.
_LARGE_BUFFER = 4 << 20
# Small, yet larger than a segment of loopback: with less than that TCP crawls once the peer reads.
_SMALL_BUFFER = 128 << 10
# For a peer of which more was expected than came.
_PEER_SECONDS = 20.0


# --- assertions ---


def assert_nothing_held(ring: Ring) -> None:
    """Assert that a ring has nothing under way, and that every send has ended in one way.

    :param ring: open, or closed: then as it ended.
    :raises AssertionError: a send is queued, in flight or held, a generation is not released, or
        the sends that were zero-copied, copied, staged and failed are not all; with the counters.
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
        with suppress(FileNotFoundError):  # the listing's own
            found[int(path.name)] = str(path.readlink())
    return found


@contextmanager
def nothing_left() -> Iterator[list[Ring]]:
    """Assert that a block leaves no ring open, nothing held, and no descriptor.

    Rings are those that were opened in the block, by whomever.  It tells of descriptors of the
    whole process, so nothing else may open any meanwhile.

    :return: the rings that were opened so far.
    :raises AssertionError: something is left; raised at the end of a block that raised nothing.
    """
    rings: list[Ring] = []
    made = Ring.__init__

    def record(ring: Ring, *args: Any, **kwargs: Any) -> None:
        made(ring, *args, **kwargs)
        rings.append(ring)

    before = open_descriptors()
    # Nothing public tells of the ring that a send group opens for itself.
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
    """The open ring of an asynchronous test, ambient in it; at its end nothing may be held."""
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

    :param send_buffer: bytes for ``SO_SNDBUF`` of the first; the kernel doubles them (socket(7)).
    :param receive_buffer: bytes for ``SO_RCVBUF`` of the second.
    :return: the socket to send on, non-blocking, and its peer, which gives up receiving (with
        :exc:`TimeoutError`) after 20 seconds.
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
    """Connect two sockets of which the second takes next to nothing until it is read from.

    The first takes a few megabytes: what is sent on it is taken at once, and held for as long as
    the peer is silent.
    """
    with tcp_pair(send_buffer=_LARGE_BUFFER, receive_buffer=_SMALL_BUFFER) as pair:
        yield pair


def reset(peer: socket.socket) -> None:
    """Close a TCP socket so that its peer sees a reset (``SO_LINGER``, socket(7)).

    :param peer: a connected socket of the standard library.
    """
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
