"""Receivers, a turn at a time: what they bring, when they stop, and what they leave."""

from __future__ import annotations

import ctypes
import errno
import functools
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import usable
from tests.native.receiving import POLL, RECEIVE, Receiver, Receiving
from tests.support.needs import missing
from tests.support.peers import tcp_pair
from zc_anyio._native._zc import ffi, lib
from zc_anyio.testing import reset

# receive.c
SHARED, UNREAD_BYTES, BULK_BYTES, IDLE_BYTES = 32 * (64 << 10), 256 << 10, 16384, 4 << 10


@pytest.fixture
def ring() -> Iterator[Receiving]:
    usable("io_uring")
    made = Receiving()
    yield made
    made.close()


# --- what comes


def test_what_arrived_can_be_taken_in_parts(ring: Receiving) -> None:
    stream = ring.add()
    stream.begin()
    stream.peer.send(b"some bytes")
    ring.settle()
    assert (stream.ready, ring.told) == (10, [stream.number])
    assert (stream.take(4), stream.take(), stream.ready) == (b"some", b" bytes", -errno.EAGAIN)


def test_order_whatever_part_is_taken(ring: Receiving) -> None:
    choose = random.Random(3)
    stream = ring.add()
    stream.begin()
    sent, taken = bytearray(), bytearray()
    for _ in range(300):
        data = choose.randbytes(choose.randrange(1, 3000))
        sent += data
        stream.peer.send(data)
        ring.settle()
        # Now and then all of it, so that it does not come to hold too much.
        most = stream.ready
        taken += stream.take(most - min(most - 1, 100) if choose.random() < 0.9 else most)
    assert stream.is_armed()
    assert taken + stream.take() == sent


def test_what_had_arrived_comes_before_the_end(ring: Receiving) -> None:
    stream = ring.add()
    stream.begin()
    stream.peer.send(b"last words")
    stream.peer.shutdown(socket.SHUT_WR)
    ring.settle()
    assert stream.take() == b"last words"
    assert (stream.ready, stream.ready, stream.is_armed()) == (0, 0, False)
    assert ring.turn() is False


def test_what_had_arrived_comes_before_a_failure(ring: Receiving) -> None:
    with tcp_pair() as pair:
        stream = ring.add(pair)
        stream.begin()
        stream.peer.send(b"last words")
        ring.settle()
        reset(stream.peer)
        stream.peer.close()
        ring.until(lambda: not stream.is_armed())
        assert stream.take() == b"last words"
        assert stream.ready == -errno.ECONNRESET


def has_some(stream: Receiver) -> bool:
    return stream.ready > 0


