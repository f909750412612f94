"""Clients that take little of a file: what they hold, and when they are dropped."""

from __future__ import annotations

import select
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support.served import LIMIT, Served, serve
from tests.support.waiting import until_blocking

MIB = 1 << 20
READERS = 100


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A folder with a file of 64 MiB."""
    path = tmp_path / "large.bin"
    path.write_bytes(bytes(MIB) * 64)
    return tmp_path


def ask(server: Served, *, receive_buffer: int | None = None) -> socket.socket:
    """Return a connection that has asked for the file."""
    sock = server.connect(receive_buffer=receive_buffer)
    sock.sendall(b"GET /files/large.bin HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return sock


@pytest.mark.parametrize("driver", ["io_uring", "msg_zerocopy", "copy"])
def test_who_takes_too_little_is_dropped(large: Path, driver: str) -> None:
    options = (f"--driver={driver}", "--stall=1", "--least-rate=20000")
    with serve("examples.stream", str(large), *options) as server:
        with ask(server, receive_buffer=4096) as slow, ask(server) as quick:
            poll = select.poll()
            poll.register(slow, 0)  # POLLERR and POLLHUP are always told
            deadline = time.monotonic() + LIMIT
            taken = 0
            while not poll.poll(0):
                assert time.monotonic() < deadline
                # It takes a little all the time.  It also sends, to notice a reset for certain: one
                # that comes while its buffer is full can be lost.
                with suppress(ConnectionError):
                    slow.recv(500)
                    slow.send(b" ")
                taken += len(quick.recv(300_000, socket.MSG_WAITALL))
                time.sleep(0.1)
            assert taken >= 300_000
            assert quick.recv(1)


def test_slow_readers_hold_little_of_a_file(large: Path) -> None:
    with serve("examples.stream", str(large), "--stall=600") as server, ExitStack() as stack:
        before = server.metrics()["process_resident_memory_bytes"]
        for _ in range(READERS):
            stack.enter_context(ask(server, receive_buffer=4096))

        def all_have_begun() -> bool:
            return server.metrics()["zc_anyio_sent_bytes_total"] > READERS * 2000

        until_blocking(all_have_begun)
        resident = server.metrics()["process_resident_memory_bytes"]
        assert resident - before < READERS * 2 * MIB, (resident, before)
