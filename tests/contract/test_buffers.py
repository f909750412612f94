"""What is sent is the buffer of an object, whatever its other methods say."""

from __future__ import annotations

import array
import ctypes
import mmap
import pickle
import socket
import sys
from collections.abc import Callable
from typing import Any

import numpy
import pytest

import zc_anyio
from tests.support.peers import receive_exactly, tcp_pair


class Bytes(bytes):
    def __bytes__(self) -> bytes:
        return b"not these"

    def __len__(self) -> int:
        return 3

    def __bool__(self) -> bool:
        return False

    def __getitem__(self, _index: Any) -> Any:
        return b"nor these"


class ByteArray(bytearray):
    def __bytes__(self) -> bytes:
        return b"not these"

    def __len__(self) -> int:
        return 3


class Array(array.array):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 1

    def __index__(self) -> int:
        return 2


class Indexed(numpy.ndarray):
    def __index__(self) -> int:
        return 5

    def __bytes__(self) -> bytes:
        return b"not these"


class Structure(ctypes.Structure):
    _fields_ = (("a", ctypes.c_uint32), ("b", ctypes.c_uint16))


def mapped() -> mmap.mmap:
    memory = mmap.mmap(-1, 4096)
    memory[:] = b"mapped!!" * 512
    return memory


KINDS: dict[str, Callable[[], Any]] = {
    "bytes": lambda: Bytes(b"these bytes"),
    "bytearray": lambda: ByteArray(b"these bytes"),
    "array": lambda: Array("H", [1, 2, 3]),
    "view of items": lambda: memoryview(array.array("Q", [1, 2, 3])),
    "view of two dimensions": lambda: memoryview(bytes(range(12))).cast("B", (3, 4)),
    "view of no dimension": lambda: memoryview(numpy.array(9, dtype="int32")),
    "array of no dimension": lambda: numpy.array(7, dtype="int64"),
    "scalar": lambda: numpy.float64(1.5),
    "array of two dimensions": lambda: numpy.arange(6, dtype="int16").reshape(2, 3),
    "array that has an index": lambda: numpy.arange(3, dtype="int32").view(Indexed),
    "ctypes array": lambda: (ctypes.c_uint32 * 3)(1, 2, 3),
    "ctypes structure": lambda: Structure(1, 2),
    "ctypes number": lambda: ctypes.c_uint64(77),
    "pickle buffer": lambda: pickle.PickleBuffer(bytearray(b"out of band")),
    "map": mapped,
}

if sys.version_info >= (3, 12):

    class Exporter:
        """Exports a buffer by Python code, and claims another length."""

        def __init__(self) -> None:
            self.data = bytearray(b"exported by Python")

        def __buffer__(self, flags: int) -> memoryview:
            return memoryview(self.data)

        def __len__(self) -> int:
            return 2

        def __bytes__(self) -> bytes:
            return b"not these"

    KINDS["object with __buffer__"] = Exporter


def contents(data: Any) -> bytes:
    with memoryview(data) as view:
        return view.tobytes()


kinds = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


@pytest.mark.anyio
@kinds
async def test_groups_send_the_buffer(driver: Any, make: Callable[[], Any]) -> None:
    data = make()
    expected = contents(data)
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            await group.send(client, data)
            await group.send(client, [data, b"|", data])
            await group.broadcast([client], data)
        whole = expected * 2 + b"|" + expected * 2
        assert receive_exactly(peer, len(whole)) == whole
        client.close()
        assert peer.recv(1) == b""


@pytest.mark.anyio
@kinds
async def test_streams_send_the_buffer(driver: Any, make: Callable[[], Any]) -> None:
    data = make()
    expected = contents(data)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with zc_anyio.open_ring(driver=driver):
            async with await zc_anyio.connect_tcp(*listener.getsockname()[:2]) as stream:
                peer, _ = listener.accept()
                with peer:
                    peer.settimeout(20)
                    await stream.send(data)
                    await stream.send_eof()
                    assert receive_exactly(peer, len(expected)) == expected
                    assert peer.recv(1) == b""


@pytest.mark.anyio
@kinds
async def test_udp_sockets_send_the_buffer(driver: Any, make: Callable[[], Any]) -> None:
    data = make()
    with socket.socket(type=socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(20)
        host, port = peer.getsockname()
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            async with await zc_anyio.create_connected_udp_socket(host, port) as connected:
                await connected.send(data)
                assert peer.recv(1 << 16) == contents(data)
                await group.send(connected, data)
                group.flush()
                assert peer.recv(1 << 16) == contents(data)
            async with await zc_anyio.create_udp_socket(local_host="127.0.0.1") as udp:
                await udp.sendto(data, host, port)
                assert peer.recv(1 << 16) == contents(data)


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", ["text", 7, None, [b"parts", "text"], {"a": 1}, object()])
async def test_objects_without_a_buffer_are_refused(driver: Any, wrong: Any) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            with pytest.raises(TypeError):
                await group.send(client, wrong)
        client.close()
        assert peer.recv(1) == b""
