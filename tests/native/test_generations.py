"""When generations are released, contexts and sockets can be freed, and the window is told."""

from __future__ import annotations

import errno

import pytest

from tests.native.harness import CTX, MEMORY, Queue, failed, idle, released
from tests.native.model_state import (
    COPIED,
    DATAGRAM,
    FAILED,
    FLUSH,
    IDLE,
    KICK,
    LOOK_SENDS,
    MORE,
    RELEASED,
    REPORT,
    RESULT,
    ROLL_SENDS,
    SENT_SHIFT,
    TURN,
    TURN_BYTES,
    TURN_BYTES_MOST,
    TURN_BYTES_STAGED,
    TURN_SENDS,
    WINDOW,
)
from zc_anyio._native._zc import ffi, lib

ERRORS = [errno.EBADF, errno.EPIPE, errno.ECONNRESET, errno.EFAULT, errno.EMSGSIZE]


# --- the end of a generation


@pytest.mark.parametrize("result", [10, *(-error for error in ERRORS)])
def test_with_more_the_notification_releases(q: Queue, result: int) -> None:
    q.send(10)
    q.flush()
    view = q.take()
    q.result(view, result, MORE)
    failures = [failed(-result)] if result < 0 else []
    assert q.events() == failures
    assert q.stats("held") == 1
    assert lib.zc_sock_free(q.core, q.sock) == -errno.EBUSY
    assert lib.zc_ctx_free(q.core, q.ctx) == -errno.EBUSY
    q.notify(view)
    assert sorted(q.events()) == sorted([released(0), idle()])
    q.finish()


@pytest.mark.parametrize("result", [10, -errno.EINVAL])
def test_without_more_the_result_releases(q: Queue, result: int) -> None:
    q.send(10)
    q.flush()
    q.result(q.take(), result, 0)
    events = q.events()
    assert released(0) in events
    if result < 0:
        assert events[0] == failed(errno.EINVAL)
    q.finish()


def test_a_notification_may_precede_the_result(q: Queue) -> None:
    q.send(10)
    q.flush()
    view = q.take()
    q.notify(view, COPIED)
    assert q.events() == []
    assert q.notify(view) == -errno.EPROTO
    q.result(view, 10, MORE)
    assert released(0) in q.events()
    assert (q.stats("copied"), q.stats("zero_copied")) == (1, 0)
    q.finish()


def test_notifications_come_in_any_order(q: Queue) -> None:
    views = []
    for number in range(3):
        assert q.send(10) >> SENT_SHIFT == number
        assert q.flush() == number
        views.append(q.take())
        q.result(views[-1], 10)
    for number in (1, 2, 0):
        q.notify(views[number])
        assert q.events()[0] == released(number)
    q.finish()


def test_an_open_generation_is_not_released(q: Queue) -> None:
    q.send(10)
    view = q.take()
    q.result(view, 10)
    q.notify(view)
    assert q.events() == [idle()]
    assert q.flush() == 0
    assert q.events() == [released(0)]
    q.finish()


def test_empty_generations(q: Queue) -> None:
    assert q.flush() == -errno.ENODATA
    assert q.flush(even_empty=True) == 0
    assert q.events() == [released(0)]
    assert q.send(10) >> SENT_SHIFT == 1
    q.finish()


def test_a_release_that_was_not_told_keeps_the_context(q: Queue) -> None:
    q.flush(even_empty=True)
    assert lib.zc_ctx_free(q.core, q.ctx) == -errno.EBUSY
    assert q.events() == [released(0)]
    q.finish()


def test_a_failure_that_was_not_told_keeps_the_socket(q: Queue) -> None:
    q.send(10)
    q.result(q.take(), -errno.EPIPE, 0)
    assert lib.zc_sock_free(q.core, q.sock) == -errno.EBUSY
    q.flush()
    assert [event[0] for event in q.events()] == [FAILED, IDLE, RELEASED]
    q.finish()


def test_generations_roll(queues: list[Queue]) -> None:
    queues.append(q := Queue(window=400, first=7))
    assert [q.send(50) >> SENT_SHIFT for _ in range(5)] == [7, 7, 8, 8, 9]
    q.finish()


