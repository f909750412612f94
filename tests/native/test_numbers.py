"""Requests that are found by their numbers, in whatever order the kernel notifies of them."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.native.harness import Queue
from tests.native.model_state import DATAGRAM
from zc_anyio._native._zc import lib


def numbered(q: Queue, sock: Any, *numbers: int) -> None:
    """Datagrams that are held, by the numbers that MSG_ZEROCOPY gave them."""
    for number in numbers:
        q.send(100, sock=sock)
        view = q.take()
        assert lib.zc_request_number(q.core, view.user_data, number % 2**32) == 0
        q.result(view, 100)


def notify(q: Queue, sock: Any, low: int, high: int) -> None:
    args = (low % 2**32, high % 2**32, False)
    assert lib.zc_notify_range(q.core, sock, *args) == 0


@pytest.mark.parametrize("max_requests", [40, 1000])
@pytest.mark.parametrize("first", [0, 2**31 - 7, 2**32 - 5])
def test_any_ranges_in_any_order(queues: list[Queue], max_requests: int, first: int) -> None:
    """Two sockets with the same numbers, some of which have no request."""
    choose = random.Random(first + max_requests)
    queues.append(q := Queue(DATAGRAM, max_requests=max_requests))
    socks = [q.sock, q.add_sock(DATAGRAM)]
    held: dict[int, set[int]] = {0: set(), 1: set()}
    following = [first, first]
    for _ in range(3000):
        at = choose.randrange(2)
        if len(held[at]) < 10 and choose.random() < 0.6:
            following[at] += choose.choice([0, 0, 0, 1, 4])
            numbered(q, socks[at], following[at])
            held[at].add(following[at])
            following[at] += 1
        elif held[at]:
            low = choose.choice(sorted(held[at])) - choose.randrange(2)
            high = low + choose.choice([0, 0, 1, 2, 5, 30, 1000])
            notify(q, socks[at], low, high)
            held[at] -= set(range(low, high + 1))
        assert q.stats("held") == len(held[0]) + len(held[1])
    assert q.stats("strays") == 0
    for at, sock in enumerate(socks):
        notify(q, sock, first, following[at])
    assert q.stats("held") == 0
    q.finish()


def test_numbers_without_a_request(udp: Queue) -> None:
    notify(udp, udp.sock, 0, 2**32 - 1)
    numbered(udp, udp.sock, 5)
    for low, high in ((4, 4), (6, 6), (6, 4), (0, 4), (6, 2**32 - 1)):
        notify(udp, udp.sock, low, high)
    assert (udp.stats("held"), udp.stats("completions"), udp.stats("strays")) == (1, 1, 0)
    notify(udp, udp.sock, 0, 2**32 - 1)
    assert udp.stats("held") == 0
    udp.finish()


def test_a_request_can_be_given_another_number(udp: Queue) -> None:
    udp.send(100)
    view = udp.take()
    for number in (7, 7, 9):
        assert lib.zc_request_number(udp.core, view.user_data, number) == 0
    udp.result(view, 100)
    notify(udp, udp.sock, 7, 7)
    assert udp.stats("held") == 1
    notify(udp, udp.sock, 9, 9)
    assert udp.stats("held") == 0
    udp.finish()
