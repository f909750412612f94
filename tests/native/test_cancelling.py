"""Cancelling and resetting contexts."""

from __future__ import annotations

import errno

import pytest

from tests.native.harness import SOCK, Queue, failed, idle, send_bytes
from tests.native.model_state import (
    ALWAYS,
    AUTO,
    DATAGRAM,
    FAILED,
    MUTABLE,
    STAGE_SLAB,
    STAGED,
)
from zc_anyio._native._zc import lib


@pytest.mark.parametrize("result", [-errno.ECANCELED, 10, 30])
def test_cancelling_spares_the_neighbours(q: Queue, result: int) -> None:
    other = q.add_ctx()
    q.send(10)
    q.send(20, ctx=other)
    view = q.take()
    q.send(40, ctx=other)
    q.send(80)
    lib.zc_ctx_cancel(q.core, other)
    assert q.stats("queued") == 1  # what had not left is gone at once
    assert q.cancels() == [view.user_data]
    q.result(view, result)
    assert lib.zc_sock_error(q.sock) == 0
    # The notification is still out, so the cancelled send lies held between its two neighbours.
    assert q.take().bytes == (90 if result < 0 else 80)
    assert q.events() == []
    assert q.stats("failed") == (1 if result == 30 else 2)


def test_a_send_that_was_cut_short_breaks_its_stream(q: Queue) -> None:
    other = q.add_ctx()
    q.send(10)
    q.send(20, ctx=other)
    q.send(30)
    view = q.take()
    lib.zc_ctx_cancel(q.core, other)
    q.result(view, 15)
    assert lib.zc_sock_error(q.sock) == errno.ECANCELED
    assert q.events() == [failed(errno.ECANCELED)]  # of the third: the second was cancelled
    q.notify(view)
    q.finish()


@pytest.mark.parametrize("first", ["older", "younger"])
def test_a_cancelled_send_in_the_middle_is_passed_over(q: Queue, first: str) -> None:
    """Two neighbours of one request, each of its own context, cancelled in either order."""
    middle, last = q.add_ctx(), q.add_ctx()
    q.send(1, ctx=middle)
    q.send(2, ctx=last)
    q.send(4)
    view = q.take()
    q.result(view, -errno.EAGAIN)
    for ctx in (middle, last) if first == "older" else (last, middle):
        lib.zc_ctx_cancel(q.core, ctx)
    again = q.take()
    assert (again.bytes, again.sends) == (4, 1)
    q.result(again, 4)
    q.notify(again)
    assert q.stats("held") == 3
    q.notify(view)
    assert q.stats("held") == 0
    q.finish()


def test_a_cancelled_datagram_in_the_middle_is_passed_over(udp: Queue) -> None:
    other = udp.add_ctx()
    udp.send(1)
    udp.send(2, ctx=other)
    first, second = udp.take(), udp.take()
    udp.result(second, -errno.EAGAIN)
    udp.result(first, -errno.EAGAIN)
    lib.zc_ctx_cancel(udp.core, other)
    again = udp.take()
    assert again.bytes == 1
    assert udp.take() is None
    udp.result(again, 1)
    for view in (second, first, again):
        udp.notify(view)
    udp.finish()


def test_a_request_with_a_result_is_not_cancelled(q: Queue) -> None:
    q.send(10)
    view = q.take()
    lib.zc_ctx_cancel(q.core, q.ctx)
    q.result(view, 10)
    assert q.cancels() == []
    q.notify(view)
    q.finish()


def test_a_cancelled_datagram_is_not_tried_again(udp: Queue) -> None:
    udp.send(10)
    view = udp.take()
    lib.zc_ctx_cancel(udp.core, udp.ctx)
    udp.result(view, -errno.ECANCELED, 0)
    assert udp.take() is None
    assert udp.events() == [idle()]
    udp.finish()


@pytest.mark.parametrize("only_mutable", [0, 1])
def test_a_reset_breaks_streams_that_hold_sends(q: Queue, only_mutable: int) -> None:
    udp, second = q.add_sock(DATAGRAM), q.add_sock()
    q.send(10, flags=MUTABLE)
    q.send(10, sock=second)
    q.send(10, sock=udp, flags=MUTABLE)
    views = [q.take() for _ in range(3)]
    for view in views[:2]:
        q.result(view, 10)
    assert lib.zc_ctx_unreleased(q.ctx, only_mutable) == 3 - only_mutable
    assert lib.zc_ctx_reset(q.core, q.ctx, errno.ETIMEDOUT, only_mutable) == 3 - only_mutable
    assert q.broken() == [(SOCK, 1), (SOCK + 2, 1)][: 2 - only_mutable]
    assert lib.zc_sock_error(q.sock) == errno.ETIMEDOUT
    assert lib.zc_sock_error(udp) == 0
    assert q.cancels() == [views[2].user_data]
    q.result(views[2], -errno.ECANCELED, 0)
    for view in views[:2]:
        q.notify(view)
    lost = [failed(errno.ETIMEDOUT), failed(errno.ETIMEDOUT, sock=SOCK + 2)][: 2 - only_mutable]
    assert [event for event in q.events() if event[0] == FAILED] == lost
    assert q.stats("failed") == len(lost) + 1  # the datagram was cancelled
    q.finish()


