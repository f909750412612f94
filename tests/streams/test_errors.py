"""The ends and failures of a stream, and what tasks that wait in it get."""

from __future__ import annotations

import gc
import socket
import warnings
from typing import Any

import anyio
import anyio.abc
import pytest
from anyio.abc import SocketAttribute

import zc_anyio
from tests.streams.pairs import BLOCKED, clog, connected, facing, outcome, settle
from tests.support.backends import one_backend
from tests.support.peers import at_end, listener, receive_exactly, receive_to_end
from tests.support.waiting import LIMIT, until
from zc_anyio.testing import open_descriptors

KINDS = pytest.mark.parametrize("kind", ["tcp", "unix"])
Stream = zc_anyio.ZeroCopySocketStream


@pytest.mark.anyio
@KINDS
async def test_the_peers_end(driver: Any, kind: str) -> None:
    async with zc_anyio.open_ring(driver=driver), connected(kind) as (one, other):
        await one.send(b"last")
        await one.send_eof()
        await one.send_eof()
        assert await other.receive() == b"last"
        for _ in range(2):
            with pytest.raises(anyio.EndOfStream):
                await other.receive()
            with pytest.raises(anyio.EndOfStream):
                await other.receive_into(bytearray(10))
        with pytest.raises(anyio.ClosedResourceError):
            await one.send(b"more")
        # The other direction goes on.
        await other.send(b"answer")
        await other.aclose()
        assert await one.receive() == b"answer"
        with pytest.raises(anyio.EndOfStream):
            await one.receive()


@pytest.mark.anyio
async def test_the_end_comes_after_all_that_is_queued(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver), facing(small=True) as (stream, peer):
        async with zc_anyio.send_group() as group:
            await stream.send(b"a" * (1 << 20))
            await group.send(stream, b"b" * (2 << 20))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.send_eof)
                await settle()
                assert not at_end(peer)
                with pytest.raises(anyio.BusyResourceError):
                    await stream.send(b"no")
                data = await anyio.to_thread.run_sync(receive_to_end, peer)
        assert data == b"a" * (1 << 20) + b"b" * (2 << 20)


@pytest.mark.anyio
async def test_a_cancelled_end_was_not_sent(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver), facing(small=True) as (stream, peer):
        await stream.send(bytes(1 << 20))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.send_eof)
            await settle()
            tasks.cancel_scope.cancel()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.send, b"more")
            data = await anyio.to_thread.run_sync(receive_exactly, peer, (1 << 20) + 4)
        assert data[-4:] == b"more"
        await stream.send_eof()
        assert await anyio.to_thread.run_sync(receive_to_end, peer) == b""


@pytest.mark.anyio
@KINDS
async def test_closed(driver: Any, kind: str) -> None:
    async with zc_anyio.open_ring(driver=driver), connected(kind) as (one, other):
        await one.aclose()
        await one.aclose()
        closed = anyio.ClosedResourceError
        assert await outcome(one.send, b"x") is closed
        assert await outcome(one.send, b"") is closed
        assert await outcome(one.send, bytearray(100_000)) is closed
        assert await outcome(one.receive) is closed
        assert await outcome(one.receive_into, bytearray(1)) is closed
        assert await outcome(one.send_eof) is closed
        assert await outcome(one.wait_send_might_not_block) is closed
        with pytest.raises(anyio.EndOfStream):
            await other.receive()


@pytest.mark.anyio
@pytest.mark.parametrize("call", BLOCKED)
async def test_closing_wakes_a_blocked_task(driver: Any, call: str) -> None:
    async with zc_anyio.open_ring(driver=driver), facing(small=True) as (stream, peer):
        await clog(stream)
        woken = []

        async def block() -> None:
            woken.append(await outcome(BLOCKED[call], stream))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(block)
            await settle()
            assert not woken
            await stream.aclose()
        assert woken == [anyio.ClosedResourceError]
        peer.close()


@pytest.mark.anyio
@pytest.mark.parametrize("call", BLOCKED)
async def test_cancelling_a_blocked_task(driver: Any, call: str) -> None:
    async with zc_anyio.open_ring(driver=driver), facing(small=True) as (stream, peer):
        await clog(stream)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(BLOCKED[call], stream)
            await settle()
            tasks.cancel_scope.cancel()
        # Everything accepted arrives, and nothing of what was cancelled.
        before = zc_anyio.current_ring().statistics()  # type: ignore[union-attr]
        await stream.aclose()
        data = await anyio.to_thread.run_sync(receive_to_end, peer)
        assert not any(data)
        assert len(data) >= before.bytes_sent
        assert b"x" not in data


@pytest.mark.anyio
@pytest.mark.parametrize("call", BLOCKED)
async def test_two_tasks_in_one_direction(driver: Any, call: str) -> None:
    async with zc_anyio.open_ring(driver=driver), facing(small=True) as (stream, peer):
        await clog(stream)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(BLOCKED[call], stream)
            await settle()
            for other, again in BLOCKED.items():
                if other.startswith("receive") == call.startswith("receive"):
                    assert await outcome(again, stream) is anyio.BusyResourceError
            tasks.cancel_scope.cancel()
        peer.close()


