"""Bytes of one socket leave in the order of the calls."""

from __future__ import annotations

import os
import random
import socket
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.support.peers import Reader, parked_pair, tcp_pair, wrap
from tests.support.waiting import until_parked

MIB = 1 << 20


@pytest.mark.anyio
@pytest.mark.parametrize("zero_copy", ["auto", "always", "never"])
async def test_across_sizes_and_groups(driver: Any, zero_copy: Any) -> None:
    # Sizes on both sides of the threshold: neighbours leave by different operations.
    choice = random.Random(1)
    expected = bytearray()
    with parked_pair() as (client, peer), Reader(peer, chunk=50_000) as reader:
        peer.settimeout(None)
        async with zc_anyio.open_ring(driver=driver, zero_copy=zero_copy):
            for _ in range(12):
                async with zc_anyio.send_group(window=2 * MIB) as group:
                    for _ in range(40):
                        size = choice.choice([1, 10, 1000, 16 << 10, 70_000, 300_000])
                        data = choice.randbytes(size)
                        expected += data
                        await group.send(client, data if choice.random() < 0.5 else bytearray(data))
                        if choice.random() < 0.1:
                            group.flush()
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == expected


@pytest.mark.anyio
async def test_across_groups_that_are_open_together(driver: Any) -> None:
    expected = b""
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver):
            async with zc_anyio.send_group() as one, zc_anyio.send_group(zero_copy="never") as two:
                for number in range(60):
                    data = os.urandom(50_000)
                    expected += data
                    (one if number % 3 else two).send_nowait(client, data)
                with Reader(peer) as reader:
                    await one.flush().wait_released()
                    await two.flush().wait_released()
                    client.shutdown(socket.SHUT_WR)
                    assert await reader.all() == expected


@pytest.mark.anyio
async def test_through_all_names_of_a_socket(driver: Any) -> None:
    expected = b""
    with parked_pair() as (client, peer):
        alias = client.dup()
        stream = await wrap(client)
        other = alias.dup()
        async with zc_anyio.open_ring(driver=driver) as ring, stream:
            with alias, other:
                async with zc_anyio.send_group() as group:
                    for number in range(60):
                        data = os.urandom(50_000)
                        expected += data
                        group.send_nowait((stream, alias, other)[number % 3], data)
                    with Reader(peer) as reader:
                        await group.flush().wait_released()
                        alias.shutdown(socket.SHUT_WR)
                        assert await reader.all() == expected
            assert ring.statistics().failed == 0


@pytest.mark.anyio
async def test_a_closed_alias_does_not_close_the_others(driver: Any) -> None:
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver):
            async with zc_anyio.send_group() as group:
                with client.dup() as alias:
                    await group.send(alias, b"by the alias ")
                with pytest.raises(anyio.ClosedResourceError):
                    await group.send(alias, b"no")
                await group.send(client, b"by the first name")
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == b"by the alias by the first name"


@pytest.mark.anyio
async def test_sends_continue_after_the_kernel_took_a_part(driver: Any) -> None:
    # A parked send larger than the socket is taken in many parts; later sends wait.
    data = [os.urandom(size) for size in (5 * MIB, 10, 3 * MIB, 1, 100_000)]
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                for part in data:
                    await group.send(client, part)
                await until_parked(ring)
                with Reader(peer, chunk=30_000) as reader:
                    await group.flush().wait_released()
                    client.shutdown(socket.SHUT_WR)
                    assert await reader.all() == b"".join(data)


@pytest.mark.anyio
async def test_tasks_that_send_in_turn(driver: Any) -> None:
    expected = bytearray()

    async def send(name: int) -> None:
        for number in range(50):
            data = bytes([name, number]) * 5000
            expected.extend(data)
            group.send_nowait(client, data)
            await anyio.lowlevel.checkpoint()

    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver):
            async with zc_anyio.send_group() as group, anyio.create_task_group() as tg:
                for name in range(5):
                    tg.start_soon(send, name)
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == expected


@pytest.mark.anyio
async def test_anyio_may_send_between_groups(driver: Any) -> None:
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with await wrap(client) as stream, zc_anyio.open_ring(driver=driver):
            for _ in range(20):
                async with zc_anyio.send_group() as group:
                    await group.send(stream, b"by the group " * 10_000)
                await stream.send(b"by anyio")
        assert await reader.all() == (b"by the group " * 10_000 + b"by anyio") * 20
