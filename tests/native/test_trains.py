"""Trains that the kernel refuses: their datagrams take their place."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from tests.native.harness import MEMORY, Queue
from tests.native.model_state import (
    CUT_TRAINS,
    REGISTERED_ZERO_COPY,
    ROLL_SENDS,
    TRAIN_BYTES,
    TRAIN_SEGMENTS,
    WINDOW_SHARE,
)
from zc_anyio._native._zc import ffi, lib


@pytest.fixture
def q(udp: Queue) -> Queue:
    """A UDP socket that takes trains, and its context."""
    assert lib.zc_sock_take_trains(udp.sock, 1) == 0
    return udp


def send_segments(q: Queue, sizes: list[int], segment: int, *, start: int = 0, size: int) -> int:
    """Send what lies in parts that all begin where the memory does."""
    data = ffi.new("char *[]", [MEMORY] * len(sizes))
    where = (q.core, q.ctx, q.sock, data, ffi.new("size_t[]", sizes), len(sizes))
    return int(lib.zc_queue_segments(*where, start, size, segment, 0, ffi.NULL, 0))


def send_train(q: Queue, size: int, segment: int) -> None:
    assert send_segments(q, [size], segment, size=size) >= 0


def send_many(q: Queue, sizes: list[int]) -> int:
    """Send a datagram of each size; returns how many were taken."""
    data, taken = ffi.new("char *[]", [MEMORY] * len(sizes)), ffi.new("size_t *")
    where = (q.core, q.ctx, q.sock, data, ffi.new("size_t[]", sizes), len(sizes))
    assert lib.zc_queue_many(*where, 0, ffi.NULL, 0, taken) >= 0
    return int(taken[0])


def taken_in_trains(q: Queue) -> list[tuple[int, int]]:
    """Take all requests, which succeed; returns the segments and bytes of each."""
    found = []
    while view := q.take():
        found.append((view.segment, view.bytes))
        assert q.result(view, view.bytes, 0) == 0
    return found


def offset(q: Queue, view: Any) -> int:
    """Where the bytes of a request lie in the train."""
    addresses, sizes = ffi.new("uint64_t[2]"), ffi.new("uint64_t[2]")
    assert lib.zc_request_vector(q.core, view.user_data, addresses, sizes, 2) == 1
    return int(addresses[0]) - int(ffi.cast("uintptr_t", MEMORY))


@pytest.mark.parametrize("again", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3), (2, 0)])
def test_datagrams_of_a_cut_train_that_are_tried_again_keep_their_order(
    q: Queue, again: tuple[int, ...]
) -> None:
    send_train(q, 350, 100)
    q.send(1)
    train = q.take()
    assert (train.segment, train.bytes) == (100, 350)
    alone = q.take()
    q.result(train, -errno.EMSGSIZE, 0)
    pieces = [q.take() for _ in range(4)]
    assert [(offset(q, piece), piece.bytes) for piece in pieces] == [
        (0, 100), (100, 100), (200, 100), (300, 50)
    ]  # fmt: skip
    for n in again:
        q.result(pieces[n], -errno.EAGAIN, 0)
    q.result(alone, -errno.EAGAIN, 0)
    retried = [q.take() for _ in again]
    assert [offset(q, piece) for piece in retried] == [100 * n for n in sorted(again)]
    last = q.take()
    assert last.bytes == 1
    assert q.take() is None
    for view in (*retried, last, *(pieces[n] for n in range(4) if n not in again)):
        q.result(view, view.bytes, 0)
    q.finish()


def test_the_counters_of_a_cut_train_are_those_of_its_datagrams(q: Queue) -> None:
    send_train(q, 350, 100)
    before = q.ctx_stats("sends", "unreleased_sends", "unreleased_bytes")
    assert before == (4, 4, 350)
    q.result(q.take(), -errno.EMSGSIZE, 0)
    assert q.ctx_stats("sends", "unreleased_sends", "unreleased_bytes") == before
    for piece in [q.take() for _ in range(4)]:
        q.result(piece, piece.bytes, 0)
    assert q.ctx_stats("bytes_sent", "unreleased_sends", "unreleased_bytes") == (350, 0, 0)
    q.finish()


def test_cutting_a_train_does_not_fill_its_generation(queues: list[Queue]) -> None:
    """A generation ends with its share of the window, and with so many sends."""
    for size, segment, share in ((60_000, 1000, WINDOW_SHARE * 100_000), (64, 1, 1 << 40)):
        queues.append(q := Queue(lib.ZC_DATAGRAM, 300, window=share))
        assert lib.zc_sock_take_trains(q.sock, 1) == 0
        for _ in range(ROLL_SENDS // 64 - 1 if segment == 1 else 1):
            send_train(q, size, segment)
        assert lib.zc_ctx_generations(q.ctx) == 1
        q.result(q.take(), -errno.EMSGSIZE, 0)
        send_train(q, segment, segment)
        send_train(q, segment, segment)
        # What the cut train was counted for is counted once.
        assert lib.zc_ctx_generations(q.ctx) == 1
        q.finish()


@pytest.mark.parametrize("segment", [100, 300])
def test_after_a_refusal_no_trains_of_that_size_are_made_for_a_while(
    q: Queue, segment: int
) -> None:
    send_train(q, 300, 100)
    q.result(q.take(), -errno.EMSGSIZE, 0)
    assert taken_in_trains(q) == [(0, 100)] * 3
    send_train(q, 10 * segment, segment)
    assert taken_in_trains(q) == [(0, segment)] * 10
    # Smaller ones are not concerned.
    send_train(q, 99 * 3, 99)
    assert taken_in_trains(q) == [(99, 99 * 3)]
    # One question for a whole call of send_segments, and one for each train of send_many.
    for _ in range(CUT_TRAINS - 1):
        send_train(q, segment, segment)
    assert taken_in_trains(q) == [(0, segment)] * (CUT_TRAINS - 1)
    send_train(q, 2 * segment, segment)
    assert taken_in_trains(q) == [(segment, 2 * segment)]
    send_train(q, 2 * segment, segment)
    assert taken_in_trains(q) == [(segment, 2 * segment)]
    q.finish()


def test_the_datagrams_of_a_registered_train_are_registered(queues: list[Queue]) -> None:
    size = REGISTERED_ZERO_COPY
    queues.append(q := Queue(lib.ZC_DATAGRAM, threshold=2 * size))
    assert lib.zc_sock_take_trains(q.sock, 1) == 0
    q.register(MEMORY, 1 << 16)
    send_train(q, 3 * size, size)
    train = q.take()
    # Ordinary memory of that size is copied.
    assert train.zero_copy
    q.result(train, -errno.EMSGSIZE, 0)
    assert [q.take().zero_copy for _ in range(3)] == [1, 1, 1]
    for ctx in q.ctxs:
        lib.zc_ctx_reset(q.core, ctx, errno.ECONNRESET, 0)


@pytest.mark.parametrize(
    ("sizes", "trains"),
    [
        ([7] * TRAIN_SEGMENTS, [(7, 7 * TRAIN_SEGMENTS)]),
        ([7] * (TRAIN_SEGMENTS + 1), [(7, 7 * TRAIN_SEGMENTS), (0, 7)]),
        ([TRAIN_BYTES // 2] * 3, [(TRAIN_BYTES // 2, TRAIN_BYTES - 1), (0, TRAIN_BYTES // 2)]),
        ([TRAIN_BYTES // 2 + 1] * 2, [(0, TRAIN_BYTES // 2 + 1)] * 2),
        ([5, 5, 3, 5], [(5, 13), (0, 5)]),
        ([5, 5, 0, 0, 5], [(5, 10), (0, 0), (0, 0), (0, 5)]),
        ([5, 6], [(0, 5), (0, 6)]),
    ],
    ids=["most", "one more", "half", "over half", "shorter", "empty", "longer"],
)
def test_neighbours_of_one_size_leave_together(
    q: Queue, sizes: list[int], trains: list[tuple[int, int]]
) -> None:
    assert send_many(q, sizes) == len(sizes)
    assert taken_in_trains(q) == trains
    q.finish()


def test_parts_are_as_many_as_a_message_may_have(q: Queue) -> None:
    assert send_segments(q, [1] * 1024, 100, size=1024) >= 0
    assert sum(size for _, size in taken_in_trains(q)) == 1024
    assert send_segments(q, [1] * 1025, 100, size=1025) == -errno.EMSGSIZE
    q.finish()


@pytest.mark.parametrize(
    ("start", "size", "error"),
    [
        (0, 11, errno.EINVAL),
        (1, 10, errno.EINVAL),
        (10, 1, errno.EINVAL),
        (11, 0, errno.EINVAL),
        (0, 0, errno.EINVAL),
        (2**64 - 1, 2, errno.EINVAL),
    ],
)
def test_bytes_that_are_not_there_are_refused(q: Queue, start: int, size: int, error: int) -> None:
    assert send_segments(q, [4, 6], 3, start=start, size=size) == -error
    assert q.take() is None
    q.finish()


@pytest.mark.parametrize("sizes", [[2**63], [2**63 - 1, 1], [2**64 - 1, 2]])
def test_sizes_that_no_memory_has_are_refused(q: Queue, sizes: list[int]) -> None:
    assert send_segments(q, sizes, 3, size=3) == -errno.EMSGSIZE
    q.finish()


def test_what_takes_no_trains(q: Queue) -> None:
    stream = q.add_sock(lib.ZC_STREAM)
    assert lib.zc_sock_take_trains(ffi.NULL, 1) == -errno.EINVAL
    assert lib.zc_sock_take_trains(stream, 1) == -errno.EINVAL
    assert lib.zc_sock_take_trains(stream, 0) == 0
    assert lib.zc_sock_take_trains(q.sock, 0) == 0
    send_train(q, 30, 10)
    assert taken_in_trains(q) == [(0, 10)] * 3
    q.finish()
