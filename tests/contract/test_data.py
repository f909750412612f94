"""What can be sent."""

from __future__ import annotations

import array
import mmap
import os
import socket
import tempfile
from collections.abc import Callable
from typing import Any

import numpy
import pytest

import zc_anyio
from tests.support.peers import Reader, at_end, tcp_pair
from tests.support.waiting import until

SIZE = 100_000


class Bytes(bytes):
    """A subclass of bytes."""


def mapped(content: bytes, access: int) -> mmap.mmap:
    """Map a file with this content."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.flush()
        return mmap.mmap(file.fileno(), len(content), access=access)


def anonymous(content: bytes) -> mmap.mmap:
    """Map memory with this content."""
    memory = mmap.mmap(-1, len(content))
    memory[:] = content
    return memory


KINDS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "subclass of bytes": Bytes,
    "bytearray": bytearray,
    "memoryview of bytes": memoryview,
    "memoryview of a bytearray": lambda content: memoryview(bytearray(content)),
    "slice of a memoryview": lambda content: memoryview(b"12" + content + b"34")[2:-2],
    "memoryview of longs": lambda content: memoryview(content).cast("I"),
    "memoryview of rows": lambda content: memoryview(content).cast("B", (SIZE // 100, 100)),
    "read-only memoryview": lambda content: memoryview(bytearray(content)).toreadonly(),
    "array": lambda content: array.array("d", content),
    "memory map": anonymous,
    "map of a file": lambda content: mapped(content, mmap.ACCESS_WRITE),
    "read-only map of a file": lambda content: mapped(content, mmap.ACCESS_READ),
    "NumPy": lambda content: numpy.frombuffer(bytearray(content), dtype=numpy.int32),
    "read-only NumPy": lambda content: numpy.frombuffer(content, dtype=numpy.uint8),
    "NumPy rows": lambda content: numpy.frombuffer(content, dtype=">u2").reshape(100, -1),
}


@pytest.mark.anyio
@pytest.mark.parametrize("kind", KINDS)
async def test_buffers(driver: Any, kind: str) -> None:
    content = os.urandom(SIZE)
    data = KINDS[kind](content)
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver, zero_copy="always", threshold=0):
            async with zc_anyio.send_group() as group:
                await group.send(client, data)
                group.send_nowait(client, data)
                await group.send(client, [b"head", data, b"tail"])
                await group.broadcast([client], data)
        client.shutdown(socket.SHUT_WR)
        assert await reader.all() == content + content + b"head" + content + b"tail" + content
    if isinstance(data, mmap.mmap):
        data.close()  # BufferError if the ring still had an export


@pytest.mark.anyio
@pytest.mark.parametrize("make", [list, tuple])
async def test_a_sequence_is_one_send(driver: Any, make: Callable[[Any], Any]) -> None:
    parts = [
        b"a",
        bytearray(b""),
        os.urandom(70_000),
        memoryview(b"xyz")[1:],
        b"",
        array.array("B"),
    ]
    with tcp_pair() as (client, peer), Reader(peer) as reader:
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, make(parts))
                # More than a single request can carry.
                await group.send(client, make([b"%06d" % number for number in range(5000)]))
            assert ring.statistics().sends == 2
        client.shutdown(socket.SHUT_WR)
        received = await reader.all()
    assert received[:70_003] == b"".join(parts)
    assert received[70_003:] == b"".join(b"%06d" % number for number in range(5000))


@pytest.mark.anyio
async def test_parts_are_locked_and_given_back(driver: Any) -> None:
    parts = [bytearray(40_000) for _ in range(30)]
    with tcp_pair() as (client, peer), Reader(peer):
        async with zc_anyio.open_ring(driver=driver):
            async with zc_anyio.send_group() as group:
                group.send_nowait(client, parts)
                with pytest.raises(BufferError):
                    parts[7].append(1)
            for part in parts:
                part.append(1)
        client.close()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "nothing",
    [b"", bytearray(), memoryview(b""), [], (), [b"", bytearray()]],
    ids=["bytes", "bytearray", "memoryview", "list", "tuple", "list of nothing"],
)
async def test_nothing_to_send(driver: Any, nothing: Any) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring:
            async with zc_anyio.send_group() as group:
                await group.send(client, nothing)
                group.send_nowait(client, nothing)
            assert ring.statistics().sends == 0
            # Nothing of the connection stays with the ring.
            client.close()
            await until(lambda: at_end(peer))


@pytest.mark.anyio
async def test_a_pinned_part_of_a_refused_sequence_is_given_back(driver: Any) -> None:
    good = bytearray(1000)
    with tcp_pair() as (client, _):
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            with pytest.raises(TypeError):
                await group.send(client, [good, "text"])  # type: ignore[list-item]
            good.append(1)
