"""Taking over what anyio has made."""

from __future__ import annotations

import socket
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.abc import SocketAttribute
from anyio.streams.stapled import MultiListener

import zc_anyio
from tests.support.backends import only_asyncio
from tests.support.peers import listener, receive_exactly, receive_to_end, tcp_pair
from tests.support.waiting import LIMIT


@pytest.mark.anyio
async def test_a_connected_stream(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver):
        with listener() as server:
            made = await anyio.connect_tcp(*server.getsockname())
            peer, _ = server.accept()
            with peer:
                peer.settimeout(LIMIT)
                await made.send(b"before ")
                async with await zc_anyio.wrap_stream(made) as stream:
                    assert isinstance(stream, zc_anyio.ZeroCopySocketStream)
                    await stream.send(b"after")
                    assert receive_exactly(peer, 12) == b"before after"
                    peer.send(b"answer")
                    assert await stream.receive() == b"answer"
                    # Letting go of anyio's stream has not shut the connection down.
                    await stream.send(b"more")
                    assert receive_exactly(peer, 4) == b"more"
                    for call in (made.receive(), made.send(b"x")):
                        with pytest.raises((anyio.ClosedResourceError, anyio.EndOfStream)):
                            await call
                    with pytest.raises(anyio.ClosedResourceError):
                        await zc_anyio.wrap_stream(made)
                    with pytest.raises(TypeError):
                        await zc_anyio.wrap_stream(stream)
                assert await anyio.to_thread.run_sync(receive_to_end, peer) == b""


@pytest.mark.anyio
async def test_what_was_received_before_is_not_lost(driver: Any) -> None:
    """On asyncio an accepted stream receives ahead."""
    async with zc_anyio.open_ring(driver=driver):
        made = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = made.extra(SocketAttribute.local_port)
        first = made.listeners[0]
        assert isinstance(first, anyio.abc.SocketListener)
        async with made:
            with socket.create_connection(("127.0.0.1", port)) as peer:
                accepted = await first.accept()
                peer.sendall(b"a" * 100_000)
                assert await accepted.receive(10) == b"a" * 10
                await anyio.sleep(0.01)
                async with await zc_anyio.wrap_stream(accepted) as stream:
                    peer.sendall(b"b")
                    received = await stream.receive(10)
                    buffer = bytearray(20)
                    size = await stream.receive_into(buffer)
                    received += bytes(buffer[:size])
                    while len(received) < 99_991:
                        received += await stream.receive()
        assert received == b"a" * 99_990 + b"b"


@pytest.mark.anyio
@only_asyncio
async def test_bytes_that_were_not_sent_are_not_lost(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver):
        with tcp_pair(send_buffer=1 << 16, receive_buffer=1 << 16) as (client, peer):
            made = await anyio.abc.SocketStream.from_socket(client.dup())
            with anyio.move_on_after(0.05):
                await made.send(bytes(8 << 20))
            with pytest.raises(anyio.BusyResourceError):
                await zc_anyio.wrap_stream(made)
            peer.close()
            await anyio.aclose_forcefully(made)


@pytest.mark.anyio
async def test_listeners(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver):
        several = await zc_anyio.wrap_listener(
            await anyio.create_tcp_listener(local_host="127.0.0.1")
        )
        assert isinstance(several, MultiListener)
        first = several.listeners[0]
        assert isinstance(first, zc_anyio.ZeroCopySocketListener)
        one = await zc_anyio.wrap_listener(await anyio.create_unix_listener(b"\0zc_anyio wrapped"))
        assert isinstance(one, zc_anyio.ZeroCopySocketListener)
        async with several, one:
            port = several.extra(SocketAttribute.local_port)
            with socket.create_connection(("127.0.0.1", port)) as peer:
                async with await first.accept() as stream:
                    assert isinstance(stream, zc_anyio.ZeroCopySocketStream)
                    await stream.send(b"hello")
                    assert peer.recv(5) == b"hello"
            async with await zc_anyio.connect_unix(b"\0zc_anyio wrapped") as client:
                async with await one.accept() as stream:
                    assert isinstance(stream, zc_anyio.ZeroCopyUNIXSocketStream)
                    await client.send(b"hello")
                    assert await stream.receive() == b"hello"
        with pytest.raises(TypeError):
            await zc_anyio.wrap_listener(one)


@pytest.mark.anyio
async def test_from_socket(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver):
        client, peer = socket.socketpair()
        with peer:
            number = client.detach()
            async with await zc_anyio.ZeroCopyUNIXSocketStream.from_socket(number) as stream:
                await stream.send(b"hello")
                assert peer.recv(5) == b"hello"
        with listener() as server:
            async with await zc_anyio.ZeroCopySocketListener.from_socket(server.dup()) as made:
                with socket.create_connection(server.getsockname()):
                    async with await made.accept():
                        pass
        with socket.socket() as unconnected, pytest.raises(ValueError, match="connected"):
            await zc_anyio.ZeroCopySocketStream.from_socket(unconnected)


@pytest.mark.anyio
async def test_a_cancelled_connect_leaves_nothing_open(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver):
        with listener() as server:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await zc_anyio.connect_tcp(*server.getsockname())
            assert scope.cancelled_caught
        with pytest.raises(OSError, match="All connection attempts failed"):
            await zc_anyio.connect_tcp("127.0.0.1", 1)
