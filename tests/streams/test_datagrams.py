"""UDP sockets of this library's own."""

from __future__ import annotations

import socket
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.abc import SocketAttribute

import zc_anyio
from tests.streams.pairs import outcome, settle
from tests.support.waiting import until_idle


@pytest.mark.anyio
@pytest.mark.parametrize("zero_copy", ["auto", "always", "never"])
async def test_sizes_and_buffers(driver: Any, zero_copy: Any) -> None:
    async with zc_anyio.open_ring(driver=driver, zero_copy=zero_copy) as ring:
        async with await zc_anyio.create_udp_socket(local_host="127.0.0.1") as server:
            port = server.extra(SocketAttribute.local_port)
            async with await zc_anyio.create_connected_udp_socket("127.0.0.1", port) as client:
                for size in (0, 1, 1000, 20_000, 60_000):
                    for data in (bytes([1]) * size, bytearray([2]) * size):
                        await client.send(data)
                        received, address = await server.receive()
                        assert received == data
                        await server.send((bytes(data), address))
                        assert await client.receive() == data
                await client.send(b"once")
                async for received, _ in server:
                    assert received == b"once"
                    break
        await until_idle(ring)
        assert ring.statistics().failed == 0


@pytest.mark.anyio
async def test_ipv6(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver):
        async with (
            await zc_anyio.create_udp_socket(local_host="::1") as one,
            await zc_anyio.create_udp_socket(local_host="::1") as other,
        ):
            await one.sendto(b"hello", *other.extra(SocketAttribute.local_address))
            data, address = await other.receive()
            assert data == b"hello"
            assert address == one.extra(SocketAttribute.local_address)
            await one.send((b"scope", ("::1%lo", address[1])))
            assert (await one.receive())[0] == b"scope"


@pytest.mark.anyio
async def test_errors_break_nothing(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver):
        with socket.socket(type=socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            host, port = peer.getsockname()
            async with await zc_anyio.create_connected_udp_socket(host, port) as client:
                with pytest.raises(anyio.BrokenResourceError) as too_large:
                    await client.send(bytes(70_000))
                assert isinstance(too_large.value.__cause__, OSError)
                await client.send(b"fits")
                assert peer.recv(10) == b"fits"
                peer.close()
                await client.send(b"refused")
                with pytest.raises(anyio.BrokenResourceError) as refused:
                    await client.receive()
                assert isinstance(refused.value.__cause__, ConnectionRefusedError)
        async with await zc_anyio.create_udp_socket(local_host="127.0.0.1") as server:
            await server.sendto(b"x", "localhost", server.extra(SocketAttribute.local_port))
            assert (await server.receive())[0] == b"x"
            with pytest.raises(OSError, match="known"):
                await server.sendto(b"x", "no.such.host.invalid", 9)
            with pytest.raises(TypeError):
                await server.sendto("text", "127.0.0.1", 9)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_closing_and_two_tasks(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver):
        server = await zc_anyio.create_udp_socket(local_host="127.0.0.1")
        woken = []

        async def block() -> None:
            woken.append(await outcome(server.receive))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(block)
            await settle()
            assert await outcome(server.receive) is anyio.BusyResourceError
            await server.aclose()
            await server.aclose()
        assert woken == [anyio.ClosedResourceError]
        assert await outcome(server.receive) is anyio.ClosedResourceError
        assert await outcome(server.sendto, b"x", "127.0.0.1", 9) is anyio.ClosedResourceError


@pytest.mark.anyio
async def test_a_group_sends_on_them(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver):
        async with await zc_anyio.create_udp_socket(local_host="127.0.0.1") as server:
            address = server.extra(SocketAttribute.local_address)
            async with await zc_anyio.create_connected_udp_socket(*address) as client:
                async with zc_anyio.send_group() as group:
                    await group.send(client, bytearray(b"from a group"))
                    assert (await server.receive())[0] == b"from a group"
