"""Datagrams of random sizes through a device with an MTU of 1,500 bytes, with GSO and without.

``DATAGRAMS=300000`` sends so many in each test, for as long as it takes.
"""

from __future__ import annotations

import os
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

COUNT = int(os.environ.get("DATAGRAMS", "4000"))
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60 if COUNT == 4000 else 0)]
# More would not fit what a processor takes from a device at a time (net.core.netdev_max_backlog).
MOST = 120


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
    namespaces.shape("10gbit")
    segments = "65535" if gso else "1"
    namespaces.sender.command(ip, *["link", "set", "dev", "out", "gso_max_segs", segments])
    numbers = random.Random(COUNT)
    count = 0
    with namespaces.datagrams(family) as (sender, receiver), Collector(receiver) as collector:
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                while count < COUNT:
                    batch = datagrams_of(numbers, count)
                    await group.send_many(sender, batch)
                    # The next ones are sent when these have come: nothing overflows.
                    await until(lambda: len(collector.received) >= len(batch))  # noqa: B023
                    assert Counter(collector.received) == Counter(batch)
                    collector.received.clear()
                    count += len(batch)
            counters = ring.statistics()
            sender.send(b"")
    assert not collector.received
    assert (counters.sends, counters.failed) == (count, 0)
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
