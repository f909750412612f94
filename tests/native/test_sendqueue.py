"""Situations of the send queues and generations that have a name, one by one.

Completions are injected: `take` hands a request to the kernel, `result` and `notify` answer it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest

from tests.native.model_state import (
    ALWAYS,
    AUTO,
    COPIED,
    COPIED_IN_A_ROW,
    COPY_REQUESTS,
    DATAGRAM,
    DATAGRAMS_IN_FLIGHT,
    DENIED_REQUESTS,
    FAILED,
    FLUSH,
    GATHER_BUFFERS,
    GATHER_BYTES,
    IDLE,
    KICK,
    MORE,
    MUTABLE,
    NEVER,
    NOTIF,
    RELEASED,
    REPORT,
    RESULT,
    ROLL_SENDS,
    SENT_SHIFT,
    STAGE_SHARE,
    STAGE_SLAB,
    STAGED,
    STREAM,
    TURN,
    TURN_BYTES,
    WINDOW,
)
from zc_anyio._zc import ffi, lib

MEMORY = ffi.new("char[]", 1 << 16)
SOCK, CTX = 100, 200  # ids: these, then the next ones
ERRORS = [errno.EBADF, errno.EPIPE, errno.ECONNRESET, errno.EFAULT, errno.EMSGSIZE]


class Queue:
    """A core with one socket and one context, to which more can be added."""

    def __init__(self, kind: int = STREAM, max_requests: int = 100, **ctx: int) -> None:
        self.core = lib.zc_core_new(2**32 - 1, max_requests)
        self.socks: list[Any] = []
        self.ctxs: list[Any] = []
        self.sock, self.ctx = self.add_sock(kind), self.add_ctx(**ctx)
        self.staging: Any = None

    def stage(self, slabs: int) -> None:
        self.staging = ffi.new("char[]", slabs * STAGE_SLAB)
        assert lib.zc_core_stage(self.core, self.staging, slabs * STAGE_SLAB) == 0

    def readable(self, view: Any) -> bytes:
        """What the kernel would read for a request."""
        addresses, sizes = ffi.new("uint64_t[1024]"), ffi.new("uint64_t[1024]")
        count = lib.zc_request_vector(self.core, view.user_data, addresses, sizes, 1024)
        assert count == view.buffers
        found = zip(addresses[0:count], sizes[0:count], strict=True)
        return b"".join(ffi.buffer(ffi.cast("char *", a), n)[:] for a, n in found)

    def add_sock(self, kind: int = STREAM, zero_copy: bool = True) -> Any:
        number = SOCK + len(self.socks)
        self.socks.append(lib.zc_sock_new(self.core, number, number, kind, zero_copy))
        return self.socks[-1]

    def add_ctx(
        self, first: int = 0, window: int = 1 << 40, threshold: int = 0, policy: int = AUTO
    ) -> Any:
        number = CTX + len(self.ctxs)
        self.ctxs.append(lib.zc_ctx_new(self.core, number, first, window, policy, threshold))
        return self.ctxs[-1]

    def send(self, *sizes: int, ctx: Any = None, sock: Any = None, flags: int = 0) -> int:
        data = [MEMORY] * len(sizes)
        where = (self.core, ctx or self.ctx, sock or self.sock)
        sent: int = lib.zc_sendv(*where, data, sizes, len(sizes), flags)
        return sent

    def take(self) -> Any:
        """The next request, or None."""
        view = ffi.new("struct zc_request_view *")
        return view if lib.zc_next_request(self.core, view) else None

    def result(self, view: Any, result: int, flags: int = MORE) -> int:
        code: int = lib.zc_complete(self.core, view.user_data, result, flags)
        return code

    def notify(self, view: Any, flags: int = 0) -> int:
        return self.result(view, 0, NOTIF | flags)

    def flush(self, ctx: Any = None, even_empty: bool = False) -> int:
        number: int = lib.zc_ctx_flush(self.core, ctx or self.ctx, even_empty)
        return number

    def cancels(self) -> list[int]:
        user_data, found = ffi.new("uint64_t *"), []
        while lib.zc_next_cancel(self.core, user_data):
            found.append(user_data[0])
        return found

    def broken(self) -> list[tuple[int, int]]:
        fd, reset, found = ffi.new("int *"), ffi.new("int *"), []
        while lib.zc_next_broken(self.core, fd, reset):
            found.append((fd[0], reset[0]))
        return found

    def events(self) -> list[tuple[int, ...]]:
        out, found = ffi.new("int64_t[4]"), []
        while lib.zc_events(self.core, out, 1):
            found.append(tuple(out))
        return found

    def stats(self, name: str) -> int:
        stats = ffi.new("struct zc_stats *")
        lib.zc_core_stats(self.core, stats)
        value: int = getattr(stats, name)
        return value

    def finish(self) -> None:
        """Everything can be completed and freed: nothing leaked, nothing was counted twice."""
        for ctx in self.ctxs:
            self.flush(ctx)
        views = []
        while view := self.take():
            views.append(view)
            self.result(view, view.bytes, MORE if view.zero_copy else 0)
        for view in views:
            if view.zero_copy:
                self.notify(view)
        self.events()
        for ctx in self.ctxs:
            assert lib.zc_ctx_free(self.core, ctx) == 0
        for sock in self.socks:
            assert lib.zc_sock_free(self.core, sock) == 0
        assert self.stats("generations_open") == 0
        assert self.stats("allocations") == 0


@pytest.fixture
def queues() -> Iterator[list[Queue]]:
    made: list[Queue] = []
    yield made
    for queue in made:
        assert lib.zc_core_free(queue.core) == 0


@pytest.fixture
def q(queues: list[Queue]) -> Queue:
    queues.append(Queue())
    return queues[0]


@pytest.fixture
def udp(queues: list[Queue]) -> Queue:
    queues.append(Queue(DATAGRAM))
    return queues[0]


def released(number: int, ctx: int = CTX) -> tuple[int, ...]:
    return (RELEASED, ctx, number, 0)


def failed(error: int, ctx: int = CTX, sock: int = SOCK) -> tuple[int, ...]:
    return (FAILED, ctx, sock, error)


def idle(sock: int = SOCK) -> tuple[int, ...]:
    return (IDLE, sock, 0, 0)


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


# --- order, gathering, short sends


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


def test_gathering_stops_at_a_number_of_bytes(q: Queue) -> None:
    for _ in range(3):
        q.send(*[1 << 15] * (GATHER_BYTES >> 16))  # half of it each
    view = q.take()
    assert (view.bytes, view.sends) == (GATHER_BYTES, 2)
    q.result(view, view.bytes, 0)
    q.finish()


def test_a_large_send_is_cut(q: Queue) -> None:
    # The accounting reads no buffer, so this one need not be as large as it says.
    q.send(3 << 30, 5)
    for size in (1 << 30, 1 << 30, 1 << 30, 5):
        view = q.take()
        assert (view.bytes, view.buffers, view.sends) == (size, 1, 1)
        q.result(view, size, 0)
    assert q.stats("zero_copied") == 1
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


def test_copied_is_told_of_what_a_request_took(q: Queue) -> None:
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


# --- errors


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EINTR, errno.ECANCELED])
@pytest.mark.parametrize("kind", [STREAM, DATAGRAM])
def test_a_request_is_tried_again(queues: list[Queue], kind: int, error: int) -> None:
    queues.append(q := Queue(kind))
    q.send(10)
    q.send(20)
    first = q.take()
    q.result(first, -error)
    second = q.take()
    assert (second.bytes, second.zero_copy) == (first.bytes, 1)
    q.notify(first)
    q.result(second, second.bytes)
    q.notify(second)
    assert not any(event[0] == FAILED for event in q.events())
    q.finish()


@pytest.mark.parametrize("kind", [STREAM, DATAGRAM])
def test_a_socket_without_zero_copy_is_sent_plainly(queues: list[Queue], kind: int) -> None:
    queues.append(q := Queue(kind))
    q.send(10)
    first = q.take()
    q.result(first, -errno.EOPNOTSUPP)
    plain = q.take()
    assert (first.zero_copy, plain.zero_copy) == (1, 0)
    q.result(plain, 10, 0)
    q.notify(first, COPIED)
    q.send(10)
    assert q.take().zero_copy == 0
    assert q.stats("copied") == 1


@pytest.mark.parametrize("error", [errno.ENOMEM, errno.ENOBUFS])
@pytest.mark.parametrize("kind", [STREAM, DATAGRAM])
def test_without_memory_all_is_sent_plainly_for_a_while(
    queues: list[Queue], kind: int, error: int
) -> None:
    queues.append(q := Queue(kind))
    other = q.add_sock()
    q.send(10)
    first = q.take()
    q.result(first, -error)
    q.notify(first)
    kinds = []
    for sock in [q.sock, *[other] * DENIED_REQUESTS]:
        if sock == other:
            q.send(10, sock=other)
        view = q.take()
        kinds.append(view.zero_copy)
        q.result(view, 10, 0)
    assert kinds == [0] * DENIED_REQUESTS + [1]
    q.finish()


def test_what_was_denied_once_is_sent_plainly_whenever_it_comes_to_it(q: Queue) -> None:
    udp = q.add_sock(DATAGRAM)
    q.send(10)
    first = q.take()
    for _ in range(DENIED_REQUESTS):
        q.send(10, sock=udp)
    q.result(first, -errno.ENOMEM, 0)
    for zero_copy in [0] * DENIED_REQUESTS + [0]:
        view = q.take()
        assert view.zero_copy == zero_copy
        q.result(view, 10, 0)
    assert view.socket == SOCK
    q.finish()


def test_a_socket_that_copies_each_time_is_sent_to_by_copying(q: Queue) -> None:
    always = q.add_ctx(policy=ALWAYS)
    zero_copy: list[int] = []
    for number in range(COPIED_IN_A_ROW + COPY_REQUESTS + 1 + 2 * COPY_REQUESTS + 2):
        probe = number == COPIED_IN_A_ROW + 3
        q.send(10, ctx=always if probe else None)
        view = q.take()
        assert view.zero_copy or not probe
        q.result(view, 10, MORE if view.zero_copy else 0)
        last = len(zero_copy) > COPIED_IN_A_ROW + 3 * COPY_REQUESTS
        if view.zero_copy:
            q.notify(view, 0 if last else COPIED)
        if not probe:
            zero_copy.append(view.zero_copy)
    assert zero_copy == (
        [1] * COPIED_IN_A_ROW + [0] * COPY_REQUESTS + [1] + [0] * 2 * COPY_REQUESTS + [1]
    )
    q.finish()


@pytest.mark.parametrize("error", [errno.ENOMEM, errno.EOPNOTSUPP])
@pytest.mark.parametrize("kind", [STREAM, DATAGRAM])
def test_the_plain_op_does_not_fall_back_again(queues: list[Queue], kind: int, error: int) -> None:
    queues.append(q := Queue(kind))
    q.send(10)
    q.result(q.take(), -error, 0)
    q.result(q.take(), -error, 0)
    assert q.take() is None
    assert failed(error) in q.events()
    q.finish()


def test_a_failure_breaks_a_stream_for_all(q: Queue) -> None:
    other = q.add_ctx()
    q.send(10)
    view = q.take()
    q.send(20)
    q.send(30, ctx=other)
    q.flush()
    q.result(view, 4)
    view = q.take()
    q.result(view, -errno.ECONNRESET, 0)
    assert q.events() == [failed(errno.ECONNRESET)] * 2 + [failed(errno.ECONNRESET, CTX + 1)]
    assert q.broken() == [(SOCK, 0)]
    assert lib.zc_sock_error(q.sock) == errno.ECONNRESET
    assert q.send(10) == -errno.EPIPE
    assert q.take() is None
    assert q.stats("failed") == 3


def test_a_failure_ends_one_datagram(udp: Queue) -> None:
    udp.send(10)
    udp.send(20)
    udp.result(udp.take(), -errno.EMSGSIZE, 0)
    assert udp.events() == [failed(errno.EMSGSIZE)]
    assert udp.take().bytes == 20
    assert udp.send(10) >= 0


def test_a_socket_that_fails_in_flight(q: Queue) -> None:
    q.send(10)
    q.send(20)
    view = q.take()
    q.send(30)
    lib.zc_sock_fail(q.core, q.sock, errno.EPIPE)
    lib.zc_sock_fail(q.core, q.sock, errno.EIO)
    assert q.cancels() == [view.user_data]
    assert q.events() == []
    q.result(view, 15)
    assert q.events() == [failed(errno.EPIPE)] * 2
    q.notify(view)
    q.finish()


def test_a_datagram_fails_with_the_reason_of_its_socket(udp: Queue) -> None:
    udp.send(10)
    view = udp.take()
    lib.zc_sock_fail(udp.core, udp.sock, errno.ENETDOWN)
    assert udp.cancels() == [view.user_data]
    udp.result(view, -errno.ECANCELED, 0)
    assert failed(errno.ENETDOWN) in udp.events()
    udp.finish()


# --- cancelling and resetting


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


def test_what_has_its_result_is_not_cancelled(q: Queue) -> None:
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
def test_a_reset_breaks_what_holds(q: Queue, only_mutable: int) -> None:
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


# --- completions that nobody waits for, slots


def test_strays_change_nothing(q: Queue) -> None:
    q.send(10)
    q.flush()
    view = q.take()
    assert lib.zc_complete(q.core, 2**64 - 1, 0, 0) == -errno.ESTALE
    assert lib.zc_complete(q.core, view.user_data ^ 1 << 32, 10, 0) == -errno.ESTALE
    assert q.result(view, 10) == 0
    assert q.result(view, 10) == -errno.EPROTO
    assert q.notify(view) == 0
    assert q.notify(view) == -errno.ESTALE
    assert q.result(view, 10) == -errno.ESTALE
    assert (q.stats("strays"), q.stats("completions"), q.stats("bytes_sent")) == (5, 2, 10)
    q.finish()


def test_a_late_notification_meets_no_later_request(q: Queue) -> None:
    q.send(10)
    first = q.take()
    q.result(first, 10, 0)
    q.send(20)
    second = q.take()
    assert second.user_data != first.user_data
    assert second.user_data >> 32 == 0  # the counter of the slot began at its last value
    assert q.notify(first) == -errno.ESTALE
    q.result(second, 20, 0)
    q.finish()


def test_slots_run_out_and_come_back(queues: list[Queue]) -> None:
    queues.append(q := Queue(DATAGRAM, max_requests=2))
    for _ in range(3):
        q.send(10)
    views = [q.take() for _ in range(2)]
    assert q.take() is None
    q.result(views[0], 10)
    assert q.take() is None  # its notification can still come
    q.notify(views[0])
    views.append(q.take())
    for view in views[1:]:
        q.result(view, 10, 0)
    q.finish()


def test_datagrams_in_flight_are_bounded(udp: Queue) -> None:
    for _ in range(DATAGRAMS_IN_FLIGHT + 1):
        udp.send(10)
    views = []
    while view := udp.take():
        views.append(view)
    assert len(views) == DATAGRAMS_IN_FLIGHT
    udp.result(views[0], 10)
    assert udp.take() is not None


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


def test_the_first_send_asks_for_a_turn_soon_and_many_for_one_now(q: Queue) -> None:
    assert q.send(10) & KICK
    assert q.send(10) & (KICK | TURN) == 0
    assert q.send(TURN_BYTES) & TURN
    view = q.take()
    assert q.take() is None
    assert q.send(10) & KICK
    q.result(view, view.bytes, 0)
    q.finish()


def test_idle_is_withdrawn_by_a_new_send(q: Queue) -> None:
    q.send(10)
    q.result(q.take(), 10, 0)
    q.send(10)
    assert q.events() == []
    q.result(q.take(), 10, 0)
    assert q.events() == [idle()]
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


# --- staging


def small(queues: list[Queue], slabs: int, **ctx: int) -> Queue:
    queues.append(q := Queue(threshold=1 << 17, **ctx))
    q.stage(slabs)
    return q


def send_bytes(q: Queue, data: bytes, ctx: Any = None) -> int:
    """The memory is overwritten at once, as the caller of a staged send may do."""
    memory = ffi.new("char[]", data)
    sent: int = lib.zc_send(q.core, ctx or q.ctx, q.sock, memory, len(data), 0)
    ffi.buffer(memory)[:] = bytes(len(data) + 1)
    return sent


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
def test_a_run_that_was_sent_in_part_grows_on(queues: list[Queue], short: int) -> None:
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


# --- wrong input, and memory that runs out


def test_sizes_that_are_refused(q: Queue, udp: Queue) -> None:
    udp = q.add_sock(DATAGRAM)
    assert q.send(0) == -errno.EINVAL
    assert q.send(2**63) == -errno.EMSGSIZE
    assert q.send(2**63 - 1, 1) == -errno.EMSGSIZE
    assert q.send(2**64 - 1, 1) == -errno.EMSGSIZE
    assert q.send(65536, sock=udp) == -errno.EMSGSIZE
    assert q.send(*[1] * 1025, sock=udp) == -errno.EMSGSIZE
    assert q.stats("sends") == 0
    assert q.flush() == -errno.ENODATA
    assert q.send(*[1] * 1024, sock=udp) >= 0
    assert q.take().buffers == 1024


def test_missing_arguments_are_refused(q: Queue) -> None:
    null = ffi.NULL
    core, ctx, sock, errors = q.core, q.ctx, q.sock, ffi.new("int32_t[1]")
    for result in (
        lib.zc_core_free(null),
        lib.zc_events(core, null, 1),
        lib.zc_ctx_free(core, null),
        lib.zc_ctx_flush(core, null, 0),
        lib.zc_ctx_cancel(core, null),
        lib.zc_ctx_reset(core, ctx, 0, 0),
        lib.zc_ctx_unreleased(null, 0),
        lib.zc_ctx_get_stats(ctx, null),
        lib.zc_sock_free(core, null),
        lib.zc_sock_fail(core, sock, 0),
        lib.zc_sock_error(null),
        lib.zc_send(core, null, sock, MEMORY, 1, 0),
        lib.zc_broadcast(core, ctx, [sock, null], 2, MEMORY, 1, 0, errors),
        lib.zc_broadcast(core, ctx, [sock], 1, MEMORY, 0, 0, errors),
        lib.zc_next_request(core, null),
        lib.zc_next_cancel(core, null),
        lib.zc_next_broken(core, null, null),
        lib.zc_complete(null, 0, 0, 0),
    ):
        assert result == -errno.EINVAL
    for made in (
        lib.zc_core_new(0, 0),
        lib.zc_core_new(0, 2**32 - 1),
        lib.zc_ctx_new(core, 1, 0, 0, AUTO, 0),
        lib.zc_ctx_new(core, 1, 0, 1, NEVER + 1, 0),
        lib.zc_sock_new(core, 1, 1, 2, 1),
    ):
        assert made == null
    q.finish()


def test_memory_that_runs_out_leaves_no_trace(q: Queue) -> None:
    for budget in range(3):
        lib.zc_core_alloc_budget(q.core, budget)
        assert q.send(10, 10) == -errno.ENOMEM
    assert lib.zc_ctx_new(q.core, 1, 0, 1, AUTO, 0) == ffi.NULL
    assert lib.zc_sock_new(q.core, 1, 1, STREAM, 1) == ffi.NULL
    assert q.flush(even_empty=True) == -errno.ENOMEM
    assert q.stats("allocations") == 2  # the socket and the context
    assert q.stats("sends") == 0
    lib.zc_core_alloc_budget(q.core, 3)
    assert q.send(10, 10) == KICK
    assert q.take() is None  # a request needs memory, too; the send waits
    lib.zc_core_alloc_budget(q.core, -1)
    assert q.take().bytes == 20


def test_a_datagram_to_an_address(q: Queue) -> None:
    udp, address = q.add_sock(DATAGRAM), ffi.new("char[16]")

    def send_to(sock: Any, to_size: int) -> int:
        where, data = (q.core, q.ctx, sock), ([MEMORY, MEMORY], [10, 20], 2, 0)
        sent: int = lib.zc_send_to(*where, *data, address, to_size)
        return sent

    assert send_to(q.sock, 16) == -errno.EINVAL
    assert send_to(udp, 129) == -errno.EINVAL
    before = q.stats("allocations")
    for budget in range(4):
        lib.zc_core_alloc_budget(q.core, budget)
        assert send_to(udp, 16) == -errno.ENOMEM
    assert q.stats("allocations") == before
    lib.zc_core_alloc_budget(q.core, -1)
    assert send_to(udp, 16) == KICK
    view = q.take()
    assert (view.bytes, view.buffers) == (30, 2)
    q.result(view, 30)
    q.notify(view)
    q.finish()


def test_a_core_in_use_can_be_freed(q: Queue) -> None:
    """As when its ring is gone; the fixture frees it and asks whether all memory was found."""
    udp, broken = q.add_sock(DATAGRAM), q.add_sock()
    q.flush(even_empty=True)
    for sock in (q.sock, udp, broken, q.sock):
        q.send(10, 10, sock=sock)
    q.result(q.take(), 10)
    views = [q.take(), q.take()]
    q.result(views[1], -errno.EPIPE)
    q.flush()
    q.send(10)
    lib.zc_ctx_cancel(q.core, q.ctx)


def test_a_core_that_holds_staged_sends_can_be_freed(queues: list[Queue]) -> None:
    q = small(queues, 4)
    send_bytes(q, b"abc")
    q.result(q.take(), 3)
    q.flush()
    assert q.events() == [released(0)]
    send_bytes(q, b"def")
    assert q.stats("held") == 1
