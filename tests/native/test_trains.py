"""Trains that the kernel refuses: their datagrams take their place."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from tests.native.harness import MEMORY, Queue
from zc_anyio._native._zc import ffi, lib


def send_train(q: Queue, size: int, segment: int) -> None:
    data, sizes = ffi.new("char *[]", [MEMORY]), ffi.new("size_t[]", [size])
    where = (q.core, q.ctx, q.sock)
    assert lib.zc_queue_segments(*where, data, sizes, 1, 0, size, segment, 0, ffi.NULL, 0) >= 0


def offset(q: Queue, view: Any) -> int:
    """Where the bytes of a request lie in the train."""
    addresses, sizes = ffi.new("uint64_t[2]"), ffi.new("uint64_t[2]")
    assert lib.zc_request_vector(q.core, view.user_data, addresses, sizes, 2) == 1
    return int(addresses[0]) - int(ffi.cast("uintptr_t", MEMORY))


@pytest.mark.parametrize("again", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3), (2, 0)])
def test_datagrams_of_a_cut_train_that_are_tried_again_keep_their_order(
    udp: Queue, again: tuple[int, ...]
) -> None:
    q = udp
    assert lib.zc_sock_take_trains(q.sock, 1) == 0
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
