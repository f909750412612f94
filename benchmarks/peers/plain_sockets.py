"""A loop of ``socket.send``, with no event loop: the least that copying from Python can cost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.peers.peer import Job, Send, peer


@peer("socket.send loop", "stream", "one at a time", "broadcast", "datagram", "stalled")
@asynccontextmanager
async def _loop(job: Job) -> AsyncIterator[Send]:
    payload = job.payload
    size = len(payload)
    for sock in job.sockets:
        sock.setblocking(True)

    async def send(count: int) -> None:
        for _ in range(count):
            for sock in job.sockets:
                if sock.send(payload) != size:
                    # A signal can cut even a blocking send short.
                    raise RuntimeError("a blocking send was cut short")

    yield send
