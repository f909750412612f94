"""One buffer to many peers."""

from __future__ import annotations

import errno
import os
import socket
import sys
from contextlib import ExitStack, suppress
from typing import Any

import anyio
import pytest

import zc_anyio
from tests.support.peers import Reader, at_end, parked_pair, tcp_pair, wrap
from tests.support.waiting import LIMIT, until, until_parked
from zc_anyio.testing import reset

MIB = 1 << 20


@pytest.mark.anyio
@pytest.mark.parametrize("on_error", ["raise", "collect"])
async def test_dead_peers_do_not_end_a_broadcast_for_the_others(driver: Any, on_error: Any) -> None:
    data = bytearray(os.urandom(MIB))
    expected = bytes(data)
    with ExitStack() as stack:
        good = [stack.enter_context(tcp_pair()) for _ in range(20)]
        readers = [stack.enter_context(Reader(peer)) for _, peer in good]
        closed, _ = stack.enter_context(tcp_pair())
        aclosed, _ = stack.enter_context(tcp_pair())
        gone, gone_peer = stack.enter_context(tcp_pair())
        dying, dying_peer = stack.enter_context(parked_pair())
        aclosed_stream = await wrap(aclosed)
        streams: list[Any] = [client for client, _ in good]
        streams[5:5] = [closed, gone, aclosed_stream, dying]
        async with zc_anyio.open_ring(driver=driver) as ring:
            # Known as broken before the broadcast.
            async with zc_anyio.send_group(on_error="collect") as group:
                await group.send(dying, bytes(4 * MIB))
                await until_parked(ring)
                reset(dying_peer)
            closed.close()
            await aclosed_stream.aclose()
            reset(gone_peer)
            raised: BaseException | None = None
            group = zc_anyio.send_group(on_error=on_error)
            try:
                async with group:
                    await group.broadcast(streams, data)
                    await group.broadcast(streams, b"and once more")
            except ExceptionGroup as exc:
                raised = exc
            data[:] = bytes(MIB)
            data.append(1)
            assert [failure.stream for failure in group.failures].count(gone) == 1
            assert {id(failure.stream) for failure in group.failures} == {
                id(stream) for stream in (closed, gone, aclosed_stream, dying)
            }
            numbers = {id(f.stream): f.error.errno for f in group.failures}
            assert numbers[id(closed)] == numbers[id(aclosed_stream)] == errno.EBADF
            if on_error == "raise":
                assert isinstance(raised, ExceptionGroup)
                assert len(raised.exceptions) == 4
                assert all(isinstance(e, anyio.BrokenResourceError) for e in raised.exceptions)
            else:
                assert raised is None
        for (client, _), reader in zip(good, readers, strict=True):
            client.shutdown(socket.SHUT_WR)
            assert await reader.all() == expected + b"and once more"


@pytest.mark.anyio
async def test_the_buffer_is_held_once_and_until_the_last_peer_has_it(
    holding_driver: Any,
) -> None:
    data = os.urandom(MIB)
    with ExitStack() as stack:
        pairs = [stack.enter_context(tcp_pair(stalled=True)) for _ in range(5)]
        async with zc_anyio.open_ring(driver=holding_driver) as ring:
            async with zc_anyio.send_group() as group:
                before = sys.getrefcount(data)
                await group.broadcast([client for client, _ in pairs], data)
                assert sys.getrefcount(data) == before + 1
                generation = group.flush()
                for number, (_, peer) in enumerate(pairs):
                    await until(lambda: ring.statistics().held == 5 - number)  # noqa: B023
                    assert not generation.is_released
                    assert sys.getrefcount(data) == before + 1
                    stack.enter_context(Reader(peer))
                await generation.wait_released()
                assert sys.getrefcount(data) == before
        for client, _ in pairs:
            client.shutdown(socket.SHUT_WR)


@pytest.mark.anyio
async def test_a_broadcast_to_no_stream(driver: Any) -> None:
    data = bytearray(1000)
    async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
        await group.broadcast([], data)
        await group.broadcast(iter(()), b"")
        assert ring.statistics().sends == 0
        data.append(1)


@pytest.mark.anyio
async def test_a_broadcast_to_closed_streams_only(driver: Any) -> None:
    data = bytearray(1000)
    with tcp_pair() as (client, _):
        client.close()
        async with zc_anyio.open_ring(driver=driver) as ring:
            with pytest.raises(ExceptionGroup):
                async with zc_anyio.send_group() as group:
                    await group.broadcast([client, client], data)
            assert len(group.failures) == 1
            assert ring.statistics().sends == 0
    data.append(1)


@pytest.mark.anyio
async def test_the_same_peer_twice_gets_it_twice(driver: Any) -> None:
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver):
            async with zc_anyio.send_group() as group:
                await group.broadcast(iter([client, client]), b"twice")
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == b"twicetwice"


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", ["str", "stream"])
async def test_wrong_input_queues_nothing_anywhere(driver: Any, wrong: str) -> None:
    with tcp_pair() as (one, peer), tcp_pair() as (two, _):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                with pytest.raises(TypeError):
                    if wrong == "str":
                        await group.broadcast([one, two], "text")  # type: ignore[arg-type]
                    else:
                        await group.broadcast([one, object(), two], b"data")
                assert ring.statistics().sends == 0
            # The ring has not kept the sockets either: the peer sees the end.
            one.close()
            await until(lambda: at_end(peer))


@pytest.mark.anyio
async def test_broadcasts_that_only_yield_to_others_leave_together(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A broadcast that took long yields at its end; here each does, and no tick comes between.
    monkeypatch.setattr("zc_anyio._ring.ring.YIELD_SECONDS", 0)
    monkeypatch.setattr("zc_anyio._ring.reaper.TICK_SECONDS", 3600)
    with ExitStack() as stack:
        pairs = [stack.enter_context(tcp_pair()) for _ in range(5)]
        readers = [stack.enter_context(Reader(peer)) for _, peer in pairs]
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                clients = [client for client, _ in pairs]
                await group.broadcast(clients, b"one, ")
                await group.broadcast(clients, b"two")
            assert ring.statistics().requests == len(clients)
            assert ring.statistics().sends == 2 * len(clients)
        for client, reader in zip(clients, readers, strict=True):
            client.close()
            assert await reader.all() == b"one, two"


@pytest.mark.anyio
async def test_sends_of_a_sender_that_keeps_yielding_do_leave(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zc_anyio._ring.ring.YIELD_SECONDS", 0)
    with tcp_pair() as (client, peer):
        peer.settimeout(0)
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            received = 0
            with anyio.fail_after(LIMIT):
                while not received:
                    await group.send(client, b"x")
                    with suppress(BlockingIOError):
                        received = len(peer.recv(1))
