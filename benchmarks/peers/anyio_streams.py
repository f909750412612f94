"""anyio's own streams, as a program without zc_anyio sends: the reference for all goals."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from anyio.abc import ConnectedUDPSocket, SocketStream

from benchmarks.peers.peer import BACKENDS, Job, Send, peer


@asynccontextmanager
async def _streams(job: Job) -> AsyncIterator[Send]:
    payload = job.payload
    async with AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(await SocketStream.from_socket(sock))
            for sock in job.sockets
        ]

        async def send(count: int) -> None:
            for _ in range(count):
                for stream in streams:
                    await stream.send(payload)

        yield send


@asynccontextmanager
async def _datagrams(job: Job) -> AsyncIterator[Send]:
    payload = job.payload
    [sock] = job.sockets
    async with await ConnectedUDPSocket.from_socket(sock) as udp:

        async def send(count: int) -> None:
            for _ in range(count):
                await udp.send(payload)

        yield send


for _backend in BACKENDS:
    peer(
        f"anyio stream on {_backend}",
        *("stream", "one at a time", "broadcast", "stalled"),
        backend=_backend,
    )(_streams)
    peer(f"anyio UDP socket on {_backend}", "datagram", backend=_backend)(_datagrams)
