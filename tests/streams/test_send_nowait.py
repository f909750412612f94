"""``send_nowait`` of streams: several parts at once, in order with everything else."""

from __future__ import annotations

import os

import anyio
import pytest

import zc_anyio
from tests.streams.pairs import connected
from tests.support.waiting import until_idle

pytestmark = pytest.mark.anyio


async def receive_exactly(stream: anyio.abc.SocketStream, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        received += await stream.receive()
    return bytes(received)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_parts_leave_in_order_with_sends_and_groups(driver: str, kind: str) -> None:
    large = os.urandom(400_000)
    parts = [b"head", large, b"", b"tail"]
    async with zc_anyio.open_ring(driver=driver) as ring:
        async with connected(kind) as (one, other), anyio.create_task_group() as tasks:
            received: list[bytes] = []

            async def receive() -> None:
                received.append(await receive_exactly(other, 2 * (len(large) + 8) + 10))

            tasks.start_soon(receive)
            one.send_nowait(parts)
            await one.send(b"alone")
            async with zc_anyio.send_group() as group:
                await group.send(one, b"group")
            one.send_nowait([b"".join(parts)])
        assert received == [b"".join(parts) + b"alonegroup" + b"".join(parts)]
        await until_idle(ring)
        assert ring.statistics().bytes_sent == len(received[0])


async def test_a_full_window_refuses_and_takes_nothing(driver: str) -> None:
    async with zc_anyio.open_ring(driver=driver):
        async with connected(small=True) as (one, other):
            part = os.urandom(300_000)
            sent = 0
            with pytest.raises(anyio.WouldBlock):
                for _ in range(100):
                    one.send_nowait([b"head", part])
                    sent += 4 + len(part)
            with pytest.raises(anyio.WouldBlock):
                one.send_nowait([part])
            assert sent < 8 << 20
            received = await receive_exactly(other, sent)
            assert received == (b"head" + part) * (sent // (4 + len(part)))
            await one.send(b"end")
            assert await other.receive() == b"end"


async def test_what_it_refuses() -> None:
    async with zc_anyio.open_ring():
        async with connected() as (one, other):
            for wrong in ([bytearray(1)], [b"a", memoryview(b"b")], ["text"]):
                with pytest.raises(TypeError):
                    one.send_nowait(wrong)  # type: ignore[arg-type]
            await one.send_eof()
            with pytest.raises(anyio.ClosedResourceError):
                one.send_nowait([b"a"])
            await other.aclose()
            with pytest.raises(anyio.ClosedResourceError):
                other.send_nowait([b"a", b"b"])
            with pytest.raises(anyio.ClosedResourceError):
                other.send_nowait([b"a"])
