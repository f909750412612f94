"""Errors: what is tried again, what goes out by copying, what breaks a socket."""

from __future__ import annotations

import errno

import pytest

from tests.native.harness import CTX, MEMORY, SOCK, Queue, failed
from tests.native.model_state import (
    ALWAYS,
    COPIED,
    COPIED_IN_A_ROW,
    COPY_REQUESTS,
    COPY_REQUESTS_MOST,
    DATAGRAM,
    DENIED_REQUESTS,
    FAILED,
    MORE,
    STREAM,
)
from zc_anyio._native._zc import lib


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


def test_what_the_kernel_encrypts_is_sent_plainly(q: Queue) -> None:
    assert lib.zc_sock_encrypted(q.sock) == 0
    q.send(100_000)
    req = q.take()
    assert req.zero_copy == 0
    q.result(req, req.bytes, 0)
    assert (q.stats("zero_copied"), q.stats("copied"), q.stats("kernel_tls")) == (0, 1, 1)


@pytest.mark.parametrize("error", [errno.ENOMEM, errno.ENOBUFS])
@pytest.mark.parametrize("kind", [STREAM, DATAGRAM])
def test_without_memory_everything_is_copied_for_a_while(
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


@pytest.mark.parametrize(
    ("registered", "taken", "again"),
    [(False, 10, True), (True, 10, False), (False, -errno.ENOMEM, False)],
    ids=["pinned", "registered", "refused"],
)
def test_a_notification_of_pinned_memory_makes_room(
    queues: list[Queue], registered: bool, taken: int, again: bool
) -> None:
    queues.append(q := Queue(DATAGRAM))
    if registered:
        q.register(MEMORY, 20)
    for start in (0, 20):
        lib.zc_queue(q.core, q.ctx, q.sock, MEMORY + start, 10, 0)
    held, denied = q.take(), q.take()
    q.result(held, taken)
    q.result(denied, -errno.ENOMEM, 0)
    q.notify(held)
    zero_copy = []
    while view := q.take():
        zero_copy.append(view.zero_copy)
        q.result(view, 10, 0)
    assert zero_copy == [0] * (2 if taken < 0 else 1), "what was denied goes out by copying"
    q.send(10)
    assert (q.take().zero_copy == 1) == again


def test_a_request_that_was_refused_once_is_copied_whenever_it_is_sent(q: Queue) -> None:
    udp = q.add_sock(DATAGRAM)
    q.send(10)
    first = q.take()
    for _ in range(DENIED_REQUESTS):
        q.send(10, sock=udp)
    q.result(first, -errno.ENOMEM, 0)
    for _ in range(DENIED_REQUESTS):
        view = q.take()
        assert not view.zero_copy
        q.result(view, -errno.EAGAIN if view.socket == SOCK else 10, 0)
    views = [q.take(), q.take()]
    # Others are zero-copied again by now.
    assert {(view.socket == SOCK, view.zero_copy) for view in views} == {(True, 0), (False, 1)}
    for view in views:
        q.result(view, 10, 0)
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


def probe(q: Queue, flags: int) -> int:
    """Send until a request is zero-copied, and say how that was; returns how many were not."""
    plain = 0
    while True:
        q.send(10)
        view = q.take()
        q.result(view, 10, MORE if view.zero_copy else 0)
        if view.zero_copy:
            q.notify(view, flags)
            return plain
        plain += 1


def test_each_probe_that_is_copied_doubles_the_pause_up_to_a_limit(q: Queue) -> None:
    pauses = [probe(q, COPIED) for _ in range(COPIED_IN_A_ROW + 10)]
    doubled = [COPY_REQUESTS << number for number in range(10)]
    assert pauses == [0] * COPIED_IN_A_ROW + [min(n, COPY_REQUESTS_MOST) for n in doubled]
    assert doubled[-1] > COPY_REQUESTS_MOST
    q.finish()


def test_a_probe_that_is_not_copied_ends_the_pauses(q: Queue) -> None:
    for _ in range(COPIED_IN_A_ROW + 2):
        probe(q, COPIED)
    assert probe(q, 0) == 4 * COPY_REQUESTS
    again = [probe(q, COPIED) for _ in range(COPIED_IN_A_ROW + 1)]
    assert again == [0] * COPIED_IN_A_ROW + [COPY_REQUESTS]
    q.finish()


def test_a_send_of_which_nothing_was_copied_is_not_counted_as_copied(q: Queue) -> None:
    for _ in range(COPIED_IN_A_ROW):
        probe(q, COPIED)
    for _ in range(COPY_REQUESTS - 1):
        q.send(10)
        q.result(q.take(), 10, 0)
    copied = q.stats("copied")
    # The last request that is not zero-copied covers both, and takes one of them.
    q.send(10)
    q.send(20)
    both = q.take()
    assert (both.sends, both.zero_copy) == (2, 0)
    q.result(both, 10, 0)
    rest = q.take()
    assert (rest.bytes, rest.zero_copy) == (20, 1)
    q.result(rest, 20)
    q.notify(rest)
    assert (q.stats("copied"), q.stats("zero_copied")) == (copied + 1, 1)
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


def test_one_send_that_is_not_copied_begins_the_count_anew(q: Queue) -> None:
    for _ in range(3):
        for flags in [COPIED] * (COPIED_IN_A_ROW - 1) + [0]:
            q.send(10)
            view = q.take()
            assert view.zero_copy
            q.result(view, 10)
            q.notify(view, flags)
    q.finish()


def test_a_failed_request_says_nothing_about_copying(q: Queue) -> None:
    q.send(10)
    for _ in range(2 * COPIED_IN_A_ROW):
        view = q.take()
        assert view.zero_copy
        q.result(view, -errno.EAGAIN)
        q.notify(view, COPIED)
    q.finish()
