"""How many requests a socket may have under way, and which socket comes next."""

from __future__ import annotations

from typing import Any

import pytest

from tests.native.harness import SOCK, Queue
from tests.native.model_state import DATAGRAM, MORE, STREAM

# --- slots


def fill(q: Queue, sock: Any, most: int = 100) -> list[Any]:
    """Have a socket hold as many requests as it may."""
    held: list[Any] = []
    while len(held) < most:
        q.send(10, sock=sock)
        view = q.take()
        q.result(view, 10, MORE if view.zero_copy else 0)
        if not view.zero_copy:
            break
        held.append(view)
    return held


def release(q: Queue, held: list[Any]) -> None:
    for view in held:
        q.notify(view)
    assert q.stats("held") == 0
    q.finish()


@pytest.mark.parametrize("kind", [STREAM, DATAGRAM])
def test_a_silent_peer_has_a_share_of_the_slots(queues: list[Queue], kind: int) -> None:
    queues.append(q := Queue(kind, max_requests=40))
    held = fill(q, q.sock)
    assert len(held) == 10
    # What it holds is released late; meanwhile it is sent to by copying, and so goes on.
    for _ in range(100):
        q.send(10)
        view = q.take()
        assert not view.zero_copy
        q.result(view, 10, 0)
    assert (q.stats("held"), q.stats("copied")) == (10, 101)
    quick = q.add_sock()
    q.send(10, sock=quick)
    view = q.take()
    assert view.zero_copy
    q.result(view, 10)
    release(q, [*held, view])


def test_many_silent_peers_leave_slots_for_a_quick_one(queues: list[Queue]) -> None:
    queues.append(q := Queue(max_requests=40))
    held = [fill(q, q.add_sock()) for _ in range(5)]
    assert [len(views) for views in held] == [10, 10, 10, 0, 0]
    quick = q.add_sock()
    for _ in range(100):
        q.send(10, sock=quick)
        view = q.take()
        assert (view.socket, view.zero_copy) == (SOCK + 6, False)
        q.result(view, 10, 0)
    release(q, [view for views in held for view in views])


def test_slots_that_come_back_are_used_for_zero_copy_again(queues: list[Queue]) -> None:
    queues.append(q := Queue(DATAGRAM, max_requests=8))
    first, second = fill(q, q.sock)
    assert fill(q, q.sock) == []
    q.notify(second)
    third = fill(q, q.sock, 1)
    assert len(third) == 1
    release(q, [first, *third])


# --- turns


def test_a_full_datagram_socket_lets_others_have_their_turn(udp: Queue) -> None:
    streams = [udp.add_sock(), udp.add_sock()]
    for _ in range(50):
        udp.send(10)
    for stream in streams:
        udp.send(10, sock=stream)
    views = [udp.take() for _ in range(6)]
    order = [view.socket - SOCK for view in views]
    assert order == [0, 1, 2, 0, 0, 0]
    for view in views:
        udp.result(view, 10, 0)
    udp.finish()


def test_two_full_datagram_sockets_take_turns(udp: Queue) -> None:
    other = udp.add_sock(DATAGRAM)
    for sock in (udp.sock, other):
        for _ in range(5):
            udp.send(10, sock=sock)
    order = []
    while view := udp.take():
        order.append(view.socket - SOCK)
        udp.result(view, 10, 0)
    assert order == [0, 1] * 5
    udp.finish()
