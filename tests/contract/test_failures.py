"""Peers that reset, close, or read nothing: the documented outcome, and nothing left."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.support.peers import (
    MORE_THAN_FITS,
    Reader,
    at_end,
    parked_pair,
    receive_exactly,
    tcp_pair,
    wrap,
)
from tests.support.waiting import until, until_held, until_idle, until_parked
from zc_anyio.testing import reset

MIB = 1 << 20
GONE = {errno.ECONNRESET, errno.EPIPE}


def only_cause(group: BaseException, entries: int = 1) -> set[int | None]:
    """Return the errnos of an exception group with one ``BrokenResourceError`` for each socket."""
    assert isinstance(group, ExceptionGroup)
    assert len(group.exceptions) == entries
    numbers = set()
    for exc in group.exceptions:
        assert isinstance(exc, anyio.BrokenResourceError)
        assert isinstance(exc.__cause__, OSError)
        numbers.add(exc.__cause__.errno)
    return numbers


@pytest.mark.anyio
@pytest.mark.parametrize("end", ["reset", "close"])
@pytest.mark.parametrize("submitted", [True, False])
async def test_the_peer_goes_while_sends_wait(driver: Any, end: str, submitted: bool) -> None:
    buffers = [bytearray(MIB) for _ in range(8)]
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            with pytest.raises(ExceptionGroup) as caught:
                async with zc_anyio.send_group() as group:
                    for buffer in buffers:
                        await group.send(client, buffer)
                    if submitted:
                        await until_parked(ring)
                    # Since it has not read everything, closing resets the connection.
                    reset(peer) if end == "reset" else peer.close()
            assert only_cause(caught.value) <= GONE
            for buffer in buffers:
                buffer.append(1)
            counters = ring.statistics()
            assert (counters.queued, counters.in_flight, counters.held) == (0, 0, 0)
            assert counters.failed > 0


@pytest.mark.anyio
async def test_a_reset_releases_held_sends(holding_driver: Any) -> None:
    data = bytearray(MIB)
    with tcp_pair(stalled=True) as (client, peer):
        async with zc_anyio.open_ring(driver=holding_driver) as ring:
            # The kernel has taken the whole send, so nobody learns that it was lost.
            async with zc_anyio.send_group() as group:
                await group.send(client, data)
                await until_held(ring, 1)
                reset(peer)
            data.append(1)
            async with zc_anyio.send_group(on_error="collect") as group:
                try:
                    await group.send(client, b"x")
                except anyio.BrokenResourceError:
                    return
            assert [failure.error.errno in GONE for failure in group.failures] == [True]


@pytest.mark.anyio
async def test_sends_after_a_failure_are_refused_and_not_reported_twice(driver: Any) -> None:
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, bytes(MIB))
                await until_parked(ring)
                reset(peer)
                await until(lambda: ring.statistics().failed)
                for _ in range(3):
                    with pytest.raises(anyio.BrokenResourceError) as caught:
                        await group.send(client, b"more")
                    assert isinstance(caught.value.__cause__, OSError)
                    assert caught.value.__cause__.errno in GONE
                with pytest.raises(anyio.BrokenResourceError):
                    group.send_nowait(client, b"more")
            # What a call has raised is not raised when the group is left.
            assert len(group.failures) == 1
            async with zc_anyio.send_group() as group:
                with pytest.raises(anyio.BrokenResourceError):
                    await group.send(client, b"in another group")


@pytest.mark.anyio
@pytest.mark.parametrize("on_error", ["raise", "collect"])
async def test_one_entry_for_each_socket(driver: Any, on_error: Any) -> None:
    with parked_pair() as (one, peer_one), parked_pair() as (two, peer_two), tcp_pair() as good:
        streams = [await wrap(one), await wrap(two)]
        async with zc_anyio.open_ring(driver=driver) as ring, streams[0], streams[1]:
            group = zc_anyio.send_group(on_error=on_error)
            raised: BaseException | None = None
            try:
                async with group:
                    for _ in range(5):
                        for stream in streams:
                            await group.send(stream, bytes(MIB))
                    await group.send(good[0], b"to a peer that is there")
                    await until_parked(ring, 2)
                    reset(peer_one)
                    reset(peer_two)
            except ExceptionGroup as exc:
                raised = exc
            assert {id(failure.stream) for failure in group.failures} == set(map(id, streams))
            assert {failure.error.errno for failure in group.failures} <= GONE
            if on_error == "collect":
                assert raised is None
            else:
                assert raised is not None
                assert only_cause(raised, 2) <= GONE
        assert receive_exactly(good[1], 23) == b"to a peer that is there"


@pytest.mark.anyio
async def test_an_exception_of_the_body_wins_over_failures(driver: Any) -> None:
    with parked_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            with pytest.raises(LookupError, match="of the body"):
                async with zc_anyio.send_group() as group:
                    await group.send(client, bytes(MIB))
                    await until_parked(ring)
                    reset(peer)
                    raise LookupError("of the body")
            assert len(group.failures) == 1


@pytest.mark.anyio
async def test_a_failure_breaks_only_its_own_socket(driver: Any) -> None:
    data = os.urandom(3 * MIB)
    with parked_pair() as (bad, bad_peer), parked_pair() as (good, good_peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group(on_error="collect") as group:
                await group.send(bad, data)
                await group.send(good, data)
                await until_parked(ring, 2)
                reset(bad_peer)
                assert await anyio.to_thread.run_sync(receive_exactly, good_peer, len(data)) == data
            assert [failure.stream for failure in group.failures] == [bad]


# --- release_timeout ---


@pytest.mark.anyio
@pytest.mark.parametrize("state", ["held", "parked"])
@pytest.mark.parametrize("on_error", ["raise", "collect"])
async def test_release_timeout(driver: Any, state: str, on_error: Any) -> None:
    if (driver, state) == ("copy", "held"):
        pytest.skip("the copy driver holds nothing")
    data = bytearray(MIB if state == "held" else MORE_THAN_FITS)
    with tcp_pair(stalled=True) if state == "held" else parked_pair() as (client, _peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            group = zc_anyio.send_group(
                release_timeout=0.1, on_error=on_error, window=MORE_THAN_FITS
            )
            raised: BaseException | None = None
            with anyio.fail_after(2):
                try:
                    async with group:
                        await group.send(client, data)
                except ExceptionGroup as exc:
                    raised = exc
            data.append(1)
            assert [failure.error.errno for failure in group.failures] == [errno.ETIMEDOUT]
            if on_error == "raise":
                assert raised is not None
                assert only_cause(raised) == {errno.ETIMEDOUT}
            else:
                assert raised is None
            async with zc_anyio.send_group() as group:
                with pytest.raises(anyio.BrokenResourceError):
                    await group.send(client, b"more")
            counters = ring.statistics()
            assert (counters.queued, counters.in_flight, counters.held) == (0, 0, 0)


@pytest.mark.anyio
async def test_release_timeout_that_is_not_reached(driver: Any) -> None:
    data = bytearray(b"x" * MIB)
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.send_group(release_timeout=60) as group:
            await group.send(client, data)
        data.append(1)
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == b"x" * MIB


@pytest.mark.anyio
async def test_release_timeout_of_zero_resets_at_once(holding_driver: Any) -> None:
    data = bytearray(MIB)
    with tcp_pair(stalled=True) as (client, _peer):
        async with zc_anyio.open_ring(driver=holding_driver):
            async with zc_anyio.send_group(release_timeout=0, on_error="collect") as group:
                await group.send(client, data)
                group.flush()
            data.append(1)
            assert len(group.failures) == 1


# --- closing the stream ---


@pytest.mark.anyio
@pytest.mark.parametrize("state", ["parked", "held"])
@pytest.mark.parametrize("kind", ["anyio", "socket"])
async def test_what_was_accepted_goes_out_after_closing(driver: Any, state: str, kind: str) -> None:
    data = [os.urandom(MIB // 4) for _ in range(4 if state == "held" else 40)]
    with tcp_pair(stalled=True) if state == "held" else parked_pair() as (client, peer):
        stream: Any = client if kind == "socket" else await wrap(client)
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                for part in data:
                    await group.send(stream, bytearray(part))
                await until(lambda: ring.statistics().requests)
                if kind == "socket":
                    stream.close()
                else:
                    await stream.aclose()
                with pytest.raises(anyio.ClosedResourceError):
                    await group.send(stream, b"after closing")
                with Reader(peer) as reader:
                    await group.flush().wait_released()
                    # The end of the stream follows the last send, while the ring is open.
                    assert await reader.all() == b"".join(data)
            assert group.failures == []


@pytest.mark.anyio
async def test_a_reused_descriptor_gets_no_bytes_of_the_old_connection(
    driver: Any,
) -> None:
    data = os.urandom(4 * MIB)
    with parked_pair() as (client, peer), tcp_pair() as (other, other_peer):
        number = client.fileno()
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                for start in range(0, len(data), MIB):
                    await group.send(client, data[start : start + MIB])
                await until_parked(ring)
                client.close()
                reused = other.dup()
                assert reused.fileno() == number
                with reused, Reader(peer) as reader:
                    await group.send(reused, b"to the new one")
                    await group.flush().wait_released()
                    assert await reader.all() == data
        other.close()
        assert receive_exactly(other_peer, 14) == b"to the new one"
        assert other_peer.recv(1) == b""


@pytest.mark.anyio
async def test_an_idle_ring_keeps_no_connection_open(driver: Any) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, b"the last")
            client.close()
            assert await anyio.to_thread.run_sync(receive_exactly, peer, 8) == b"the last"
            await until(lambda: at_end(peer))
            await until_idle(ring)


@pytest.mark.anyio
async def test_shutting_down_for_sending_while_sends_wait(driver: Any) -> None:
    with parked_pair() as (client, _peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            with pytest.raises(ExceptionGroup) as caught:
                async with zc_anyio.send_group() as group:
                    for _ in range(4):
                        await group.send(client, bytearray(MIB))
                    await until_parked(ring)
                    client.shutdown(socket.SHUT_WR)
                    with Reader(_peer):
                        await group.flush().wait_released()
            assert only_cause(caught.value) <= GONE


@pytest.mark.anyio
async def test_failures_that_were_taken_are_not_told_again(driver: Any) -> None:
    with tcp_pair() as (first, first_peer), tcp_pair() as (second, second_peer):
        async with zc_anyio.open_ring(driver=driver):
            with pytest.raises(ExceptionGroup) as caught:
                async with zc_anyio.send_group() as group:
                    reset(first_peer)
                    await group.broadcast([first], b"to nobody")
                    await until(lambda: group.failures)
                    assert [failure.stream for failure in group.take_failures()] == [first]
                    assert group.failures == group.take_failures() == []
                    reset(second_peer)
                    await group.broadcast([second], b"to nobody")
            assert only_cause(caught.value) <= GONE | {errno.ENOTCONN}
            assert [failure.stream for failure in group.failures] == [second]