def test_a_reset_after_a_failure_is_told_again(q: Queue) -> None:
    q.send(10)
    view = q.take()
    q.result(view, -errno.EPIPE)
    assert q.broken() == [(SOCK, 0)]
    lib.zc_ctx_reset(q.core, q.ctx, errno.ETIMEDOUT, 0)
    assert q.broken() == [(SOCK, 1)]
    assert lib.zc_sock_error(q.sock) == errno.EPIPE
    q.notify(view)
    q.finish()


def test_a_reset_of_one_stream(q: Queue) -> None:
    udp = q.add_sock(DATAGRAM)
    assert lib.zc_sock_reset(q.core, udp, errno.ECONNRESET) == -errno.EINVAL
    q.send(10)
    held = q.take()
    q.result(held, 10)
    q.send(20)
    assert lib.zc_sock_reset(q.core, q.sock, errno.ECONNRESET) == 0
    assert q.broken() == [(SOCK, 1)]
    assert q.events() == [failed(errno.ECONNRESET)] * 2
    q.notify(held)
    q.finish()


def test_the_end_of_a_ring_resets_what_is_under_way(q: Queue) -> None:
    udp, untouched, staged = q.add_sock(DATAGRAM), q.add_sock(), q.add_sock()
    assert lib.zc_core_reset(q.core, 0) == -errno.EINVAL
    q.send(10)
    held = q.take()
    q.result(held, 10)
    q.send(10, sock=udp)
    flying = q.take()
    q.send(10, sock=udp)
    q.send(10, sock=staged)
    assert lib.zc_core_reset(q.core, errno.ECONNRESET) == 0
    assert q.broken() == [(SOCK, 1), (SOCK + 3, 1)]
    assert lib.zc_sock_error(untouched) == lib.zc_sock_error(udp) == 0
    assert q.cancels() == [flying.user_data]
    lost = [failed(errno.ECONNRESET), failed(errno.ECONNRESET, sock=SOCK + 3)]
    # Datagrams are cancelled, which is told to nobody.
    assert [event for event in q.events() if event[0] == FAILED] == lost
    assert q.stats("failed") == 3
    q.result(flying, -errno.ECANCELED, 0)
    q.notify(held)
    assert q.stats("failed") == 4
    q.finish()


# --- sends of the program that stand in two units here


def split(queues: list[Queue], policy: int) -> Queue:
    """A send of 10 bytes, of which the first 3 fill a run and the others begin the next one."""
    queues.append(q := Queue(threshold=1 << 17, policy=policy))
    q.stage(2)
    send_bytes(q, b"a" * 10_000)
    for _ in range(5):
        send_bytes(q, b"b" * 10_000)
    send_bytes(q, b"c" * (STAGE_SLAB - 60_000 - 3))
    assert send_bytes(q, b"0123456789") & STAGED
    return q


@pytest.mark.parametrize(
    ("taken", "broken"),
    [(0, False), (1, True), (STAGE_SLAB, True), (STAGE_SLAB + 3, True), (STAGE_SLAB + 7, False)],
)
def test_a_staged_send_that_was_split_is_whole_or_its_stream_is_broken(
    queues: list[Queue], taken: int, broken: bool
) -> None:
    q = split(queues, ALWAYS)
    view = q.take()
    assert (view.sends, view.bytes) == (2, STAGE_SLAB + 7)
    q.result(view, taken or -errno.EAGAIN, 0)
    assert lib.zc_ctx_cancel(q.core, q.ctx) == 0
    assert lib.zc_sock_error(q.sock) == (errno.ECANCELED if broken else 0)
    assert bool(q.broken()) == broken
    assert q.take() is None


@pytest.mark.parametrize(
    ("result", "broken"), [(-errno.ECANCELED, False), (1, True), (STAGE_SLAB, True)]
)
def test_the_result_of_its_beginning_decides_about_the_rest_of_a_split_send(
    queues: list[Queue], result: int, broken: bool
) -> None:
    # The full run goes zero-copy, the next one does not: so they are in two requests.
    q = split(queues, AUTO)
    view = q.take()
    assert (view.sends, view.bytes, view.zero_copy) == (1, STAGE_SLAB, 1)
    assert lib.zc_ctx_cancel(q.core, q.ctx) == 0
    assert (lib.zc_sock_error(q.sock), q.stats("queued")) == (0, 1)
    q.result(view, result, 0)
    assert lib.zc_sock_error(q.sock) == (errno.ECANCELED if broken else 0)
    assert q.take() is None
    assert (q.stats("queued"), q.stats("in_flight")) == (0, 0)
    assert (send_bytes(q, b"next") < 0) == broken
