"""Datagrams of random sizes through a device with an MTU of 1,500 bytes, with GSO and without."""

from __future__ import annotations

import random
import socket
from collections import Counter

import pytest

import zc_anyio
from tests.features.receivers import Collector
from tests.support.needs import need_command
from tests.support.netns import Rig
from tests.support.numbered import SMALLEST, Checker, datagram
from tests.support.peers import udp_pair
from tests.support.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

BATCHES, MOST = 40, 60


def datagrams_of(numbers: random.Random, first: int) -> list[bytes]:
    """Make datagrams that differ, some neighbours of one size, a few larger than the MTU."""
    made: list[bytes] = []
    for _ in range(numbers.randint(1, 8)):
        size = numbers.choice([numbers.randint(8, 1472), numbers.randint(8, 4000), 1200])
        for _ in range(numbers.randint(1, MOST // 8)):
            mark = (first + len(made)).to_bytes(8, "big")
            made.append((mark * (size // 8 + 1))[:size])
    return made


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("gso", [True, False], ids=["gso", "no_gso"])
async def test_each_arrives_as_it_was_cut(
    namespaces: Rig, driver: str, gso: bool, family: int
) -> None:
    ip = need_command("ip", "iproute2")
    namespaces.shape("1gbit")
    if not gso:
        namespaces.sender.command(ip, *["link", "set", "dev", "out", "gso_max_segs", "1"])
    numbers = random.Random(7)
    expected: Counter[bytes] = Counter()
    with namespaces.datagrams(family) as (sender, receiver), Collector(receiver) as collector:
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                for _ in range(BATCHES):
                    batch = datagrams_of(numbers, expected.total())
                    await group.send_many(sender, batch)
                    expected.update(batch)
                    # The next ones are sent when these have come: nothing overflows.
                    await until(lambda: len(collector.received) == expected.total())
            counters = ring.statistics()
            sender.send(b"")
    assert Counter(collector.received) == expected
    assert (counters.sends, counters.failed) == (expected.total(), 0)
    assert counters.requests < counters.sends


def test_the_receiver_notices_what_is_not_as_it_was_cut() -> None:
    with udp_pair() as (sender, receiver), Checker(receiver, 10) as checker:
        good = datagram(3, 100)
        neighbour = datagram(4, 100)
        for data in (
            good,
            datagram(5, SMALLEST),
            good[:-1] + neighbour[-1:],
            good[:-1],
            good + neighbour[:1],
            datagram(10, 100),
            good,
            b"",
        ):
            sender.send(data)
        found = checker.finish()
    assert (found.received, found.wrong, found.twice) == (2, 5, 1)
