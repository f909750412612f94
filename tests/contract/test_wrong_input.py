"""Wrong input raises the documented error, and nothing is queued."""

from __future__ import annotations

import array
import errno
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import numpy
import pytest

import zc_anyio
from tests.support.peers import at_end, tcp_pair, wrap
from tests.support.waiting import until


@contextmanager
def refused(ring: zc_anyio.Ring, error: Any, match: str | None = None) -> Iterator[None]:
    """Expect an error, and that nothing was queued."""
    before = ring.statistics().sends
    with pytest.raises(error, match=match):
        yield
    assert ring.statistics().sends == before


class NoBuffer:
    """An object without a buffer."""


WRONG_DATA: dict[str, tuple[Any, type[Exception]]] = {
    "str": ("text", TypeError),
    "int": (7, TypeError),
    "None": (None, TypeError),
    "object": (NoBuffer(), TypeError),
    "list of ints": ([1, 2, 3], TypeError),
    "list of str": (["a", "b"], TypeError),
    "list with a str": ([b"good", bytearray(b"good"), "text"], TypeError),
    "list of lists": ([[b"a"]], TypeError),
    "non-contiguous memoryview": (memoryview(bytearray(100))[::2], BufferError),
    "columns of NumPy": (numpy.zeros((10, 10))[:, 3], BufferError),
    "Fortran order": (numpy.zeros((10, 10), order="F"), BufferError),
    "list with a non-contiguous one": ([b"good", memoryview(b"good")[::-1]], BufferError),
    "reversed array": (memoryview(array.array("i", range(9)))[::-1], BufferError),
}


@pytest.mark.anyio
@pytest.mark.parametrize("kind", WRONG_DATA)
async def test_data(driver: Any, kind: str) -> None:
    data, error = WRONG_DATA[kind]
    with tcp_pair() as (client, peer):
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            with refused(ring, error):
                await group.send(client, data)
            with refused(ring, error):
                group.send_nowait(client, data)
            if not isinstance(data, list):
                with refused(ring, error):
                    await group.broadcast([client], data)
            # The ring has not kept the socket either: its peer sees the end.
            client.close()
            await until(lambda: at_end(peer))
        assert group.failures == []


@pytest.mark.anyio
async def test_a_released_memoryview(driver: Any) -> None:
    view = memoryview(b"x")
    view.release()
    with tcp_pair() as (client, _):
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            with refused(ring, ValueError):
                await group.send(client, view)


def tls_socket() -> socket.socket:
    context = ssl.create_default_context()
    return context.wrap_socket(
        socket.socket(), server_hostname="localhost", do_handshake_on_connect=False
    )


NO_STREAMS: dict[str, Callable[[], Any]] = {
    "int": lambda: 1,
    "None": lambda: None,
    "str": lambda: "localhost",
    "file": lambda: open("/dev/null", "wb"),  # noqa: PTH123, SIM115
    "object": NoBuffer,
    "TLS socket": tls_socket,
    "raw socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
}


@pytest.mark.anyio
@pytest.mark.parametrize("kind", NO_STREAMS)
async def test_no_stream(driver: Any, kind: str) -> None:
    try:
        stream = NO_STREAMS[kind]()
    except PermissionError:
        pytest.skip("raw sockets need root")
    try:
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            with refused(ring, TypeError):
                await group.send(stream, b"data")
            with refused(ring, TypeError):
                group.send_nowait(stream, b"data")
            with refused(ring, TypeError):
                await group.broadcast([stream], b"data")
    finally:
        if hasattr(stream, "close"):
            stream.close()


@pytest.mark.anyio
async def test_a_subclass_of_a_tls_socket(driver: Any) -> None:
    class Other(ssl.SSLSocket):
        pass

    context = ssl.create_default_context()
    context.sslsocket_class = Other
    with context.wrap_socket(
        socket.socket(), server_hostname="localhost", do_handshake_on_connect=False
    ) as stream:
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            with refused(ring, TypeError):
                await group.send(stream, b"clear text")


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["socket", "anyio"])
@pytest.mark.parametrize("known", [True, False])
async def test_a_closed_stream(driver: Any, kind: str, known: bool) -> None:
    with tcp_pair() as (client, _peer):
        stream: Any = client if kind == "socket" else await wrap(client)
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            if known:
                await group.send(stream, b"while it was open")
            if kind == "socket":
                stream.close()
            else:
                await stream.aclose()
            for _ in range(2):
                with refused(ring, anyio.ClosedResourceError):
                    await group.send(stream, b"data")
                with refused(ring, anyio.ClosedResourceError):
                    group.send_nowait(stream, b"data")


@pytest.mark.anyio
async def test_a_udp_socket_without_a_peer(driver: Any) -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            with refused(ring, OSError, "no peer"):
                await group.send(client, b"data")
            with pytest.raises(OSError, match="no peer") as caught:
                group.send_nowait(client, b"data")
            assert caught.value.errno == errno.EDESTADDRREQ


@pytest.mark.anyio
async def test_an_anyio_udp_socket_without_a_peer(driver: Any) -> None:
    async with await anyio.create_udp_socket(local_host="127.0.0.1") as udp:
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            with refused(ring, (TypeError, OSError)):
                await group.send(udp, b"data")


@pytest.mark.anyio
async def test_a_tcp_socket_without_a_peer(driver: Any) -> None:
    with socket.socket() as client:
        async with zc_anyio.open_ring(driver=driver) as ring, zc_anyio.send_group() as group:
            with refused(ring, anyio.BrokenResourceError):
                await group.send(client, b"data")


@pytest.mark.anyio
async def test_a_group_that_is_not_open(driver: Any) -> None:
    with tcp_pair() as (client, _):
        async with zc_anyio.open_ring(driver=driver) as ring:
            group = zc_anyio.send_group()
            for _ in range(2):
                with refused(ring, anyio.ClosedResourceError):
                    await group.send(client, b"data")
                with refused(ring, anyio.ClosedResourceError):
                    group.send_nowait(client, b"data")
                with refused(ring, anyio.ClosedResourceError):
                    await group.broadcast([client], b"data")
                with refused(ring, anyio.ClosedResourceError):
                    group.flush()
                with refused(ring, anyio.ClosedResourceError):
                    group.statistics()
                if not group.failures and ring.statistics().sends == 0:
                    async with group:
                        group.send_nowait(client, b"data")
            with refused(ring, RuntimeError, "once"):
                async with group:
                    pass


@pytest.mark.anyio
@pytest.mark.parametrize(
    "arguments",
    [
        {"window": 0},
        {"window": -1},
        {"on_error": "ignore"},
        {"release_timeout": -1},
        {"zero_copy": "sometimes"},
        {"zero_copy": False},
    ],
    ids=repr,
)
async def test_arguments_of_a_group(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        zc_anyio.send_group(**arguments)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "arguments",
    [
        {"driver": "epoll"},
        {"zero_copy": "sometimes"},
        {"threshold": -1},
        {"drain_timeout": -1},
        {"entries": 0},
        {"entries": 40_000},
    ],
    ids=repr,
)
async def test_arguments_of_a_ring(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        async with zc_anyio.open_ring(**arguments):
            pass


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["send_group", "open_ring"])
async def test_arguments_are_keywords(name: str) -> None:
    with pytest.raises(TypeError):
        getattr(zc_anyio, name)("io_uring")