def test_running_out_of_shared_buffers_is_no_failure(ring: Receiving) -> None:
    size = 60_000
    streams = [ring.add() for _ in range(SHARED // size + 5)]
    for stream in streams:
        stream.begin()
    for stream in streams:
        stream.peer.send(bytes(size))
    ring.until(lambda: not any(stream.is_armed() for stream in streams))
    assert sorted(set(ring.told)) == [stream.number for stream in streams]
    without = [stream for stream in streams if stream.ready == -errno.ENODATA]
    assert without, "there were buffers for all of them"
    for stream in streams:
        received = len(stream.take())
        while received < size:
            stream.arm()
            ring.until(functools.partial(has_some, stream))
            received += len(stream.take())
        assert received == size


# --- when it is armed


def test_it_is_armed_when_it_is_asked(ring: Receiving) -> None:
    stream = ring.add()
    assert not stream.is_armed()
    stream.arm()
    assert stream.is_armed()
    stream.arm()
    ring.settle()
    assert stream.is_armed()
    stream.arm()
    stream.peer.send(b"once")
    ring.settle()
    assert stream.is_armed()
    assert (stream.take(), ring.told) == (b"once", [stream.number])


def test_a_large_piece_makes_it_bulk_until_bytes_are_asked_for(ring: Receiving) -> None:
    stream = ring.add()
    stream.begin()
    stream.peer.send(bytes(BULK_BYTES - 1))
    ring.settle()
    assert not stream.is_bulk()
    assert stream.is_armed()
    stream.take()
    stream.peer.send(bytes(BULK_BYTES))
    ring.settle()
    assert stream.is_bulk()
    assert not stream.is_armed()
    assert stream.take() == bytes(BULK_BYTES)

    stream.peer.send(b"not brought")
    ring.settle()
    assert stream.ready == -errno.ENODATA
    ring.told.clear()
    stream.arm(POLL)
    ring.settle()
    assert ring.told == [stream.number]
    assert (stream.ready, stream.is_bulk(), stream.is_armed()) == (-errno.ENODATA, True, False)
    assert stream.own.recv(100) == b"not brought"

    stream.arm(POLL)
    ring.settle()
    assert stream.is_armed(), "there is nothing to read"
    stream.peer.send(b"one more")
    ring.until(lambda: not stream.is_armed())
    assert stream.own.recv(100) == b"one more"

    stream.arm(RECEIVE)
    assert not stream.is_bulk()
    for word in (b"brought", b"again"):
        stream.peer.send(word)
        ring.settle()
        assert stream.take() == word
        assert stream.is_armed()


def test_it_stops_at_a_limit_and_goes_on_when_asked(ring: Receiving) -> None:
    stream = ring.add()
    stream.begin()
    sent = 0
    while stream.is_armed():
        stream.peer.send(bytes(1000))
        sent += 1000
        ring.settle()
        assert stream.ready == sent
    assert UNREAD_BYTES <= sent < UNREAD_BYTES + 1000
    assert not stream.is_bulk()
    stream.peer.send(b"behind")
    ring.settle()
    assert stream.ready == sent
    assert stream.take() == bytes(sent)
    ring.settle()
    assert stream.ready == -errno.ENODATA
    stream.begin()
    ring.settle()
    assert stream.take() == b"behind"
    assert stream.is_armed()


def test_stopping(ring: Receiving) -> None:
    stream, asked = ring.add(), ring.add()
    stream.begin()
    stream.peer.send(b"before")
    ring.settle()
    asked.arm()
    # The barrier, and this one; the other is not armed yet, and will not be.
    assert lib.zc_ring_stop_receiving(ring.ring) == 2
    assert lib.zc_ring_stop_receiving(ring.ring) == 2
    assert (stream.is_armed(), asked.is_armed()) == (True, False)
    ring.until(lambda: not stream.is_armed() and not ring.barrier.is_armed())
    assert lib.zc_ring_stop_receiving(ring.ring) == 0
    assert (stream.take(), stream.ready) == (b"before", -errno.ENODATA)
    ring.told.clear()
    for one in (stream, asked):
        one.peer.send(b"after")
    ring.settle()
    assert [one.ready for one in (stream, asked)] == [-errno.ENODATA] * 2
    assert ring.told == []


def test_armed_while_it_is_being_cancelled(ring: Receiving) -> None:
    stream = ring.add()
    stream.begin()
    lib.zc_ring_stop_receiving(ring.ring)
    stream.arm()
    ring.settle()
    assert stream.is_armed()
    stream.peer.send(b"after")
    ring.settle()
    assert stream.take() == b"after"
    # And the other way round.
    lib.zc_ring_stop_receiving(ring.ring)
    stream.arm()
    lib.zc_ring_stop_receiving(ring.ring)
    ring.settle()
    assert not stream.is_armed()


def test_a_request_that_ended_by_itself_is_not_cancelled(ring: Receiving) -> None:
    stream = ring.add()
    stream.begin()
    submits = lib.zc_ring_submits(ring.ring)
    stream.peer.shutdown(socket.SHUT_WR)
    assert lib.zc_ring_stop_receiving(ring.ring) == 1
    ring.turn()
    assert (stream.ready, stream.is_armed()) == (0, False)
    assert lib.zc_ring_submits(ring.ring) == submits


# --- what is left


def test_a_freed_receiver_is_not_reported_any_more(ring: Receiving) -> None:
    streams = [ring.add(), ring.add()]
    for stream in streams:
        stream.begin()
    for stream in streams:
        stream.peer.send(b"x")
    ring.turn(most=1)
    assert len(ring.told) == 1
    (other,) = [stream for stream in streams if stream.number not in ring.told]
    other.free()
    assert ring.stats("receivers") == 3
    ring.settle()
    assert other.number not in ring.told
    assert ring.stats("receivers") == 2


def test_bytes_for_freed_receivers_use_up_no_shared_buffer(ring: Receiving) -> None:
    size = 60_000
    for _ in range(SHARED // size + 5):
        stream = ring.add()
        stream.begin()
        # This would be taken for the operation whose cancellation the kernel has not seen yet.
        stream.free()
        stream.peer.send(bytes(size))
        ring.turn()
        ring.turn()
    assert ring.stats("receives") > SHARED // size
    last = ring.add()
    last.begin()
    last.peer.send(b"there is room")
    ring.until(lambda: last.ready != -errno.EAGAIN)
    assert last.take() == b"there is room"
    ring.settle()
    assert ring.stats("receivers") == 2


def test_another_receiver_does_not_get_what_a_freed_one_had_asked_for(ring: Receiving) -> None:
    old = ring.add()
    old.begin()
    old.peer.send(b"old")
    old.free()
    new = ring.add()
    new.begin()
    ring.settle()
    assert (new.ready, ring.told) == (-errno.EAGAIN, [])
    next_ = ring.add()
    for stream in (new, next_):
        stream.begin()
        stream.peer.send(b"new")
        ring.settle()
        assert stream.take() == b"new"


def allocated() -> int:
    """Bytes that C code has allocated and not freed, in this thread."""

    class Mallinfo2(ctypes.Structure):
        names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
        _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        missing("glibc 2.33 or newer")
    mallinfo2.restype = Mallinfo2
    info = mallinfo2()
    return int(info.hblkhd + info.uordblks)


def mapped() -> int:
    """Bytes of address space; 0 with a sanitizer, which keeps for a while what is freed."""
    if "libasan" in Path("/proc/self/maps").read_text(encoding="utf-8"):
        return 0
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * 4096


def test_memory_of_those_that_were_freed(ring: Receiving) -> None:
    out = ffi.new("zc_rx **")

    def come_and_go(times: int, size: int) -> None:
        for _ in range(times):
            assert lib.zc_rx_new(ring.ring, ring.barrier.own.fileno(), 1, out) == 0
            if size:
                lib.zc_rx_arm(ring.ring, out[0], RECEIVE)
                ring.turn()
                ring.barrier.peer.send(bytes(size))
                ring.until(lambda: lib.zc_rx_ready(out[0]) == size)
            assert lib.zc_rx_free(ring.ring, out[0]) == 0
            if size:
                ring.turn()

    come_and_go(10, 2000)
    before = allocated()
    come_and_go(1000, 2000)
    # Each takes the place of the one before it.
    come_and_go(100_000, 0)
    assert allocated() - before < 256 << 10
    assert ring.stats("receivers") == 1


def test_memory_of_those_that_are_idle(ring: Receiving) -> None:
    streams = [ring.add() for _ in range(100)]
    for stream in streams:
        stream.begin()
    before = allocated()
    for stream in streams:
        for _ in range(6):
            stream.peer.send(bytes(10_000))
            ring.settle()
        assert stream.take() == bytes(60_000)
    assert allocated() - before < len(streams) * IDLE_BYTES + (256 << 10)


@pytest.mark.parametrize("receivers", [0, 1000])
def test_memory_of_rings_that_were_closed(receivers: int) -> None:
    usable("io_uring")

    def open_and_close(times: int) -> None:
        out = ffi.new("zc_rx **")
        for _ in range(times):
            made = Receiving()
            stream = made.add()
            stream.begin()
            stream.peer.send(bytes(10_000))
            for _ in range(receivers):
                assert lib.zc_rx_new(made.ring, stream.own.fileno(), 1, out) == 0
            made.settle()
            made.close()

    open_and_close(3)
    before = allocated(), mapped()
    open_and_close(50)
    # What each has received takes 10 KB, a table of 1,000 receivers 8 KiB.
    assert allocated() - before[0] < 200 << 10
    assert mapped() - before[1] < SHARED * 25


def test_refusals(ring: Receiving) -> None:
    null, stream, out = ffi.NULL, ring.add(), ffi.new("zc_rx **")
    for result in (
        lib.zc_rx_new(null, 1, 1, out),
        lib.zc_rx_new(ring.ring, -1, 1, out),
        lib.zc_rx_free(ring.ring, null),
        lib.zc_rx_arm(ring.ring, stream.handle, 0),
        lib.zc_rx_arm(ring.ring, stream.handle, RECEIVE | POLL),
        lib.zc_rx_consume(stream.handle, 1),
        lib.zc_rx_ready(null),
        lib.zc_ring_stop_receiving(null),
    ):
        assert result == -errno.EINVAL
    assert not stream.is_armed()