@pytest.mark.anyio
async def test_what_was_accepted_arrives_after_closing(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver) as ring:
        async with facing(small=True) as (stream, peer):
            # The last one is admitted on its own, whatever its size.
            await stream.send(b"a" * (4 << 20))
            with anyio.CancelScope() as scope:
                scope.cancel()
                await stream.aclose()
            assert scope.cancelled_caught
            data = await anyio.to_thread.run_sync(receive_to_end, peer)
            assert data == b"a" * (4 << 20)
        await until(lambda: ring.statistics().held == 0)
        counters = ring.statistics()
        assert (counters.generations_open, counters.failed) == (0, 0)


@pytest.mark.anyio
@one_backend
async def test_a_peer_that_takes_nothing_does_not_keep_a_closed_stream(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zc_anyio._outputs.CLOSING_SECONDS", 1)
    async with zc_anyio.open_ring(driver=driver, drain_timeout=60) as ring:
        async with facing(small=True) as (stream, peer):
            await clog(stream)
            await stream.aclose()
            await until(lambda: not ring._sockets._by_ident)
            assert ring.statistics().failed > 0
            peer.close()


@pytest.mark.anyio
async def test_closing_with_bytes_unread_resets(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver), facing(small=True) as (stream, peer):
        await stream.send(bytes(4 << 20))
        peer.sendall(b"unread")
        await anyio.wait_readable(stream.extra(SocketAttribute.raw_socket))
        await stream.aclose()

        def receive() -> type:
            try:
                receive_to_end(peer)
            except OSError as exc:
                return type(exc)
            return bytes

        assert await anyio.to_thread.run_sync(receive) is ConnectionResetError


@pytest.mark.anyio
async def test_wrong_input(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver) as ring, connected() as (one, other):
        for data in ("text", 5, None, [b"a"]):
            with pytest.raises(TypeError):
                await one.send(data)
        with pytest.raises(BufferError):
            await one.send(memoryview(bytearray(10))[::2])
        with pytest.raises(ValueError, match="positive"):
            await one.receive(0)
        with pytest.raises(ValueError, match="empty"):
            await one.receive_into(bytearray())
        await other.send(b"x")
        with pytest.raises(TypeError, match="read-write"):
            await one.receive_into(b"read-only")
        assert ring.statistics().sends == 1
        assert await one.receive() == b"x"


@pytest.mark.anyio
async def test_what_was_never_closed_warns_and_is_closed(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver):
        with listener() as server:
            made: list[Any] = [
                await zc_anyio.connect_tcp(*server.getsockname()),
                await zc_anyio.create_unix_listener(b"\0zc_anyio unclosed"),
                await zc_anyio.create_udp_socket(local_host="127.0.0.1"),
            ]
            peer, _ = server.accept()
            with peer:
                peer.settimeout(LIMIT)
                await made[0].send(b"sent")
                for name in ("UDPSocket", "SocketListener", "SocketStream"):
                    with pytest.warns(ResourceWarning, match=f"unclosed <ZeroCopy{name} fd="):
                        made.pop()
                assert await anyio.to_thread.run_sync(receive_to_end, peer) == b"sent"


def sockets() -> int:
    return sum(what.startswith("socket:") for what in open_descriptors().values())


@pytest.mark.anyio
@pytest.mark.parametrize("collected", [False, True])
async def test_what_another_thread_drops_is_closed(
    driver: Any, collected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def warn(message: str, category: type[Warning], **_: object) -> None:
        warned.append((message.partition(" <ZeroCopy")[0], category))

    # Free-threaded Python has what another thread has dropped end in this one, in whichever context
    # comes next; what pytest.warns() sees there belongs to a context.
    warned: list[tuple[str, type[Warning]]] = []
    monkeypatch.setattr(warnings, "warn", warn)
    async with zc_anyio.open_ring(driver=driver):
        before = sockets()
        with listener() as server:
            made: list[Any] = [
                await zc_anyio.connect_tcp(*server.getsockname()),
                await zc_anyio.create_udp_socket(local_host="127.0.0.1"),
            ]
            peer, _ = server.accept()
        with peer:
            peer.settimeout(LIMIT)
            # The event loop knows it by then.
            peer.send(b"x")
            assert await made[0].receive() == b"x"
            await made[0].send(b"sent")
            gc.disable()
            try:
                drop: Any = made.clear
                if collected:
                    made.append(made)
                    drop = gc.collect
                    del made
                await anyio.to_thread.run_sync(drop)
                await until(lambda: len(warned) == 2)
            finally:
                gc.enable()
            assert warned == [("unclosed", ResourceWarning)] * 2
            assert await anyio.to_thread.run_sync(receive_to_end, peer) == b"sent"
        await until(lambda: sockets() == before)


@pytest.mark.anyio
async def test_a_stream_outlives_its_ring(driver: Any) -> None:
    async with zc_anyio.open_ring(driver=driver):
        client, peer = socket.socketpair()
        stream = await zc_anyio.ZeroCopyUNIXSocketStream.from_socket(client)
        await stream.send(b"before")
    with peer:
        assert peer.recv(100) == b"before"
        peer.send(b"after")
        assert await stream.receive() == b"after"
        with pytest.raises(RuntimeError, match="the ring is closed"):
            await stream.send(b"x")
        with pytest.raises(RuntimeError, match="the ring is closed"):
            await stream.send_eof()
        await stream.aclose()
        assert peer.recv(100) == b""