def test_generations_roll_at_a_number_of_sends(q: Queue) -> None:
    numbers = [q.send(1) >> SENT_SHIFT for _ in range(ROLL_SENDS + 1)]
    assert numbers == [0] * ROLL_SENDS + [1]
    q.finish()


def test_generations_by_hand_do_not_roll(queues: list[Queue]) -> None:
    queues.append(q := Queue(window=400))
    assert lib.zc_ctx_by_hand(q.ctx) == 0
    assert {q.send(50) >> SENT_SHIFT for _ in range(8)} == {0}
    assert q.flush() == 0
    q.finish()


# --- reported sends, and the proposal's FLUSH


@pytest.mark.parametrize("code", [10, -errno.EPIPE])
def test_flush_acts_only_if_its_send_succeeds(q: Queue, code: int) -> None:
    q.send(10, flags=REPORT)
    q.send(20, flags=FLUSH)
    assert lib.zc_ctx_ticket(q.ctx) == 2
    q.result(q.take(), 10, 0)
    assert q.events() == [(RESULT, CTX, 1, 0)]
    view = q.take()
    q.result(view, 20 if code > 0 else code)
    if code > 0:
        assert q.events() == [(RESULT, CTX, 2, 0)]
        assert q.flush() == -errno.ENODATA
        q.notify(view)
        assert released(0) in q.events()
    else:
        assert q.events() == [failed(errno.EPIPE), (RESULT, CTX, 2, errno.EPIPE)]
        q.notify(view)
        assert q.flush() == 0
    q.finish()


# --- the window, and when to take a turn


def test_the_window(queues: list[Queue]) -> None:
    queues.append(q := Queue(window=100))
    q.send(60)
    assert q.send(41) == -errno.EAGAIN
    assert q.send(200) == -errno.EAGAIN
    assert q.send(40) >= 0
    view = q.take()
    assert (view.bytes, view.sends) == (100, 2)
    q.result(view, 60)
    q.result(q.take(), 40, 0)
    assert q.events() == []
    q.notify(view)
    assert (WINDOW, CTX, 0, 0) in q.events()
    assert q.send(200) >= 0  # more than the window, but alone
    assert q.send(1) == -errno.EAGAIN
    q.finish()


def test_the_window_is_told_when_the_smallest_refused_send_fits(queues: list[Queue]) -> None:
    queues.append(q := Queue(DATAGRAM, window=100))
    for size in (30, 30, 40):
        q.send(size)
    assert [q.send(60), q.send(50)] == [-errno.EAGAIN] * 2
    views = [q.take() for _ in range(3)]
    q.result(views[0], 30, 0)
    assert (WINDOW, CTX, 0, 0) not in q.events()
    q.result(views[1], 30, 0)
    assert (WINDOW, CTX, 0, 0) in q.events()
    q.result(views[2], 40, 0)
    assert (WINDOW, CTX, 0, 0) not in q.events()
    q.finish()


def test_even_an_empty_datagram_waits_for_a_window_that_is_overfull(queues: list[Queue]) -> None:
    queues.append(q := Queue(DATAGRAM, window=100))
    q.send(101)
    assert q.send(0) == -errno.EAGAIN
    q.result(q.take(), 101, 0)
    assert (WINDOW, CTX, 0, 0) in q.events()
    assert q.send(0) >= 0
    view = q.take()
    assert (view.bytes, view.buffers) == (0, 1)
    q.result(view, 0, 0)
    q.finish()


def test_a_broadcast_counts_once(queues: list[Queue]) -> None:
    queues.append(q := Queue(window=1000))
    socks = [q.sock, *(q.add_sock() for _ in range(9))]
    lib.zc_sock_fail(q.core, socks[3], errno.EPIPE)
    errors = ffi.new("int32_t[10]")
    sent = lib.zc_broadcast(q.core, q.ctx, socks, 10, MEMORY, 500, 0, errors)
    assert sent == KICK
    assert list(errors) == [errno.EPIPE if i == 3 else 0 for i in range(10)]
    assert q.send(499) >= 0
    assert lib.zc_broadcast(q.core, q.ctx, socks, 10, MEMORY, 500, 0, errors) == -errno.EAGAIN
    assert q.flush() == -errno.ENODATA  # half of the window rolled the generation
    q.finish()


