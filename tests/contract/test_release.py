"""Left means released: once a group is left, its buffers are the program's own again."""

from __future__ import annotations

import gc
import hashlib
import os
import socket
import weakref
from contextlib import ExitStack
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.support.netns import Rig
from tests.support.peers import (
    ChildReader,
    Reader,
    tcp_pair,
    wrap,
)
from tests.support.waiting import until, until_held

SIZE = 64 << 10


@pytest.mark.anyio
@pytest.mark.timeout(120)
async def test_buffers_overwritten_after_100_groups_to_a_slow_reader(driver: Any) -> None:
    sent = hashlib.sha256()
    buffers = [bytearray(SIZE) for _ in range(64)]
    with tcp_pair(receive_buffer=128 << 10) as (client, peer):
        with ChildReader(peer, chunk=32 << 10) as reader:
            stream = await wrap(client)
            async with stream, zc_anyio.open_ring(driver=driver):
                for number in range(100):
                    for index, buffer in enumerate(buffers):
                        buffer[:] = bytes([number, index, number ^ index, 1]) * (SIZE // 4)
                        sent.update(buffer)
                    async with zc_anyio.send_group() as group:
                        for buffer in buffers:
                            await group.send(stream, buffer)
                    for buffer in buffers:
                        buffer[:] = bytes(SIZE)
            assert await reader.result() == (100 * 64 * SIZE, sent.hexdigest())


async def overwritten(
    rig: Rig, driver: Any, *, wait: bool
) -> tuple[bytes, bytes, zc_anyio.RingStatistics]:
    """Send over a slow link, wait for the release or not, and overwrite."""
    buffers = [bytearray(os.urandom(SIZE)) for _ in range(24)]
    expected = b"".join(buffers)
    with rig.connection() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver, zero_copy="always", threshold=0) as ring:
            async with zc_anyio.send_group() as group:
                for buffer in buffers:
                    await group.send(client, buffer)
                generation = group.flush()
                if wait:
                    await generation.wait_released()
                for buffer in buffers:
                    buffer[:] = bytes(SIZE)
        client.shutdown(socket.SHUT_WR)
        return await reader.all(), expected, ring.statistics()


@pytest.mark.anyio
async def test_overwriting_without_waiting_corrupts(namespaces: Rig, holding_driver: Any) -> None:
    received, expected, _ = await overwritten(namespaces, holding_driver, wait=False)
    assert len(received) == len(expected)
    assert received != expected
    # The tail was zeroed long before it left: the link needs a tenth of a second for it.
    assert received.endswith(bytes(SIZE))


@pytest.mark.anyio
async def test_overwriting_after_waiting_does_not(namespaces: Rig, driver: Any) -> None:
    received, expected, _ = await overwritten(namespaces, driver, wait=True)
    assert received == expected


@pytest.mark.anyio
@pytest.mark.parametrize("leave", ["end", "exception"])
async def test_overwriting_after_leaving_does_not_corrupt(
    namespaces: Rig, driver: Any, leave: str
) -> None:
    expected = b""
    with namespaces.connection() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver, zero_copy="always", threshold=0):
            for _ in range(3):
                buffers = [bytearray(os.urandom(SIZE)) for _ in range(8)]
                expected += b"".join(buffers)
                try:
                    async with zc_anyio.send_group() as group:
                        for buffer in buffers:
                            await group.send(client, buffer)
                        if leave == "exception":
                            raise LookupError("of the body")
                except LookupError:
                    assert leave == "exception"
                for buffer in buffers:
                    buffer[:] = bytes(SIZE)
                    buffer.append(0)
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == expected


@pytest.mark.anyio
async def test_what_a_device_drops_unread_is_counted_as_zero_copied(
    namespaces: Rig, holding_driver: Any
) -> None:
    # A receiver on the same machine makes the kernel copy on arrival, and it reports that; the sink
    # frees the pages untouched.
    with namespaces.to_sink() as sink:
        async with zc_anyio.open_ring(driver=holding_driver) as ring:
            for _ in range(10):
                async with zc_anyio.send_group() as group:
                    for _ in range(5):  # few, for net.core.optmem_max bounds MSG_ZEROCOPY
                        await group.send(sink, bytearray(32 << 10))
            assert ring.statistics().zero_copied == 50
            assert ring.statistics().copied == 0


