"""``MSG_ZEROCOPY`` and ``sendmmsg`` from C: loops that are called once for all sends."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from benchmarks.peers.compiled import send_loop
from benchmarks.peers.peer import Job, Send, peer


@asynccontextmanager
async def _send(job: Job, source: str, function: str) -> AsyncIterator[Send]:
    loop = send_loop(source, function)
    [sock] = job.sockets
    sock.setblocking(True)

    async def send(count: int) -> None:
        result = loop(sock.fileno(), job.payload, len(job.payload), count)
        if result:
            raise OSError(-result, os.strerror(-result))

    yield send


peer("MSG_ZEROCOPY in C", "stream", "datagram")(
    partial(_send, source="msg_zerocopy.c", function="send_zero_copy")
)
peer("sendmmsg in C", "datagram")(partial(_send, source="sendmmsg.c", function="send_many"))
