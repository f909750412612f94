"""What each policy zero-copies, and which sockets cannot zero-copy."""

from __future__ import annotations

import socket
from typing import Any, Literal

import pytest

import zc_anyio
from tests.support.peers import (
    Reader,
    tcp_pair,
)
from tests.support.waiting import until_idle

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

THRESHOLD = 16 << 10


def zero_copied_requests(ring: zc_anyio.Ring) -> int:
    """Return how many requests were zero-copy ones: these have two completions."""
    counters = ring.statistics()
    return counters.completions - counters.requests


@pytest.mark.parametrize("by", ["ring", "group"])
@pytest.mark.parametrize("zero_copy", ["always", "never"])
async def test_always_and_never(
    driver: str, zero_copy: Literal["always", "never"], by: str
) -> None:
    ring_policy: Any = zero_copy if by == "ring" else "auto"
    group_policy: Any = None if by == "ring" else zero_copy
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver, zero_copy=ring_policy) as ring:
            for size in (1, 100, THRESHOLD, 100_000):
                async with zc_anyio.send_group(zero_copy=group_policy) as group:
                    await group.send(client, bytearray(size))
            await until_idle(ring)
            counters = ring.statistics()
            staged = 2 if zero_copy == "always" else 0
            assert (counters.sends, counters.staged) == (4, staged)
            assert counters.zero_copied + counters.copied == 4 - staged
            if zero_copy == "never" or driver == "copy":
                assert (zero_copied_requests(ring), counters.zero_copied) == (0, 0)
            else:
                # What was staged leaves zero-copy as well.
                assert zero_copied_requests(ring) == counters.requests
        client.shutdown(socket.SHUT_WR)
        assert len(await reader.all()) == 101 + THRESHOLD + 100_000


@pytest.mark.parametrize("zero_copy", ["auto", "always", "never"])
@pytest.mark.parametrize("idle_between", [False, True])
async def test_a_socket_that_copies_is_sent_to_by_copying_and_probed_again(
    holding_driver: str, zero_copy: Literal["auto", "always", "never"], idle_between: bool
) -> None:
    # Sends of a quarter of the window are not gathered; loopback copies every one.
    sends = 200
    data = bytes(1 << 20)
    probes: list[int] = []
    with tcp_pair() as (client, peer), Reader(peer, keep=False):
        async with zc_anyio.open_ring(
            driver=holding_driver, zero_copy=zero_copy, threshold=0
        ) as ring:
            async with zc_anyio.send_group(window=4 * len(data)) as group:
                for _ in range(sends):
                    await group.send(client, data)
                    generation = group.flush()
                    if idle_between:
                        await generation.wait_released()
                    probes.append(zero_copied_requests(ring))
            counters = ring.statistics()
            requests, zero_copied = counters.requests, zero_copied_requests(ring)
            assert counters.copied == sends
        client.shutdown(socket.SHUT_WR)
    if zero_copy == "auto":
        # Without a pause, requests leave before it is known that those before them were copied.
        assert zero_copied >= 2
        assert zero_copied <= requests / 8 if idle_between else zero_copied < requests
        # Not only at the beginning.
        assert probes[-1] > probes[sends // 8] or not idle_between
    else:
        # MSG_ZEROCOPY requests that found no room have one completion.
        assert (zero_copied >= sends) == (zero_copy == "always")
        assert zero_copied <= (requests if zero_copy == "always" else 0)


@pytest.mark.parametrize(
    ("zero_copy", "kind", "thresholds", "through_ring"),
    [
        ("auto", bytes, 12, False),
        ("auto", bytes, 16, True),
        ("auto", bytearray, 4, False),
        ("auto", bytearray, 16, True),
        ("always", bytes, 4, True),
        ("always", bytearray, 4, True),
    ],
)
async def test_what_a_stream_sends_alone_is_copied_below_16_thresholds(
    holding_driver: str,
    zero_copy: Literal["auto", "always"],
    kind: type[bytes | bytearray],
    thresholds: int,
    through_ring: bool,
) -> None:
    size = thresholds * THRESHOLD
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=holding_driver, zero_copy=zero_copy) as ring:
            async with await zc_anyio.ZeroCopySocketStream.from_socket(client.dup()) as stream:
                client.close()
                await stream.send(kind(size))
                assert (ring.statistics().requests > 0) == through_ring
                await stream.send_eof()
                assert len(await reader.all()) == size


@pytest.mark.parametrize("kind", ["unix", "mptcp"])
async def test_sockets_without_zero_copy_are_sent_to_by_copying(driver: str, kind: str) -> None:
    if kind == "unix":
        client, peer = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            try:
                client = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
            except OSError as exc:
                pytest.skip(f"no MPTCP here: {exc}")
            client.connect(server.getsockname())
            peer, _ = server.accept()
    with client, peer, Reader(peer) as reader:
        client.setblocking(False)
        async with zc_anyio.open_ring(driver=driver, zero_copy="always", threshold=0) as ring:
            async with zc_anyio.send_group() as group:
                for _ in range(20):
                    await group.send(client, b"d" * 100_000)
            counters = ring.statistics()
            assert (counters.sends, counters.copied, counters.failed) == (20, 20, 0)
            # Not even tried.
            assert counters.completions == counters.requests
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == b"d" * 2_000_000
