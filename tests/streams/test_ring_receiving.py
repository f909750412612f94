"""Receiving through the io_uring, which otherwise begins when several streams wait."""

from __future__ import annotations

import hashlib
import os
import platform
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

import zc_anyio
from tests.conftest import usable
from tests.streams.pairs import connected, facing, settle
from tests.support.backends import only_asyncio
from tests.support.waiting import LIMIT, until
from zc_anyio._native.lib import rx_ready
from zc_anyio._receiving import through_ring as _ring_receiving

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

# receive.c
UNREAD_BYTES, SHARED_BUFFERS = 256 << 10, 32
SHARED = SHARED_BUFFERS * (64 << 10)


@pytest.fixture(autouse=True)
def from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the ring even if a single stream waits."""
    usable("io_uring")
    monkeypatch.setattr(_ring_receiving, "MANY", 0)


@asynccontextmanager
async def ring_of_its_own() -> AsyncIterator[zc_anyio.Ring]:
    async with zc_anyio.open_ring(driver="io_uring") as ring:
        yield ring
        await until(lambda: ring.statistics().receivers == 0)


async def receive_all(stream: zc_anyio.ZeroCopySocketStream, size: int, most: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        chunk = await stream.receive(most)
        assert 0 < len(chunk) <= most
        received += chunk
    return bytes(received)


async def arm(stream: zc_anyio.ZeroCopySocketStream, peer: socket.socket) -> None:
    """Have the ring receive for a stream, by a call that waits."""

    async def receive() -> None:
        assert await stream.receive() == b"x"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receive)
        await settle()
        peer.send(b"x")


async def test_small_messages_come_through_the_ring() -> None:
    async with ring_of_its_own() as ring, connected() as (one, other):
        await arm(other, one._raw_socket)
        for number in range(200):
            message = b"%d" % number * 10
            await one.send(message)
            assert await receive_all(other, len(message), 7) == message
        # One operation, armed once, brought them all.
        assert ring.statistics().receives == 201
        await one.send_eof()
        for _ in range(2):
            with pytest.raises(anyio.EndOfStream):
                await other.receive()


@pytest.mark.parametrize("kind", ["tcp", "small"])
async def test_sizes_that_make_a_stream_bulk_and_not_again(kind: str) -> None:
    choose = random.Random(11)
    sent, got = hashlib.sha256(), hashlib.sha256()
    total = 0
    async with ring_of_its_own() as ring, connected(small=kind == "small") as (one, other):

        async def send() -> None:
            nonlocal total
            for size in [10] * 30 + [300_000] * 10 + [10] * 30 + [100_000] * 10:
                data = os.urandom(choose.randrange(1, 2 * size))
                sent.update(data)
                total += len(data)
                await one.send(data)
                if size == 10:
                    await anyio.sleep(0.001)
            await one.send_eof()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            buffer = bytearray(50_000)
            received = 0
            with pytest.raises(anyio.EndOfStream):
                while True:
                    if choose.random() < 0.5:
                        data = await other.receive(choose.randrange(1, 100_000))
                    else:
                        data = bytes(buffer[: await other.receive_into(buffer)])
                    got.update(data)
                    received += len(data)
                    if choose.random() < 0.02:
                        await anyio.sleep(0.005)
        assert (received, got.digest()) == (total, sent.digest())
        assert ring.statistics().receives > 10


@only_asyncio
async def test_large_pieces_cost_no_submission_where_the_loop_stays_registered() -> None:
    async with ring_of_its_own() as ring, facing() as (stream, peer):
        await arm(stream, peer)

        async def exchange(size: int, times: int) -> int:
            before = ring.statistics().submits
            for _ in range(times):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(receive_all, stream, size, size)
                    await settle()
                    peer.sendall(bytes(size))
            return ring.statistics().submits - before

        # The first makes the stream bulk: that is cancelled, and waited for once by a poll.
        await exchange(50_000, 2)
        assert await exchange(50_000, 20) == 0
        # After so many small pieces the ring brings them again.
        brought = ring.statistics().receives
        await exchange(100, 20)
        assert ring.statistics().receives > brought
        buffer = bytearray(50_000)
        await exchange(50_000, 2)
        before = ring.statistics().submits
        for _ in range(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.receive_into, buffer)
                await settle()
                peer.send(bytes(20_000))
        assert ring.statistics().submits == before


async def test_a_slow_reader_bounds_what_the_kernel_brings() -> None:
    # Before Linux 6.12 each piece takes a whole shared buffer: with all of them used up the ring
    # brings no more until the stream is asked for bytes.
    version = tuple(int(part) for part in platform.release().split(".")[:2])
    least = UNREAD_BYTES if version >= (6, 12) else SHARED_BUFFERS * 1000
    async with ring_of_its_own(), facing(receive_buffer=64 << 10) as (stream, peer):
        await arm(stream, peer)
        peer.setblocking(False)
        with pytest.raises(BlockingIOError):
            # Small pieces, each of which the ring could bring.
            for number in range(200_000):
                peer.send(bytes(1000))
                # Before the shared buffers are used up, also where a piece takes a whole one.
                if number % 16 == 0:
                    await anyio.lowlevel.checkpoint()
        await settle()
        assert isinstance(stream._receiver, _ring_receiving.RingReceiver)
        held = rx_ready(stream._receiver._handle)
        assert least <= held < UNREAD_BYTES + SHARED


async def test_a_stalled_stream_does_not_keep_others_from_receiving() -> None:
    async with ring_of_its_own(), connected() as (one, other), connected() as (two, second):
        await arm(other, one._raw_socket)
        await arm(second, two._raw_socket)
        async with anyio.create_task_group() as tasks:
            # More than the shared buffers hold, and nobody takes it.
            tasks.start_soon(one.send, bytes(2 * SHARED))
            for _ in range(50):
                await two.send(b"message")
                with anyio.fail_after(LIMIT):
                    assert await receive_all(second, 7, 100) == b"message"
            tasks.start_soon(receive_all, other, 2 * SHARED, 1 << 20)


async def test_a_cancelled_call_has_taken_nothing() -> None:
    async with ring_of_its_own(), facing() as (stream, peer):
        sent, received = bytearray(), bytearray()

        async def receive() -> None:
            received.extend(await stream.receive())

        for number in range(100):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive)
                await settle()
                sent += b"%4d" % number
                peer.send(b"%4d" % number)
                if number % 3:
                    await settle()
                tasks.cancel_scope.cancel()
        with anyio.fail_after(LIMIT):
            while len(received) < len(sent):
                await receive()
        assert received == sent


async def test_closing_wakes_waiting_tasks_and_ends_the_connection() -> None:
    async with ring_of_its_own() as ring, facing() as (stream, peer):
        await arm(stream, peer)
        async with anyio.create_task_group() as tasks:

            async def wait() -> None:
                with pytest.raises(anyio.ClosedResourceError):
                    await stream.receive()

            tasks.start_soon(wait)
            await settle()
            await stream.aclose()
        assert await anyio.to_thread.run_sync(peer.recv, 1) == b""
        await until(lambda: ring.statistics().receivers == 0)


async def test_a_reset_breaks_the_stream() -> None:
    async with ring_of_its_own(), facing() as (stream, peer):
        await arm(stream, peer)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await stream.receive()
        assert isinstance(caught.value.__cause__, ConnectionResetError)


async def test_what_the_ring_brought_outlives_it() -> None:
    async with zc_anyio.open_ring(driver="io_uring") as ring:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            peer, _ = listener.accept()
        stream = await zc_anyio.ZeroCopySocketStream.from_socket(client)
        await arm(stream, peer)
        peer.send(b"brought, and not taken")
        await until(lambda: ring.statistics().receives == 2)
    assert await stream.receive(7) == b"brought"
    peer.send(b" before, and after")
    assert await receive_all(stream, 33, 100) == b", and not taken before, and after"
    await stream.aclose()
    peer.close()
