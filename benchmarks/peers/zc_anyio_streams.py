"""zc_anyio's own streams, which a program uses as it uses anyio's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from anyio.abc import SocketStream

import zc_anyio
from benchmarks.peers.peer import BACKENDS, Job, Send, peer


@asynccontextmanager
async def _streams(job: Job) -> AsyncIterator[Send]:
    payload = job.payload
    async with zc_anyio.open_ring(drain_timeout=0), AsyncExitStack() as stack:
        # The wrapped object gives its socket up; the harness counts with a duplicate of its own.
        streams = [
            await stack.enter_async_context(
                await zc_anyio.wrap_stream(await SocketStream.from_socket(sock.dup()))
            )
            for sock in job.sockets
        ]

        async def send(count: int) -> None:
            for _ in range(count):
                for stream in streams:
                    await stream.send(payload)

        yield send


for _backend in BACKENDS:
    peer(f"zc_anyio stream on {_backend}", "stream", "one at a time", backend=_backend)(_streams)
