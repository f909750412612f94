"""Datagrams of random sizes, sent in all ways through a device with an MTU of 1,500 bytes."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import anyio

import zc_anyio
from tests.support.needs import need_command
from tests.support.netns import Rig
from tests.support.numbered import SMALLEST, Checked, Checker, datagram
from zc_anyio.datagrams import ZeroCopyConnectedUDPSocket

__all__ = ["SEGMENTATION", "Outcome", "send_and_check", "shape"]

# Whether the sending device takes trains, or the kernel cuts them before it.  With both, the
# library cuts those of datagrams that are larger than the MTU.
SEGMENTATION = ["device", "kernel"]
# In a run of datagrams, and under way at once.
RUN_MOST, UNDER_WAY = 80, 4000
RATE = "400mbit"
# When nothing has come for so long, what is missing is lost.
LOST_SECONDS = 2.0


@dataclass
class Outcome:
    """What became of the datagrams that were sent.

    :ivar dropped: those that the kernel says it has dropped.
    """

    sent: int
    failed: int
    requests: int
    dropped: int
    found: Checked

    @property
    def is_complete(self) -> bool:
        """Whether each has come as it was cut, once, or is accounted for as dropped."""
        missing = self.sent - self.failed - self.found.received
        return not self.found.wrong and not self.found.twice and missing == self.dropped


def shape(rig: Rig, how: str) -> None:
    """Have packets wait, with the sender's pages in them, and be cut by one of ``SEGMENTATION``."""
    rig.shape(RATE)
    tool = need_command("ethtool", "ethtool")
    state = "on" if how == "device" else "off"
    rig.sender.command(tool, "-K", "out", "tx-udp-segmentation", state)


def runs_of(numbers: random.Random, count: int) -> Iterator[list[bytes]]:
    """Make the datagrams in runs of neighbours; some of one size, a few larger than the MTU."""
    first = 0
    while first < count:
        made: list[bytes] = []
        most = numbers.randint(1, RUN_MOST)
        while len(made) < most and first + len(made) < count:
            size = numbers.choice(
                [numbers.randint(SMALLEST, 1472), 1200, numbers.randint(SMALLEST, 4000)]
            )
            for _ in range(min(numbers.choice([1, 1, 2, 17, 70]), count - first - len(made))):
                made.append(datagram(first + len(made), size))
        first += len(made)
        yield made


async def send_run(
    run: list[bytes], numbers: random.Random, sock: socket.socket, own: ZeroCopyConnectedUDPSocket
) -> None:
    """Send a run in one of the ways that there are; what can be changed is changed afterwards."""
    way = numbers.randrange(5)
    if way == 0:
        await own.send_many(run)
        return
    if way == 1:
        for size, same in groupby(run, len):
            joined = bytearray(b"".join(same))
            await own.send_segments(joined, size)
            joined[:] = bytes(len(joined))
        return
    changeable = []
    async with zc_anyio.send_group(zero_copy=numbers.choice(["auto", "always"])) as group:
        if way == 2:
            await group.send_many(sock, run)
        elif way == 3:
            for size, same in groupby(run, len):
                changeable.append(bytearray(b"".join(same)))
                await group.send_segments(sock, changeable[-1], size)
        else:
            for data in run:
                await group.send(sock, data)
    for buffer in changeable:
        buffer[:] = bytes(len(buffer))


async def send_and_check(
    rig: Rig, driver: zc_anyio.Driver, family: int, count: int, seed: int
) -> Outcome:
    """Send ``count`` datagrams; a receiver in another process looks at each."""
    numbers = random.Random(seed)
    before = dropped(rig)
    sent = lost = 0
    with rig.datagrams(family) as (sender, receiver), Checker(receiver, count) as checker:
        async with zc_anyio.open_ring(driver=driver) as ring:
            own = ZeroCopyConnectedUDPSocket(ring, sender.dup(), ())
            async with own:
                for run in runs_of(numbers, count):
                    await send_run(run, numbers, sender, own)
                    sent += len(run)
                    with anyio.move_on_after(LOST_SECONDS) as scope:
                        while sent - lost - checker.seen > UNDER_WAY:
                            await anyio.sleep(0.0005)
                    if scope.cancelled_caught:
                        lost = sent - checker.seen
        counters = ring.statistics()
        found = await anyio.to_thread.run_sync(checker.finish)
    return Outcome(sent, counters.failed, counters.requests, dropped(rig) - before, found)


def dropped(rig: Rig) -> int:
    """Return how many datagrams were dropped on the way, by the kernel's own counters."""
    return rig.receiver.run(_dropped_at_socket) + rig.sender.run(_dropped_by_device)


def _dropped_at_socket() -> int:
    net = Path("/proc/thread-self/net")
    names, values = (
        line.split() for line in (net / "snmp").read_text().splitlines() if line.startswith("Udp:")
    )
    counters = dict(line.split() for line in (net / "snmp6").read_text().splitlines())
    return int(values[names.index("InErrors")]) + int(counters["Udp6InErrors"])


def _dropped_by_device() -> int:
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()
    [fields] = [line.split() for line in lines if line.strip().startswith("out:")]
    # After the name: eight fields of receiving, then bytes, packets, errors and drops of sending.
    return int(fields[12])
