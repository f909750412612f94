"""What the queue of a socket hands to the kernel: order, gathering, short sends."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from tests.native.harness import MEMORY, Queue, failed, released
from tests.native.model_state import (
    COPIED,
    GATHER_BUFFERS,
    GATHER_BYTES,
    GATHER_BYTES_MOST,
    REGISTERED_ZERO_COPY,
)
from zc_anyio._native._zc import ffi, lib


def test_one_request_at_a_time_on_a_stream(q: Queue) -> None:
    q.send(10)
    first = q.take()
    q.send(20)
    q.send(30)
    assert q.take() is None
    q.result(first, 10)
    second = q.take()
    assert (second.bytes, second.sends) == (50, 2)
    assert q.stats("in_flight") == 2
    q.result(second, 50)
    q.notify(first)
    q.notify(second)
    q.finish()


@pytest.mark.parametrize("sizes", [(3, 0, 4), (0, 7), (0, 3, 0, 0, 4, 0)])
@pytest.mark.parametrize("short", range(1, 7))
def test_the_rest_of_a_short_send_follows(q: Queue, sizes: tuple[int, ...], short: int) -> None:
    q.send(*sizes)
    q.send(5)
    first = q.take()
    assert first.bytes == 12
    q.result(first, short)
    assert q.stats("queued") == 2
    rest = q.take()
    assert (rest.bytes, rest.sends) == (12 - short, 2)
    taken = {position for position in (3, 7) if position <= short and len(sizes) != 2}
    assert rest.buffers == 2 + (len(sizes) != 2) - len(taken)
    q.result(rest, 12 - short)
    for view in (rest, first):
        q.notify(view)
    assert q.stats("bytes_sent") == 12
    q.finish()


def test_each_request_that_covered_a_send_holds_it(q: Queue) -> None:
    q.send(10)
    q.flush()
    first = q.take()
    q.result(first, 4)
    second = q.take()
    q.result(second, 6)
    q.notify(second)
    assert q.events() == []
    q.notify(first)
    assert released(0) in q.events()
    q.finish()


def test_nothing_taken_breaks_a_stream(q: Queue) -> None:
    q.send(10)
    view = q.take()
    q.result(view, 0, 0)
    assert failed(errno.EIO) in q.events()
    assert q.send(10) == -errno.EPIPE
    q.finish()


def test_a_result_larger_than_the_request_counts_as_all_of_it(q: Queue) -> None:
    q.send(10)
    q.result(q.take(), 11, 0)
    assert q.stats("bytes_sent") == 10
    q.finish()


def test_gathering_stops_at_a_number_of_buffers(q: Queue) -> None:
    q.send(*[1] * (GATHER_BUFFERS + 10))
    q.send(1)
    first = q.take()
    assert (first.buffers, first.sends) == (GATHER_BUFFERS, 1)
    q.result(first, GATHER_BUFFERS)
    second = q.take()
    assert (second.buffers, second.sends) == (11, 2)
    q.result(second, 11)
    q.notify(first)
    q.notify(second)
    q.finish()


def test_a_send_of_which_nothing_fits_is_not_held(q: Queue) -> None:
    q.send(*[1] * GATHER_BUFFERS)
    q.send(1)
    view = q.take()
    assert (view.buffers, view.sends) == (GATHER_BUFFERS, 1)
    q.result(view, GATHER_BUFFERS)
    q.result(q.take(), 1, 0)
    assert q.stats("held") == 1
    q.notify(view)
    q.finish()


def test_a_datagram_goes_alone(udp: Queue) -> None:
    udp.send(0, 5)
    udp.send(1)
    view = udp.take()
    assert (view.bytes, view.buffers, view.sends) == (5, 1, 1)
    udp.result(view, 5, 0)
    udp.finish()


@pytest.mark.parametrize(
    ("window", "most"),
    [(1 << 22, GATHER_BYTES), (1 << 23, 2 << 20), (1 << 40, GATHER_BYTES_MOST)],
    ids=["least", "share", "most"],
)
def test_gathering_stops_at_a_share_of_the_window(
    queues: list[Queue], window: int, most: int
) -> None:
    queues.append(q := Queue(window=window))
    for _ in range(most // len(MEMORY) + 1):
        q.send(len(MEMORY))
    view = q.take()
    assert (view.bytes, view.sends) == (most, most // len(MEMORY))
    q.result(view, view.bytes, 0)
    q.finish()


@pytest.mark.parametrize(
    ("lockable", "most"),
    [(1 << 10, GATHER_BYTES), (16 << 20, 2 << 20), (1 << 40, GATHER_BYTES_MOST)],
    ids=["least", "share", "most"],
)
@pytest.mark.parametrize("registered", [False, True], ids=["pinned", "registered"])
def test_gathering_stops_at_a_share_of_what_may_be_pinned(
    q: Queue, lockable: int, most: int, registered: bool
) -> None:
    assert lib.zc_core_lockable(q.core, lockable) == 0
    memory = ffi.new("char[]", 1)  # never read, so it may be said to be larger
    if registered:
        q.register(memory, 2 * GATHER_BYTES_MOST)
    for start in range(0, GATHER_BYTES_MOST + 1, GATHER_BYTES):
        lib.zc_queue(q.core, q.ctx, q.sock, memory + start, GATHER_BYTES, 0)
    view = q.take()
    assert view.bytes == (GATHER_BYTES_MOST if registered else most)
    q.result(view, view.bytes, 0)
    q.finish()


def test_registered_neighbours_leave_as_one_piece(q: Queue) -> None:
    memory = ffi.new("char[]", 5 << 10)
    q.register(memory, 4 << 10)
    for start in (0, 1, 3, 4):
        lib.zc_queue(q.core, q.ctx, q.sock, memory + (start << 10), 1 << 10, 0)
    seen = []
    while view := q.take():
        seen.append((view.bytes, view.buffers, view.sends))
        q.result(view, view.bytes, 0)
    assert seen == [(2 << 10, 1, 2), (1 << 10, 1, 1), (1 << 10, 1, 1)]
    q.finish()


def test_registered_memory_is_zero_copied_from_a_smaller_size(queues: list[Queue]) -> None:
    queues.append(q := Queue(threshold=1 << 20))
    seen = []
    q.register(MEMORY, REGISTERED_ZERO_COPY)
    for size in (REGISTERED_ZERO_COPY - 1, REGISTERED_ZERO_COPY):
        q.send(size)
        view = q.take()
        seen.append(view.zero_copy)
        q.result(view, size, 0)
    assert seen == [0, 1]
    q.finish()


def test_a_large_send_is_cut(q: Queue) -> None:
    # The accounting reads no buffer, so this one need not be as large as it says.
    q.send(3 * GATHER_BYTES_MOST, 5)
    q.send(7)
    seen = []
    while view := q.take():
        seen.append((view.bytes, view.buffers, view.sends))
        q.result(view, view.bytes, 0)
    assert seen == [(GATHER_BYTES_MOST, 1, 1)] * 3 + [(12, 2, 2)]
    assert q.stats("zero_copied") == 2
    q.finish()


def test_copied_and_zero_copy_sends_are_not_gathered(queues: list[Queue]) -> None:
    queues.append(q := Queue(threshold=100))
    for size in (99, 100, 100, 99, 99):
        q.send(size)
    seen = []
    while view := q.take():
        seen.append((view.zero_copy, view.sends))
        q.result(view, view.bytes, 0)
    assert seen == [(0, 1), (1, 2), (0, 2)]
    assert (q.stats("copied"), q.stats("zero_copied")) == (3, 2)
    q.finish()


def test_a_report_of_copying_counts_for_what_its_request_took(q: Queue) -> None:
    for _ in range(3):
        q.send(10)
    first = q.take()
    q.result(first, 15)
    second = q.take()
    assert second.sends == 2
    q.result(second, 15)
    q.notify(first, COPIED)
    q.notify(second)
    assert (q.stats("copied"), q.stats("zero_copied")) == (2, 1)
    q.finish()


def numbered(q: Queue, *numbers: int) -> list[Any]:
    """Datagrams that are held, by the numbers that MSG_ZEROCOPY gave them."""
    views = []
    for number in numbers:
        q.send(100)
        views.append(q.take())
        assert lib.zc_request_number(q.core, views[-1].user_data, number) == 0
        q.result(views[-1], 100)
    return views


@pytest.mark.parametrize("first", [0, 2**31 - 3, 2**32 - 3, 2**32 - 1])
def test_ranges_of_numbers_wrap(udp: Queue, first: int) -> None:
    numbered(udp, *((first + at) % 2**32 for at in range(6)))
    for low, high, held in ((1, 3, 3), (5, 5, 2), (0, 0, 1), (1, 3, 1), (4, 4, 0)):
        lib.zc_notify_range(
            udp.core, udp.sock, (first + low) % 2**32, (first + high) % 2**32, False
        )
        assert udp.stats("held") == held
    assert (udp.stats("zero_copied"), udp.stats("strays")) == (6, 0)
    udp.finish()


def test_a_range_tells_of_copying_and_waits_for_results(udp: Queue) -> None:
    numbered(udp, 2**32 - 1)
    udp.send(100)
    unanswered = udp.take()
    lib.zc_request_number(udp.core, unanswered.user_data, 0)
    lib.zc_notify_range(udp.core, udp.sock, 2**32 - 1, 0, True)
    assert (udp.stats("copied"), udp.stats("held"), udp.stats("in_flight")) == (1, 0, 1)
    udp.result(unanswered, 100)
    assert udp.stats("held") == 1
    udp.notify(unanswered)
    udp.finish()


# Two regions that touch, with other memory on both sides: (start, size) in KiB.
REGIONS = [(1, 4), (5, 4)]
PARTS = {
    "three neighbours": [(1, 1), (2, 1), (3, 1)],
    "neighbours, then elsewhere": [(1, 1), (2, 1), (4, 1), (12, 1)],
    "elsewhere, then neighbours": [(12, 1), (1, 1), (2, 1), (3, 1)],
    "across two regions": [(3, 1), (4, 1), (5, 1), (6, 1)],
    "a part that goes beyond its region": [(8, 2), (10, 1)],
    "a part that begins before its region": [(0, 2), (2, 1)],
    "out of a region and back": [(1, 1), (0, 1), (1, 1), (2, 1)],
    "empty ones between": [(1, 1), (9, 0), (2, 1), (0, 0), (3, 1)],
}


@pytest.mark.parametrize("short", [0, 1, 700, 1024, 1500, 2048, 2500])
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_parts_of_any_memory_leave_whole_and_in_order(
    q: Queue, parts: list[tuple[int, int]], short: int
) -> None:
    memory = ffi.new("char[]", 13 << 10)
    content = b"".join(bytes([65 + kib]) * 1024 for kib in range(13))
    ffi.buffer(memory)[:] = content
    for start, size in REGIONS:
        q.register(memory + (start << 10), size << 10)
    data, sizes = [memory + (start << 10) for start, _ in parts], [n << 10 for _, n in parts]
    expected = b"".join(content[start << 10 : (start + n) << 10] for start, n in parts)
    taken = b""
    for _ in range(2):
        assert lib.zc_queue_vector(q.core, q.ctx, q.sock, data, sizes, len(parts), 0) >= 0
        lib.zc_queue(q.core, q.ctx, q.sock, memory + (12 << 10), 1024, 0)
        expected_here = expected + content[12 << 10 :]
        got = b""
        while view := q.take():
            got += q.readable(view)[: short or view.bytes]
            q.result(view, min(short or view.bytes, view.bytes), 0)
        assert got == expected_here
        taken += got
    assert q.stats("bytes_sent") == len(taken)
    q.finish()


def test_a_piece_is_registered_only_if_it_lies_in_one_region(q: Queue) -> None:
    memory = ffi.new("char[]", 10 << 10)
    q.register(memory, 4 << 10)
    q.register(memory + (4 << 10), 4 << 10)
    # What touches leaves as one piece, but not across an edge.
    for start, size in ((3, 1), (4, 1), (5, 1), (7, 2), (9, 1)):
        lib.zc_queue(q.core, q.ctx, q.sock, memory + (start << 10), size << 10, 0)
    seen = []
    while view := q.take():
        seen.append((view.bytes >> 10, view.buffers, view.sends))
        q.result(view, view.bytes, 0)
    assert seen == [(1, 1, 1), (2, 1, 2), (3, 2, 2)]
    assert lib.zc_core_drop_region(q.core, memory) == 0
    assert lib.zc_core_drop_region(q.core, memory) == -errno.ENOENT
    q.finish()
