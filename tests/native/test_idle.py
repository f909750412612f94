"""When a socket is idle, and when that is told."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from tests.native.harness import SOCK, Queue, idle
from zc_anyio._native._zc import lib


@pytest.fixture
def lingering(q: Queue) -> Callable[[int], list[tuple[int, ...]]]:
    """A queue whose idle sockets are told of after 10 ms; tells what is told at a time."""
    lib.zc_core_linger(q.core, 10)

    def events_at(now: int) -> list[tuple[int, ...]]:
        assert lib.zc_core_advance(q.core, now) == 0
        return q.events()

    return events_at


def send_and_complete(q: Queue, number: int = 0) -> None:
    q.send(10, sock=q.socks[number])
    q.result(q.take(), 10, 0)
    q.flush()
    assert [event[0] for event in q.events()] == [1]


def test_idle_is_withdrawn_by_a_new_send(q: Queue) -> None:
    q.send(10)
    q.result(q.take(), 10, 0)
    q.send(10)
    assert q.events() == []
    q.result(q.take(), 10, 0)
    assert q.events() == [idle()]
    q.finish()


def test_idleness_is_told_when_it_has_lasted(
    q: Queue, lingering: Callable[[int], list[tuple[int, ...]]]
) -> None:
    assert lingering(1000) == []
    send_and_complete(q)
    assert lingering(1000) == []
    assert lingering(1009) == []
    assert lingering(1010) == [idle()]
    assert lingering(2000) == []
    q.finish()


def test_a_new_send_restarts_the_idle_time(
    q: Queue, lingering: Callable[[int], list[tuple[int, ...]]]
) -> None:
    assert lingering(1000) == []
    send_and_complete(q)
    assert lingering(1009) == []
    q.send(10)
    assert lingering(1020) == [], "it is not idle any more"
    q.result(q.take(), 10, 0)
    q.flush()
    assert idle() not in lingering(1029)
    assert lingering(1030) == [idle()]
    q.finish()


def test_each_socket_has_its_own_time(
    q: Queue, lingering: Callable[[int], list[tuple[int, ...]]]
) -> None:
    q.add_sock()
    assert lingering(1000) == []
    send_and_complete(q, 0)
    assert lingering(1004) == []
    send_and_complete(q, 1)
    assert lingering(1010) == [idle(SOCK)]
    assert lingering(1014) == [idle(SOCK + 1)]
    q.finish()


def test_a_broken_socket_is_reported_at_once(
    q: Queue, lingering: Callable[[int], list[tuple[int, ...]]]
) -> None:
    q.send(10)
    q.result(q.take(), -errno.EPIPE, 0)
    assert idle() in lingering(0)
    q.finish()


def test_it_can_be_told_of_at_once(
    q: Queue, lingering: Callable[[int], list[tuple[int, ...]]]
) -> None:
    q.send(10)
    assert lib.zc_sock_tell_idle(q.core, q.sock) == 0
    view = q.take()
    assert lib.zc_sock_tell_idle(q.core, q.sock) == 0
    q.result(view, 10)
    assert lib.zc_sock_tell_idle(q.core, q.sock) == 0, "the kernel holds its buffer"
    q.notify(view)
    q.flush()
    assert idle() not in q.events()
    assert lib.zc_sock_tell_idle(q.core, q.sock) == 1
    assert q.events() == [idle()]
    assert lingering(1000) == [], "it is told once"
    q.finish()


def test_without_a_time_to_linger_all_idle_sockets_are_told(
    q: Queue, lingering: Callable[[int], list[tuple[int, ...]]]
) -> None:
    q.add_sock()
    send_and_complete(q, 0)
    send_and_complete(q, 1)
    assert lib.zc_core_linger(q.core, 0) == 0
    assert q.events() == [idle(SOCK), idle(SOCK + 1)]
    q.finish()


def test_a_freed_socket_is_not_reported_any_more(
    q: Queue, lingering: Callable[[int], list[tuple[int, ...]]]
) -> None:
    send_and_complete(q)
    assert lib.zc_sock_free(q.core, q.socks.pop()) == 0
    assert lingering(1000) == []
    q.finish()