def test_a_broadcast_that_nobody_takes(q: Queue) -> None:
    lib.zc_sock_fail(q.core, q.sock, errno.EPIPE)
    errors = ffi.new("int32_t[1]")
    sent = lib.zc_broadcast(q.core, q.ctx, [q.sock], 1, MEMORY, 500, 0, errors)
    assert (sent, errors[0]) == (-errno.EPIPE, errno.EPIPE)
    assert q.flush() == -errno.ENODATA
    q.finish()


def test_many_sends_look_at_the_clock_and_very_many_ask_for_a_turn(queues: list[Queue]) -> None:
    queues.append(q := Queue(window=1 << 20, max_requests=8))
    told = [q.send(1) & (KICK | TURN) for _ in range(TURN_SENDS)]
    assert {n for n, flags in enumerate(told) if flags & KICK} == set(
        range(0, TURN_SENDS - 1, LOOK_SENDS)
    )
    assert [n for n, flags in enumerate(told) if flags & TURN] == [TURN_SENDS - 1]
    lib.zc_ctx_cancel(q.core, q.ctx)
    q.finish()


def test_the_bytes_of_a_broadcast_ask_for_a_turn_once(queues: list[Queue]) -> None:
    queues.append(q := Queue(window=4 * TURN_BYTES))
    socks = [q.sock, *(q.add_sock() for _ in range(9))]
    errors = ffi.new("int32_t[10]")
    size = TURN_BYTES // 4
    for _ in range(3):
        sent = lib.zc_broadcast(q.core, q.ctx, socks, 10, MEMORY, size, 0, errors)
        assert sent & TURN == 0
    assert lib.zc_broadcast(q.core, q.ctx, socks, 10, MEMORY, size, 0, errors) & TURN
    lib.zc_ctx_cancel(q.core, q.ctx)
    q.finish()


def test_the_first_send_asks_for_a_turn_soon_and_many_for_one_now(q: Queue) -> None:
    assert q.send(10) & KICK
    assert q.send(10) & (KICK | TURN) == 0
    assert q.send(TURN_BYTES_MOST) & TURN
    view = q.take()
    assert q.take() is None
    assert q.send(10) & KICK
    q.result(view, view.bytes, 0)
    q.finish()


@pytest.mark.parametrize(
    ("window", "enough"),
    [(1 << 10, TURN_BYTES), (2 << 20, 512 << 10), (1 << 40, TURN_BYTES_MOST)],
    ids=["least", "share", "most"],
)
def test_what_may_wait_for_a_turn_is_a_share_of_the_window(
    queues: list[Queue], window: int, enough: int
) -> None:
    queues.append(q := Queue(window=window))
    assert not q.send(enough - 1) & TURN
    assert q.send(1, ctx=q.add_ctx(window=window)) & TURN
    q.finish()


def test_what_is_staged_asks_for_a_turn_before_slabs_run_out(queues: list[Queue]) -> None:
    queues.append(q := Queue(threshold=1 << 17))
    q.stage(10)
    for _ in range(TURN_BYTES_STAGED // len(MEMORY) - 1):
        assert not q.send(len(MEMORY)) & TURN
    assert q.send(len(MEMORY)) & TURN
    q.finish()


def test_a_window_that_counts_until_the_kernel_has_taken_it(queues: list[Queue]) -> None:
    queues.append(q := Queue(window=100))
    assert lib.zc_ctx_until_taken(q.ctx) == 0
    q.send(100)
    first = q.take()
    assert q.send(50) == -errno.EAGAIN
    q.result(first, 60)
    assert (q.events(), q.send(50)) == ([], -errno.EAGAIN)
    rest = q.take()
    q.result(rest, 40)
    assert q.events() == [(WINDOW, CTX, 0, 0)]
    assert q.stats("held") == 1
    assert q.send(100) >= 0
    q.notify(first)
    q.notify(rest)
    assert q.send(1) == -errno.EAGAIN
    q.finish()
