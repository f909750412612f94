"""A descriptor number that was closed and given to another connection gets none of the bytes."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack, suppress
from typing import Literal

import anyio
import pytest

import zc_anyio
from tests.support.peers import (
    Reader,
    parked_pair,
    receive_to_end,
    tcp_pair,
    wrap,
)
from tests.support.waiting import LIMIT, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

SIZE = 1 << 20


def reuse(number: int, other: socket.socket) -> socket.socket:
    """Move a connection to a descriptor number that was closed."""
    with pytest.raises(OSError):
        os.fstat(number)
    moved = socket.socket(fileno=os.dup2(other.fileno(), number, inheritable=False))
    other.close()
    moved.setblocking(False)
    return moved


@pytest.mark.parametrize("when", ["queued", "parked", "held"])
async def test_bytes_stay_with_their_connection(
    driver: str, when: Literal["queued", "parked", "held"]
) -> None:
    parts = [bytes([number]) * SIZE for number in range(3)]
    make = tcp_pair(stalled=True) if when == "held" else parked_pair()
    with make as (client, peer), tcp_pair() as (spare, other_peer):
        number = client.fileno()
        async with zc_anyio.open_ring(driver=driver, zero_copy="always", threshold=0) as ring:
            async with zc_anyio.send_group(release_timeout=LIMIT) as group:
                for part in parts:
                    group.send_nowait(client, part)
                if when == "parked":
                    group.flush()
                    await until(lambda: ring.statistics().submits > 0)
                elif when == "held" and driver != "copy":
                    await until(lambda: ring.statistics().held > 0)
                client.close()
                with reuse(number, spare) as other, Reader(peer) as reader:
                    with pytest.raises(anyio.ClosedResourceError):
                        await group.send(client, b"to the old one")
                    await group.send(other, b"to the new one")
                    with anyio.fail_after(LIMIT):
                        await group.flush().wait_released()
                    # All of it arrives, and then the end.
                    assert await reader.all() == b"".join(parts)
                    await group.send(other, b", and more")
                    await group.flush().wait_released()
                    other.shutdown(socket.SHUT_WR)
                    assert receive_to_end(other_peer) == b"to the new one, and more"


@pytest.mark.parametrize("number_of_groups", [1, 2])
async def test_the_new_connection_may_be_sent_to_at_once(
    driver: str, number_of_groups: int
) -> None:
    # The event loop has no turn between the sends, so both wait in their queues.
    with parked_pair() as (client, peer), tcp_pair() as (spare, other_peer):
        number = client.fileno()
        async with zc_anyio.open_ring(driver=driver):
            async with (
                zc_anyio.send_group(release_timeout=LIMIT) as first,
                zc_anyio.send_group(release_timeout=LIMIT) as second,
            ):
                group = (first, second)[number_of_groups - 1]
                first.send_nowait(client, b"old" * SIZE)
                first.send_nowait(client, b"small")
                client.close()
                with reuse(number, spare) as other:
                    group.send_nowait(other, b"new" * SIZE)
                    group.send_nowait(other, b"tiny")
                    with Reader(peer) as reader, Reader(other_peer) as other_reader:
                        await group.flush().wait_released()
                        await first.flush().wait_released()
                        other.shutdown(socket.SHUT_WR)
                        assert await other_reader.all() == b"new" * SIZE + b"tiny"
                        assert await reader.all() == b"old" * SIZE + b"small"


@pytest.mark.parametrize("after", ["cancelled", "timed-out"])
@pytest.mark.parametrize("state", ["parked", "held"])
async def test_a_reset_affects_only_the_old_connection(
    holding_driver: str, state: str, after: str
) -> None:
    pair = tcp_pair(stalled=True) if state == "held" else parked_pair()
    data = bytearray(b"o" * SIZE)
    with pair as (client, peer), tcp_pair() as (spare, other_peer), ExitStack() as stack:
        number = client.fileno()
        async with zc_anyio.open_ring(
            driver=holding_driver, zero_copy="always", threshold=0
        ) as ring:
            with anyio.CancelScope() as scope:
                async with zc_anyio.send_group(
                    on_error="collect", release_timeout=0.05 if after == "timed-out" else None
                ) as group:
                    await group.send(client, data)
                    group.flush()
                    await until(lambda: ring.statistics().submits > 0)
                    client.close()
                    other = stack.enter_context(reuse(number, spare))
                    if after == "cancelled":
                        scope.cancel()
            data.append(1)
            assert ring.statistics().held == 0
            with Reader(other_peer) as reader:
                async with zc_anyio.send_group(release_timeout=LIMIT) as group:
                    await group.send(other, b"n" * SIZE)
                other.shutdown(socket.SHUT_WR)
                assert await reader.all() == b"n" * SIZE
        # Less than all of it arrived, and then a reset, or the end.
        received = b""
        with suppress(ConnectionResetError):
            while chunk := peer.recv(SIZE):
                received += chunk
        assert len(received) < SIZE
        assert received == b"o" * len(received)


async def test_a_closed_stream_of_anyio(driver: str) -> None:
    # asyncio shuts a connection down before closing it, so what is queued may fail.
    with parked_pair() as (client, peer), tcp_pair() as (spare, other_peer):
        stream = await wrap(client)
        number = client.fileno()
        async with zc_anyio.open_ring(driver=driver):
            async with zc_anyio.send_group(on_error="collect", release_timeout=LIMIT) as group:
                await group.send(stream, b"o" * SIZE)
                group.flush()
                await stream.aclose()
                with pytest.raises(anyio.ClosedResourceError):
                    await group.send(stream, b"late")
                await until(lambda: not is_open(number))
                with reuse(number, spare) as other, Reader(peer) as reader:
                    await group.send(other, b"n" * SIZE)
                    with Reader(other_peer) as other_reader:
                        await group.flush().wait_released()
                        other.shutdown(socket.SHUT_WR)
                        assert await other_reader.all() == b"n" * SIZE
                    received = await reader.all()
        assert (len(received) == SIZE) == (not group.failures)
        assert received == b"o" * len(received)


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


async def test_two_objects_of_one_socket_share_one_queue(driver: str) -> None:
    with parked_pair() as (client, peer), client.dup() as twin:
        twin.setblocking(False)
        expected = b""
        async with zc_anyio.open_ring(driver=driver):
            async with zc_anyio.send_group(release_timeout=LIMIT) as group:
                for number in range(200):
                    data = b"%d," % number * (3000 if number % 3 else 1)
                    expected += data
                    await group.send((client, twin)[number > 100 or number % 2], data)
                    if number == 100:
                        client.close()
                with Reader(peer) as reader:
                    await group.flush().wait_released()
                    await group.send(twin, b"not the end")
                    await group.flush().wait_released()
                    twin.shutdown(socket.SHUT_WR)
                    assert await reader.all() == expected + b"not the end"


async def test_an_idle_ring_keeps_no_connection_open(driver: str) -> None:
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver, zero_copy="always", threshold=0):
            async with zc_anyio.send_group(release_timeout=LIMIT) as group:
                await group.send(client, b"d" * SIZE)
                await group.flush().wait_released()
                client.close()
                # The group, and the ring, are still there.
                assert await reader.all() == b"d" * SIZE
