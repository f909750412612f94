"""``python -m tests.soak.trains``: many datagrams of random sizes, and a look at each that arrives.

They go through a veth pair with an MTU of 1,500 bytes, in network namespaces that this makes: over
IPv4 and IPv6, with trains that the device takes and trains that the kernel cuts before it, by each
driver, on asyncio and trio.  It fails unless each arrives as it was cut, or is accounted for as
dropped.
"""

from __future__ import annotations

import argparse
import itertools
import secrets
import socket
import sys

import anyio

from tests.soak.__main__ import DRIVERS
from tests.support.netns import rig
from tests.support.train_content import SEGMENTATION, Outcome, send_and_check, shape
from zc_anyio import Driver

FAMILIES = {"IPv4": socket.AF_INET, "IPv6": socket.AF_INET6}


async def run(driver: Driver, family: int, how: str, count: int, seed: int) -> Outcome:
    """Send ``count`` datagrams in one of the ways."""
    with rig() as made:
        shape(made, how)
        return await send_and_check(made, driver, family, count, seed)


def main() -> None:
    """Do all of them one after the other, and say what became of the datagrams."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.trains", description=__doc__)
    parser.add_argument("--datagrams", type=int, default=10_000_000, help="in all (%(default)s)")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="of an earlier run")
    arguments = parser.parse_args()
    print(f"trains: --seed {arguments.seed}", flush=True)
    ways = list(itertools.product(FAMILIES, SEGMENTATION, DRIVERS, ["asyncio", "trio"]))
    count = -(-arguments.datagrams // len(ways))
    outcomes = []
    for number, (family, how, driver, backend) in enumerate(ways):
        seed = arguments.seed + number
        outcome = anyio.run(run, driver, FAMILIES[family], how, count, seed, backend=backend)
        outcomes.append(outcome)
        verdict = "" if outcome.is_complete else " FAILED:"
        print(f"{family}, cut by the {how}, {driver}, {backend}:{verdict} {outcome}", flush=True)
    print(
        f"trains: {sum(one.sent for one in outcomes)} sent, "
        f"{sum(one.found.received for one in outcomes)} arrived as they were cut, "
        f"{sum(one.dropped for one in outcomes)} dropped, "
        f"{sum(one.found.wrong + one.found.twice for one in outcomes)} wrong or twice"
    )
    sys.exit(not all(outcome.is_complete for outcome in outcomes))


if __name__ == "__main__":
    main()