@pytest.mark.anyio
async def test_the_same_counted_as_copied_when_zero_copy_is_never(
    namespaces: Rig, driver: Any
) -> None:
    with namespaces.to_sink() as sink:
        async with zc_anyio.open_ring(driver=driver, zero_copy="never") as ring:
            async with zc_anyio.send_group() as group:
                await group.send(sink, bytearray(32 << 10))
            async with zc_anyio.send_group(zero_copy="auto") as group:
                await group.send(sink, bytearray(100))
            assert (ring.statistics().zero_copied, ring.statistics().copied) == (0, 2)


@pytest.mark.anyio
async def test_buffers_are_locked_until_released(holding_driver: Any) -> None:
    data = bytearray(1 << 20)
    with tcp_pair(stalled=True) as (client, peer):
        async with zc_anyio.open_ring(driver=holding_driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, data)
                generation = group.flush()
                await until_held(ring, 1)
                with pytest.raises(BufferError):
                    data.append(1)
                with Reader(peer):
                    await generation.wait_released()
                    data.append(1)
                    client.shutdown(socket.SHUT_WR)


@pytest.mark.anyio
async def test_leaving_waits_while_the_peer_reads_nothing(holding_driver: Any) -> None:
    data = bytearray(1 << 20)
    left = False

    async def leave() -> None:
        nonlocal left
        async with zc_anyio.send_group() as group:
            await group.send(client, data)
        left = True
        data.append(1)

    with tcp_pair(stalled=True) as (client, peer):
        async with (
            zc_anyio.open_ring(driver=holding_driver) as ring,
            anyio.create_task_group() as tg,
        ):
            tg.start_soon(leave)
            await until_held(ring, 1)
            await anyio.sleep(0.1)
            assert not left
            with Reader(peer) as reader:
                await until(lambda: left)
                client.shutdown(socket.SHUT_WR)
                assert await reader.all() == bytes(1 << 20)


@pytest.mark.anyio
async def test_an_exception_of_the_body_comes_out_as_it_was(driver: Any) -> None:
    error = LookupError("of the body")
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        # The group opens the ring: neither may wrap the exception into a group.
        with pytest.raises(LookupError) as caught:
            async with zc_anyio.send_group() as group:
                for _ in range(10):
                    await group.send(client, bytearray(b"x" * SIZE))
                raise error
        assert caught.value is error
        with pytest.raises(LookupError) as caught:
            async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
                await group.send(client, bytearray(b"x" * SIZE))
                raise error
        assert caught.value is error
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == b"x" * SIZE * 11


@pytest.mark.anyio
async def test_an_exception_group_of_the_body_comes_out_as_it_was(driver: Any) -> None:
    error = ExceptionGroup("of the body", [ValueError(), KeyError()])
    with pytest.raises(ExceptionGroup) as caught:
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group():
            raise error
    assert caught.value is error


@pytest.mark.anyio
async def test_many_groups_at_once_on_one_ring(driver: Any) -> None:
    async def one(client: socket.socket, fill: int) -> None:
        for _ in range(10):
            buffers = [bytearray([fill]) * SIZE for _ in range(8)]
            async with zc_anyio.send_group() as group:
                for buffer in buffers:
                    await group.send(client, buffer)
            for buffer in buffers:
                buffer[:] = b"!" * SIZE
        client.shutdown(socket.SHUT_WR)

    with ExitStack() as stack:
        pairs = [stack.enter_context(tcp_pair(receive_buffer=32 << 10)) for _ in range(12)]
        readers = [stack.enter_context(Reader(peer)) for _, peer in pairs]
        async with zc_anyio.open_ring(driver=driver), anyio.create_task_group() as tg:
            for fill, (client, _) in enumerate(pairs):
                tg.start_soon(one, client, fill)
        for fill, reader in enumerate(readers):
            assert await reader.all() == bytes([fill]) * SIZE * 80


@pytest.mark.anyio
async def test_a_group_that_was_left_is_freed_without_the_garbage_collector(driver: Any) -> None:
    with tcp_pair() as (client, _peer):
        stream = await wrap(client)
        async with stream, zc_anyio.open_ring(driver=driver):
            gc.disable()
            try:
                async with zc_anyio.send_group() as group:
                    await group.send(stream, b"content" * 10000)
                    await group.send(stream, b"more")
                left = weakref.ref(group)
                del group
                assert left() is None
            finally:
                gc.enable()
