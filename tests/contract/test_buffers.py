"""What is sent is the buffer of an object, whatever its other methods say."""

from __future__ import annotations

import array
import ctypes
import io
import mmap
import os
import pickle
import random
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
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


# What programs make of a buffer that a pool has handed out.
OF_POOLS: dict[str, Callable[[memoryview], Any]] = {
    "view": lambda view: view,
    "slice": lambda view: view[5:4000],
    "slice of a slice": lambda view: view[100:][:100],
    "view of items": lambda view: view.cast("Q"),
    "view of two dimensions": lambda view: view.cast("B", (64, 64)),
    "view of no dimension": lambda view: view[:4].cast("i", ()),
    "read-only view": lambda view: view.toreadonly(),
    "array": lambda view: numpy.frombuffer(view, dtype="int32")[3:500],
    "array of two dimensions": lambda view: numpy.frombuffer(view, dtype="u1").reshape(64, 64),
    "array of no dimension": lambda view: numpy.frombuffer(view, dtype="int64")[7:8].reshape(()),
    "array that has an index": lambda view: numpy.frombuffer(view, dtype="u1").view(Indexed),
    "ctypes array": lambda view: (ctypes.c_uint32 * 9).from_buffer(view, 8),
    "pickle buffer": lambda view: pickle.PickleBuffer(view[:1000]),
}


@pytest.mark.anyio
@pytest.mark.parametrize("make", OF_POOLS.values(), ids=OF_POOLS)
async def test_groups_send_what_is_made_of_a_pools_buffer(
    driver: Any, make: Callable[[memoryview], Any]
) -> None:
    with tcp_pair() as (client, peer):
        async with (
            zc_anyio.open_ring(driver=driver, threshold=0) as ring,
            zc_anyio.open_buffer_pool(buffer_size=4096, count=2) as pool,
        ):
            view = await pool.acquire()
            view[:] = random.Random(1).randbytes(4096)
            data = make(view)
            expected = contents(data)
            before = ring.statistics().registered
            async with zc_anyio.send_group() as group:
                await group.send(client, data)
                await group.send(client, [b"|", data])
            assert receive_exactly(peer, 2 * len(expected) + 1) == expected + b"|" + expected
            if pool.unregistered is None:
                assert ring.statistics().registered > before
            del data, view
            with anyio.fail_after(20):
                # Both are free, so what was made of the first has not kept it.
                first, second = await pool.acquire(), await pool.acquire()
            pool.release(first)
            pool.release(second)
        client.close()
        assert peer.recv(1) == b""


class Named(os.PathLike[str]):
    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return "/dev/null"


class File(io.FileIO):
    def __index__(self) -> int:
        return 0

    def __len__(self) -> int:
        return 3


class Descriptor(int):
    def __index__(self) -> int:
        return 0

    def __int__(self) -> int:
        return 0


FILES: dict[str, Callable[[Path], Any]] = {
    "path": Path,
    "string": str,
    "object with a path": Named,
    "file": File,
    "buffered file": lambda path: path.open("rb"),
    "descriptor": lambda path: Descriptor(os.open(path, os.O_RDONLY)),
}


@pytest.mark.anyio
@pytest.mark.parametrize("make", FILES.values(), ids=FILES)
async def test_groups_send_the_file(
    driver: Any, make: Callable[[Path], Any], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    content = random.Random(1).randbytes(9000)
    path.write_bytes(content)
    file = make(path)
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            assert await group.send_file(client, file) == len(content)
            assert await group.send_file(client, file, offset=3, count=5) == 5
        assert receive_exactly(peer, len(content) + 5) == content + content[3:8]
        client.close()
        assert peer.recv(1) == b""
    if hasattr(file, "close"):
        assert not file.closed
        file.close()
    elif isinstance(file, Descriptor):
        os.close(int.__add__(file, 0))


@pytest.mark.anyio
@pytest.mark.parametrize(
    "wrong",
    [b"path", None, 1.5, io.BytesIO(b"bytes"), object()],
    ids=lambda wrong: type(wrong).__name__,
)
async def test_what_is_no_file_is_refused(driver: Any, wrong: Any) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            with pytest.raises((TypeError, io.UnsupportedOperation)):
                await group.send_file(client, wrong)
        client.close()
        assert peer.recv(1) == b""


@pytest.mark.anyio
@pytest.mark.parametrize("wrong", ["text", 7, None, [b"parts", "text"], {"a": 1}, object()])
async def test_objects_without_a_buffer_are_refused(driver: Any, wrong: Any) -> None:
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver), zc_anyio.send_group() as group:
            with pytest.raises(TypeError):
                await group.send(client, wrong)
        client.close()
        assert peer.recv(1) == b""
