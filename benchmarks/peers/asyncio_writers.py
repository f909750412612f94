"""asyncio's ``StreamWriter``, on its own event loop and on uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from benchmarks.peers.peer import Job, Send, peer

KINDS = ("stream", "one at a time", "broadcast", "stalled")


@peer("StreamWriter on asyncio", *KINDS, backend="asyncio")
@peer("StreamWriter on uvloop", *KINDS, backend="uvloop")
@asynccontextmanager
async def _writers(job: Job) -> AsyncIterator[Send]:
    payload = job.payload
    async with AsyncExitStack() as stack:
        writers: list[asyncio.StreamWriter] = []
        for sock in job.sockets:
            _, writer = await asyncio.open_connection(sock=sock)
            stack.push_async_callback(_close, writer)
            writers.append(writer)

        async def send(count: int) -> None:
            for _ in range(count):
                for writer in writers:
                    writer.write(payload)
                for writer in writers:
                    await writer.drain()

        yield send


async def _close(writer: asyncio.StreamWriter) -> None:
    # What a stalled peer has not taken is dropped.
    writer.transport.abort()
    with suppress(ConnectionError):
        await writer.wait_closed()
