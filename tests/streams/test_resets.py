"""A connection that is reset: what its stream's methods raise, and what had arrived before."""

from __future__ import annotations

import socket
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

import zc_anyio
from tests.streams.pairs import BLOCKED, clog, facing, settle
from tests.support.waiting import LIMIT, until
from zc_anyio.testing import reset


@pytest.mark.anyio
async def test_a_reset_breaks_it_with_the_cause(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver), facing() as (stream, peer):
        reset(peer)
        with pytest.raises(anyio.BrokenResourceError) as received:
            await stream.receive()
        assert isinstance(received.value.__cause__, ConnectionResetError)
        with pytest.raises(anyio.BrokenResourceError) as sent:
            for _ in range(3):
                await stream.send(b"x")
        assert isinstance(sent.value.__cause__, OSError)
        for _ in range(2):
            with pytest.raises(anyio.BrokenResourceError):
                await stream.send(b"x")
        with pytest.raises(anyio.BrokenResourceError):
            await stream.send(bytearray(1 << 20))
        with pytest.raises(anyio.BrokenResourceError):
            await stream.send_eof()


@pytest.mark.anyio
@pytest.mark.parametrize("rounds", [0, 3], ids=["at first", "later"])
async def test_a_reset_that_comes_with_data_is_told_after_the_data(
    driver: Any, rounds: int
) -> None:
    async with zc_anyio.open_ring(driver=driver), facing() as (stream, peer):
        received = bytearray()

        async def receive() -> None:
            with pytest.raises(anyio.BrokenResourceError):
                while True:
                    received.extend(await stream.receive())

        def has(size: int) -> bool:
            return len(received) == size

        with anyio.fail_after(LIMIT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive)
                for number in range(rounds):
                    await settle()
                    peer.send(b"data")
                    await until(partial(has, 4 * (number + 1)))
                await settle()
                # The event loop sees both at once.
                peer.send(b"last")
                reset(peer)
        assert received == b"data" * rounds + b"last"


@pytest.mark.anyio
async def test_a_connection_that_was_reset_before_it_was_accepted(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver):
        accepting = await zc_anyio.create_tcp_listener(local_host="127.0.0.1")
        async with accepting:
            port = accepting.extra(SocketAttribute.local_port)
            reset(socket.create_connection(("127.0.0.1", port)))
            with socket.create_connection(("127.0.0.1", port)) as peer:
                first = accepting.listeners[0]
                assert isinstance(first, zc_anyio.ZeroCopySocketListener)
                async with await first.accept() as stream:
                    with pytest.raises(anyio.BrokenResourceError):
                        await stream.receive()
                    with pytest.raises(anyio.BrokenResourceError):
                        await stream.send(b"x")
                    async with zc_anyio.send_group() as group:
                        with pytest.raises(anyio.BrokenResourceError):
                            await group.send(stream, b"x")
                async with await first.accept() as stream:
                    await stream.send(b"whole")
                    assert peer.recv(5) == b"whole"


@pytest.mark.anyio
@pytest.mark.parametrize("call", BLOCKED)
async def test_a_reset_fails_waiting_sends(driver: Any, call: str) -> None:
    async with zc_anyio.open_ring(driver=driver), facing(small=True) as (stream, peer):
        await clog(stream)
        woken: list[BaseException | None] = []

        async def block() -> None:
            try:
                await BLOCKED[call](stream)
            except anyio.BrokenResourceError as exc:
                woken.append(exc.__cause__)
            else:
                woken.append(None)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(block)
            await settle()
            assert not woken
            reset(peer)
        if call == "wait_send_might_not_block":
            assert woken == [None]  # it says that sending would not wait, not that it would succeed
        else:
            assert isinstance(woken[0], OSError)
