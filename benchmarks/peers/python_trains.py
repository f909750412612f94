"""Trains from Python, as one would write it by hand: ``sendmsg`` with ``UDP_SEGMENT``."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.peers.peer import Job, Send, peer

# linux/udp.h; Python has no name for it.
UDP_SEGMENT = 103
# What the kernel takes as one (before Linux 6.9).
TRAIN_BYTES, TRAIN_DATAGRAMS = 65_507, 64


@peer("sendmsg with UDP_SEGMENT in Python", "datagram")
@asynccontextmanager
async def _loop(job: Job) -> AsyncIterator[Send]:
    [sock] = job.sockets
    sock.setblocking(True)
    size = len(job.payload)
    most = max(1, min(TRAIN_DATAGRAMS, TRAIN_BYTES // size))
    data = memoryview(job.payload * most)
    control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("H", size))] if most > 1 else []

    async def send(count: int) -> None:
        for done in range(0, count, most):
            sock.sendmsg([data[: size * min(most, count - done)]], control)

    yield send
