"""What the functions return is anyio's, by type, attributes and behaviour."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.abc import SocketAttribute
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.stapled import MultiListener

import zc_anyio


async def echo(stream: anyio.abc.ByteStream) -> None:
    async with stream:
        async for chunk in stream:
            await stream.send(chunk)
        await stream.send_eof()


@pytest.mark.anyio
async def test_tcp(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver):
        listener = await zc_anyio.create_tcp_listener(local_host="127.0.0.1")
        assert isinstance(listener, MultiListener)
        assert isinstance(listener.listeners[0], anyio.abc.SocketListener)
        port = listener.extra(SocketAttribute.local_port)
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, echo)
            async with await zc_anyio.connect_tcp("localhost", port) as stream:
                assert isinstance(stream, anyio.abc.SocketStream)
                assert stream.extra(SocketAttribute.family) == socket.AF_INET
                assert stream.extra(SocketAttribute.remote_port) == port
                assert stream.extra(SocketAttribute.remote_address) == ("127.0.0.1", port)
                raw = stream.extra(SocketAttribute.raw_socket)
                assert isinstance(raw, socket.socket)
                assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                await stream.send(b"hello")
                buffered = BufferedByteReceiveStream(stream)
                assert await buffered.receive_exactly(5) == b"hello"
                await stream.send(bytearray(b"line\n"))
                assert await buffered.receive_until(b"\n", 100) == b"line"
                await stream.send_eof()
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()
            tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_unix(driver: Any, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with zc_anyio.open_ring(driver=driver):
        listener = await zc_anyio.create_unix_listener(path, mode=0o600)
        assert isinstance(listener, anyio.abc.SocketListener)
        assert path.stat().st_mode & 0o777 == 0o600
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, echo)
            async with await zc_anyio.connect_unix(path) as stream:
                assert isinstance(stream, anyio.abc.UNIXSocketStream)
                assert stream.extra(SocketAttribute.remote_address) == str(path)
                await stream.send(b"hello")
                assert await stream.receive() == b"hello"
            tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_udp(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver) as ring:
        async with (
            await zc_anyio.create_udp_socket(local_host="127.0.0.1") as server,
            await zc_anyio.create_connected_udp_socket(
                "127.0.0.1", server.extra(SocketAttribute.local_port)
            ) as client,
        ):
            assert isinstance(server, anyio.abc.UDPSocket)
            assert isinstance(client, anyio.abc.ConnectedUDPSocket)
            for size in (5, 0, 50_000):
                await client.send(bytes(size))
                data, address = await server.receive()
                assert data == bytes(size)
                assert address == client.extra(SocketAttribute.local_address)
                await server.sendto(b"x" * size, *address)
                assert await client.receive() == b"x" * size
        assert ring.statistics().sends == 6
        assert ring.statistics().failed == 0


@pytest.mark.anyio
async def test_no_ring() -> None:
    with pytest.raises(RuntimeError, match="no ring is open: open one"):
        await zc_anyio.connect_tcp("127.0.0.1", 1)
    with pytest.raises(RuntimeError, match="no ring is open"):
        await zc_anyio.create_tcp_listener(local_host="127.0.0.1")
