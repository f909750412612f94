"""Datagrams of random sizes through a device with an MTU of 1,500 bytes, in trains."""

from __future__ import annotations

import pytest

from tests.features.test_trains import each_family
from tests.support.backends import ASYNCIO, TRIO
from tests.support.netns import Rig
from tests.support.numbered import SMALLEST, Checker, datagram
from tests.support.peers import udp_pair
from tests.support.train_content import SEGMENTATION, send_and_check, shape
from zc_anyio import Driver

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

COUNT = 3000


@pytest.mark.parametrize("anyio_backend", [*ASYNCIO[:1], *TRIO], indirect=True)
@pytest.mark.parametrize("how", SEGMENTATION)
@each_family
async def test_each_arrives_as_it_was_cut(
    namespaces: Rig, driver: Driver, family: int, how: str
) -> None:
    shape(namespaces, how)
    outcome = await send_and_check(namespaces, driver, family, COUNT, seed=7)
    assert outcome.is_complete, outcome
    assert (outcome.sent, outcome.failed) == (COUNT, 0)
    # The receiver has room for all that are under way.
    assert outcome.dropped == 0
    # A train counts once.
    assert outcome.requests < COUNT


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
