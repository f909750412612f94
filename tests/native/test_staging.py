"""Small sends in staging memory."""

from __future__ import annotations

import errno

import pytest

from tests.native.harness import Queue, failed, released, send_bytes, small
from tests.native.model_state import (
    KICK,
    SENT_SHIFT,
    STAGE_SHARE,
    STAGE_SLAB,
    STAGED,
)
from zc_anyio._native._zc import ffi, lib


def test_small_sends_share_a_run(queues: list[Queue]) -> None:
    q = small(queues, 2)
    assert send_bytes(q, b"ab") == STAGED | KICK
    assert send_bytes(q, b"cde") == STAGED
    q.flush()
    assert send_bytes(q, b"f") == STAGED | 1 << SENT_SHIFT  # its own generation, its own run
    view = q.take()
    assert (view.bytes, view.sends) == (6, 2)
    assert q.readable(view) == b"abcdef"
    assert q.stats("in_flight") == 3
    q.result(view, 6)
    assert q.events() == [released(0)]  # taken from a copy: no notification is waited for
    assert (q.stats("staged"), q.stats("held")) == (3, 3)
    q.notify(view)
    q.finish()


@pytest.mark.parametrize("short", [1, 3, 5])
def test_a_partly_sent_run_still_grows(queues: list[Queue], short: int) -> None:
    q = small(queues, 1)
    send_bytes(q, b"abcdef")
    q.result(q.take(), short, 0)
    assert send_bytes(q, b"gh") & STAGED
    rest = q.take()
    assert rest.sends == 1
    assert q.readable(rest) == b"abcdefgh"[short:]
    q.result(rest, rest.bytes, 0)
    assert q.stats("staged") == 2
    q.finish()


def test_a_run_in_flight_does_not_grow(queues: list[Queue]) -> None:
    q = small(queues, 2)
    send_bytes(q, b"abc")
    view = q.take()
    assert send_bytes(q, b"def") & STAGED
    assert q.readable(view) == b"abc"
    assert (q.stats("in_flight"), q.stats("queued")) == (1, 1)
    q.result(view, 3, 0)
    assert q.readable(q.take()) == b"def"


def test_a_send_can_span_two_slabs(queues: list[Queue]) -> None:
    q = small(queues, 2)
    data = bytes(range(256)) * 256
    send_bytes(q, data[:-3])
    send_bytes(q, data)
    view = q.take()
    assert (view.bytes, view.sends, view.buffers) == (2 * len(data) - 3, 2, 1)
    assert q.readable(view) == data[:-3] + data
    q.result(view, view.bytes, 0)
    assert q.stats("staged") == 2
    q.finish()


def test_a_slab_is_held_until_its_notification(queues: list[Queue]) -> None:
    q = small(queues, 1)
    send_bytes(q, b"abc")
    view = q.take()
    q.result(view, 3)
    assert q.send(3) & STAGED == 0
    assert q.readable(view) == b"abc"
    q.notify(view)
    assert send_bytes(q, b"ghi") & STAGED
    q.finish()


def test_a_socket_has_a_share_of_the_slabs(queues: list[Queue]) -> None:
    q = small(queues, STAGE_SHARE + 1, window=1 << 30)
    contexts = [q.ctx, q.add_ctx(threshold=1 << 17)]
    staged = [send_bytes(q, b"a", contexts[i % 2]) & STAGED for i in range(STAGE_SHARE + 1)]
    assert staged == [STAGED] * STAGE_SHARE + [0]
    q.sock = q.add_sock()
    assert send_bytes(q, b"b") & STAGED
    q.finish()


def test_runs_that_fail_give_their_slabs_back_when_told(queues: list[Queue]) -> None:
    q = small(queues, 1)
    send_bytes(q, b"ab")
    send_bytes(q, b"cd")
    lib.zc_sock_fail(q.core, q.sock, errno.EPIPE)
    assert q.stats("failed") == 2
    assert failed(errno.EPIPE) in q.events()
    q.sock = q.add_sock()
    assert send_bytes(q, b"ef") & STAGED
    q.finish()


@pytest.mark.parametrize("budget", [0, 1])
def test_staging_without_memory_leaves_no_trace(queues: list[Queue], budget: int) -> None:
    q = small(queues, 1)
    lib.zc_core_alloc_budget(q.core, budget)
    assert send_bytes(q, b"ab") == -errno.ENOMEM
    lib.zc_core_alloc_budget(q.core, -1)
    assert q.flush() == -errno.ENODATA
    assert send_bytes(q, b"ab") & STAGED
    q.finish()


def test_a_socket_gets_its_share_again_and_again(queues: list[Queue]) -> None:
    q = small(queues, 1)
    for _ in range(2 * STAGE_SHARE):
        assert send_bytes(q, b"abc") & STAGED
        q.result(q.take(), 3, 0)
    q.finish()


def test_the_first_free_slab_is_the_next(queues: list[Queue]) -> None:
    """Runs then touch, and memory that was just read is written again."""
    q = small(queues, 3)
    sent = [bytes([letter]) * STAGE_SLAB for letter in b"abcd"]
    send_bytes(q, sent[0])
    send_bytes(q, sent[1])
    both = q.take()
    assert (both.sends, both.buffers) == (2, 1)
    assert q.readable(both) == sent[0] + sent[1]
    # The first slab is free, and before that the last.
    q.result(both, STAGE_SLAB, 0)
    for data in sent[2:]:
        assert send_bytes(q, data) & STAGED
    for data in (sent[1], sent[2], sent[3]):
        view = q.take()
        assert (view.sends, view.buffers) == (1, 1)
        assert q.readable(view) == data
        q.result(view, view.bytes, 0)
    q.finish()


def test_a_send_of_a_slab_is_staged_and_of_more_is_not(queues: list[Queue]) -> None:
    q = small(queues, 3)
    assert send_bytes(q, bytes(STAGE_SLAB)) & STAGED
    assert q.send(STAGE_SLAB + 1) & STAGED == 0
    assert q.stats("queued") == 2
    q.finish()


def test_less_memory_than_a_slab_is_refused(q: Queue) -> None:
    memory = ffi.new("char[]", STAGE_SLAB)
    assert lib.zc_core_stage(q.core, memory, STAGE_SLAB - 1) == -errno.EINVAL
    assert lib.zc_core_stage(q.core, ffi.NULL, STAGE_SLAB) == -errno.EINVAL
    assert lib.zc_core_stage(q.core, memory, STAGE_SLAB) == 0
    assert lib.zc_core_stage(q.core, memory, STAGE_SLAB) == -errno.EINVAL
    q.finish()
