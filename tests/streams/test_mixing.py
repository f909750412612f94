"""Streams together with send groups, and under the streams that anyio builds on others."""

from __future__ import annotations

import os
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import trustme
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.stapled import MultiListener
from anyio.streams.tls import TLSListener, TLSStream

import zc_anyio
from tests.streams.pairs import connected, facing
from tests.support.peers import receive_to_end

MIB = 1 << 20


@pytest.mark.anyio
@pytest.mark.parametrize("zero_copy", ["auto", "always", "never"])
async def test_streams_and_groups_keep_the_order(driver: Any, zero_copy: Any) -> None:
    rng = random.Random(7)
    sent = bytearray()
    async with zc_anyio.open_ring(driver=driver, zero_copy=zero_copy) as ring:
        async with facing(small=True) as (stream, peer):
            async with anyio.create_task_group() as tasks:
                received: list[bytes] = []

                async def receive() -> None:
                    received.append(await anyio.to_thread.run_sync(receive_to_end, peer))

                tasks.start_soon(receive)
                async with zc_anyio.send_group() as one, zc_anyio.send_group() as other:
                    for number in range(400):
                        size = rng.choice((1, 100, 5000, 20_000, 70_000))
                        data = bytes([number % 256]) * size
                        sent += data
                        way = rng.randrange(5)
                        if way == 0:
                            await one.send(stream, data)
                        elif way == 1:
                            await other.send(stream, bytearray(data))
                        elif way == 2:
                            await stream.send(bytearray(data))
                        else:
                            await stream.send(data)
                await stream.send_eof()
            assert received == [bytes(sent)]
        assert ring.statistics().bytes_sent == len(sent)


@pytest.mark.anyio
async def test_a_broadcast_to_streams(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver):
        async with connected() as (one, at_one), connected("unix") as (other, at_other):
            async with zc_anyio.send_group() as group:
                await one.send(b"<")
                await other.send(b"<")
                await group.broadcast([one, other], bytearray(b"to all"))
                await one.send(b">")
                await other.send(b">")
            for receiver in (at_one, at_other):
                received = b""
                while len(received) < 8:
                    received += await receiver.receive()
                assert received == b"<to all>"


@pytest.mark.anyio
async def test_a_failure_of_a_group_names_the_stream(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver), facing() as (stream, peer):
        peer.close()
        group = zc_anyio.send_group(on_error="collect")
        with pytest.raises(anyio.BrokenResourceError):
            async with group:
                for _ in range(1000):
                    await group.send(stream, bytearray(100_000))
        assert all(failure.stream is stream for failure in group.failures)
        with pytest.raises(anyio.BrokenResourceError):
            await stream.send(b"x")


@pytest.mark.anyio
async def test_a_closed_stream_is_closed_for_groups(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver), facing() as (stream, _):
        async with zc_anyio.send_group() as group:
            await stream.aclose()
            with pytest.raises(anyio.ClosedResourceError):
                await group.send(stream, b"x")


@pytest.mark.anyio
async def test_a_pool_buffer_goes_back_by_itself(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver), connected() as (one, other):
        async with zc_anyio.open_buffer_pool(buffer_size=65536, count=1) as pool:
            for number in range(5):
                buffer = await pool.acquire()
                buffer[:] = bytes([number]) * 65536
                await one.send(buffer)
                received = 0
                while received < 65536:
                    chunk = await other.receive()
                    assert set(chunk) == {number}
                    received += len(chunk)


@pytest.mark.anyio
async def test_references_go_when_the_kernel_lets_go(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver, zero_copy="always") as ring:
        async with connected() as (one, other):
            await one.send(bytes(100_000))
            received = 0
            while received < 100_000:
                received += len(await other.receive(MIB))
            with anyio.fail_after(20):
                while one._output._context.references:
                    await anyio.sleep(0.001)
            assert ring.statistics().generations_open == 0


# --- TLS ---


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@asynccontextmanager
async def tls_pair(authority: trustme.CA) -> AsyncIterator[tuple[TLSStream, TLSStream]]:
    server_context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server_context)
    client_context = ssl.create_default_context()
    authority.configure_trust(client_context)
    listener = await zc_anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    accepted: list[TLSStream] = []
    async with listener:
        tls = TLSListener(listener.listeners[0], server_context)

        async def accept(stream: TLSStream) -> None:
            accepted.append(stream)
            serving.cancel_scope.cancel()

        async with anyio.create_task_group() as serving:
            serving.start_soon(tls.serve, accept)
            client = await zc_anyio.connect_tcp(
                "127.0.0.1", port, ssl_context=client_context, tls_hostname="localhost"
            )
    try:
        yield client, accepted[0]
    finally:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.aclose)
            tasks.start_soon(accepted[0].aclose)


@pytest.mark.anyio
async def test_tls_in_both_roles(driver: Any, authority: trustme.CA) -> None:
    data = os.urandom(3 * MIB)
    async with zc_anyio.open_ring(driver=driver) as ring:
        async with tls_pair(authority) as (client, server):
            assert isinstance(client.transport_stream, zc_anyio.ZeroCopySocketStream)
            assert isinstance(server.transport_stream, zc_anyio.ZeroCopySocketStream)

            async def receive(stream: TLSStream) -> None:
                received = bytearray()
                while len(received) < len(data):
                    received += await stream.receive()
                assert received == data

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.send, data)
                tasks.start_soon(server.send, data)
                tasks.start_soon(receive, client)
                tasks.start_soon(receive, server)
        # All of the ciphertext went through the ring.
        assert ring.statistics().bytes_sent > 2 * len(data)


@pytest.mark.anyio
async def test_a_failed_tls_handshake_leaves_nothing_open(driver: Any) -> None:
    async def refuse(stream: SocketStream) -> None:
        async with stream:
            await stream.send(b"this is no TLS")

    async with zc_anyio.open_ring(driver=driver):
        listener = await zc_anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(SocketAttribute.local_port)
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, refuse)
            with pytest.raises((ssl.SSLError, anyio.BrokenResourceError)):
                await zc_anyio.connect_tcp("127.0.0.1", port, tls=True)
            tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_listener_of_several(driver: Any) -> None:
    async def answer(stream: SocketStream) -> None:
        async with stream:
            await stream.send(b"hello")

    async with zc_anyio.open_ring(driver=driver):
        listener = MultiListener(
            [await zc_anyio.create_tcp_listener(local_host="127.0.0.1") for _ in range(2)]
        )
        ports = [one.extra(SocketAttribute.local_port) for one in listener.listeners]
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, answer)
            for port in ports:
                async with await zc_anyio.connect_tcp("127.0.0.1", port) as stream:
                    assert await stream.receive() == b"hello"
            tasks.cancel_scope.cancel()
