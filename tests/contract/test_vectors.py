"""Lists of parts that lie anywhere: pool buffers, slices of them, other pools, bytes, nothing."""

from __future__ import annotations

import random
import socket
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.support.peers import SMALL_BUFFER, Reader, receive_exactly, tcp_pair

SIZE = 4096
POLICIES = ["never", "auto", "always"]


async def buffers(stack: AsyncExitStack, ring: zc_anyio.Ring) -> list[memoryview]:
    """Two pools' buffers, which may touch, each filled with bytes of its own."""
    taken: list[memoryview] = []
    for _ in range(2):
        pool = await stack.enter_async_context(
            zc_anyio.open_buffer_pool(ring=ring, buffer_size=SIZE, count=4)
        )
        taken += [await pool.acquire() for _ in range(4)]
    for number, view in enumerate(taken):
        view[:] = bytes([65 + number]) * SIZE
    return taken


def some_parts(choice: random.Random, taken: list[memoryview]) -> list[Any]:
    """What a user may pass as one send."""
    parts: list[Any] = []
    for _ in range(choice.randint(1, 9)):
        number = choice.randrange(len(taken))
        kind = choice.choice(["neighbours", "slices", "bytes", "empty", "bytearray", "view"])
        if kind == "neighbours":
            parts += taken[number : number + choice.randint(1, 4)]
        elif kind == "slices":
            middle = choice.randint(1, SIZE - 1)
            parts += [taken[number][:middle], taken[number][middle:]]
        elif kind == "bytes":
            parts.append(choice.randbytes(choice.choice([1, 700, 30_000])))
        elif kind == "bytearray":
            parts.append(bytearray(choice.randbytes(500)))
        elif kind == "view":
            parts.append(memoryview(choice.randbytes(2000))[500:1500])
        else:
            parts.append(choice.choice([b"", bytearray(), taken[number][:0]]))
    return parts


@pytest.mark.anyio
@pytest.mark.parametrize("zero_copy", POLICIES)
async def test_neighbours_of_a_pool_and_what_follows_them(driver: Any, zero_copy: Any) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver, zero_copy=zero_copy) as ring:
            async with AsyncExitStack() as stack:
                taken = await buffers(stack, ring)
                expected = b"".join(bytes(view) for view in taken[:3]) + b"d" * SIZE
                async with zc_anyio.send_group() as group:
                    await group.send(client, taken[:3])
                    await group.send(client, b"d" * SIZE)
                taken.clear()
            if driver == "io_uring" and zero_copy == "always":
                assert ring.statistics().registered
        assert receive_exactly(peer, len(expected)) == expected


@pytest.mark.anyio
@pytest.mark.parametrize("zero_copy", POLICIES)
@pytest.mark.parametrize("seed", range(3))
async def test_any_mixture_arrives_whole_and_in_order_at_a_slow_reader(
    driver: Any, zero_copy: Any, seed: int
) -> None:
    choice = random.Random(seed)
    expected = bytearray()
    with tcp_pair(send_buffer=SMALL_BUFFER, receive_buffer=SMALL_BUFFER) as (client, peer):
        with Reader(peer, chunk=10_000) as reader:
            async with zc_anyio.open_ring(driver=driver, zero_copy=zero_copy) as ring:
                async with AsyncExitStack() as stack:
                    taken = await buffers(stack, ring)
                    async with zc_anyio.send_group() as group:
                        for _ in range(60):
                            parts = some_parts(choice, taken)
                            expected += b"".join(parts)
                            if choice.random() < 0.2:
                                await group.send(client, parts[0])
                                parts = parts[1:]
                            await group.send(client, parts)
                    taken.clear()
                    parts.clear()
                assert ring.statistics().bytes_sent == len(expected)
            client.shutdown(socket.SHUT_WR)
            assert await reader.all() == expected


@pytest.mark.anyio
@pytest.mark.parametrize("zero_copy", POLICIES)
async def test_a_datagram_has_all_of_its_parts(driver: Any, zero_copy: Any) -> None:
    choice = random.Random(5)
    with (
        socket.socket(type=socket.SOCK_DGRAM) as receiver,
        socket.socket(type=socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(20)
        sender.connect(receiver.getsockname())
        sender.setblocking(False)
        async with zc_anyio.open_ring(driver=driver, zero_copy=zero_copy) as ring:
            for _ in range(20):
                async with AsyncExitStack() as stack:
                    # What was sent goes back to its pool when the group is left.
                    taken = await buffers(stack, ring)
                    parts = some_parts(choice, taken)
                    while sum(map(len, parts)) > 60_000:
                        parts.pop()
                    expected = b"".join(parts)
                    async with zc_anyio.send_group() as group:
                        await group.send(sender, parts)
                    assert receiver.recv(1 << 16) == expected
                    taken.clear()
                    parts.clear()


MESSAGE = 1000


def message(number: int) -> bytes:
    return b"%08d" % number + b"m" * (MESSAGE - 8)


@pytest.mark.anyio
@pytest.mark.parametrize("read", [0, 16_384, 65_536, 81_920])
async def test_what_a_cancelled_group_has_begun_is_whole_or_the_stream_is_broken(
    driver: Any, read: int
) -> None:
    """The kernel takes pieces of 16 KiB here, so a stalled peer stops it within a message."""
    client, peer = socket.socketpair()
    with client, peer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_448)
        client.setblocking(False)
        peer.settimeout(20)
        async with zc_anyio.open_ring(driver=driver):
            with anyio.CancelScope() as scope:
                async with zc_anyio.send_group() as group:
                    for number in range(150):
                        await group.send(client, message(number))
                    await anyio.sleep(0.01)
                    if read:
                        await anyio.to_thread.run_sync(receive_exactly, peer, read)
                    await anyio.sleep(0.01)
                    scope.cancel()
            # That a stream is broken is raised by the send, or when the group is left.
            whole = True
            async with zc_anyio.send_group(on_error="collect") as group:
                try:
                    await group.send(client, b"NEXT")
                except anyio.BrokenResourceError:
                    whole = False
            whole = whole and not group.failures
        if not whole:
            return
        client.shutdown(socket.SHUT_WR)
        rest = bytearray()
        while chunk := peer.recv(1 << 16):
            rest += chunk
        assert rest.endswith(b"NEXT")
        assert (read + len(rest) - 4) % MESSAGE == 0
