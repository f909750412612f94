"""Measures, in the lab, a peer that sends what it claims, and one that sends less."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.lab.network import enter_lab
from benchmarks.lab.place import LAB
from benchmarks.measure.rounds import (
    Case,
    Measure,
    Settings,
    measure_datagrams,
    measure_sending,
    rounds,
)
from benchmarks.peers.peer import Job, Peer, Send

SETTINGS = Settings(rounds=1, seconds=None, core=max(os.sched_getaffinity(0)), options={})


def sending(name: str, share: int) -> Peer:
    """Make a peer that sends only one in ``share`` of the bytes that it is asked to send."""

    @asynccontextmanager
    async def open_peer(job: Job) -> AsyncIterator[Send]:
        async def send(count: int) -> None:
            for sock in job.sockets:
                for _ in range(count):
                    sock.send(job.payload[: len(job.payload) // share])

        yield send

    return Peer(name, "stream", "asyncio", open_peer, lambda _options: None)


def main() -> None:
    """Print the outcome of each, one a line."""
    enter_lab()
    measures: dict[str, Measure] = {"TCP": measure_sending, "UDP": measure_datagrams}
    for protocol, measure in measures.items():
        peers = [sending("honest", 1), sending("cheating", 2)]
        *_, results = rounds(measure, peers, Case("1 KiB", 1024), LAB, SETTINGS)
        for result in results:
            counted = [one.bytes for one in result.rounds]
            print(f"{protocol} {result.peer}: {result.failure or counted}")


if __name__ == "__main__":
    main()
