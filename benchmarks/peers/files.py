"""Ways to send a file; each call sends the whole file to every connection."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeAlias

import anyio
import anyio.to_thread

import zc_anyio
from benchmarks.peers.peer import BACKENDS, Job, Open, Send, peer

# What a program that reads a file and sends it takes at a time.
CHUNK = 256 << 10

SendOnce: TypeAlias = Callable[[socket.socket, int], Coroutine[Any, Any, None]]
SendFile: TypeAlias = Callable[[socket.socket, int, int], Coroutine[Any, Any, None]]


# Of the cold file that each way sends before the one that is measured.
FIRST = 1 << 20


@contextmanager
def _file(payload: bytes, *, cold: bool) -> Iterator[int]:
    """Write a payload to a file that has no name, and yield its descriptor.

    It lies in TMPDIR, which has to be on a disk, or "cold" means nothing.
    """
    with tempfile.TemporaryFile() as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
        if cold:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        yield file.fileno()


@asynccontextmanager
async def _sending(job: Job, send_file: SendFile, *, cold: bool) -> AsyncIterator[Send]:
    """Send the job's payload as a file.

    A cold file is sent once, so another one goes before it: the worker thread runs by then.
    """
    if cold:
        with _file(job.payload[:FIRST], cold=True) as fd:
            await _to_all(job, fd, send_file, 1)
        # Until all of it has arrived.
        await anyio.sleep(0.05)
    with _file(job.payload, cold=cold) as fd:
        yield lambda count: _to_all(job, fd, send_file, count)


async def _to_all(job: Job, fd: int, send_file: SendFile, count: int) -> None:
    """Send in a task for each connection."""
    async with anyio.create_task_group() as tasks:
        for sock in job.sockets:
            tasks.start_soon(send_file, sock, fd, count)


def _each(send_file: SendOnce) -> SendFile:
    async def each(sock: socket.socket, fd: int, count: int) -> None:
        for _ in range(count):
            await send_file(sock, fd)

    return each


def _way(send_file: SendOnce, *, cold: bool) -> Open:
    return lambda job: _sending(job, _each(send_file), cold=cold)


async def _sendfile(sock: socket.socket, fd: int) -> None:
    """Send as a program without an event loop does."""
    at, size = 0, os.fstat(fd).st_size
    sock.setblocking(True)
    while at < size:
        at += os.sendfile(sock.fileno(), fd, at, size - at)


async def _loop_sendfile(sock: socket.socket, fd: int) -> None:
    sock.setblocking(False)
    with os.fdopen(fd, "rb", closefd=False) as file:
        await asyncio.get_running_loop().sock_sendfile(sock, file)


async def _read_and_send(sock: socket.socket, fd: int) -> None:
    at = 0
    while chunk := await anyio.to_thread.run_sync(os.pread, fd, CHUNK, at):
        at += len(chunk)
        left = memoryview(chunk)
        while left:
            try:
                left = left[sock.send(left) :]
            except BlockingIOError:
                await anyio.wait_writable(sock)


async def _group(sock: socket.socket, fd: int, count: int) -> None:
    async with zc_anyio.send_group() as group:
        for _ in range(count):
            await group.send_file(sock, fd)


@asynccontextmanager
async def _ours(job: Job, *, cold: bool) -> AsyncIterator[Send]:
    async with zc_anyio.open_ring(drain_timeout=0) as ring:
        async with _sending(job, _group, cold=cold) as send:
            yield send
        statistics = ring.statistics()
        for name in ("zero_copied", "copied", "requests"):
            job.notes[name] = getattr(statistics, name)


for _kind, _cold in (("file", False), ("cold file", True)):
    peer("os.sendfile loop", _kind)(_way(_sendfile, cold=_cold))
    peer("loop.sock_sendfile on asyncio", _kind)(_way(_loop_sendfile, cold=_cold))
    for _backend in BACKENDS:
        peer(f"read and send on {_backend}", _kind, backend=_backend)(
            _way(_read_and_send, cold=_cold)
        )
        peer(f"zc_anyio on {_backend}", _kind, backend=_backend)(partial(_ours, cold=_cold))
