"""Connections of httpcore, and so of httpx, that send through a ring.

Needs the extra ``httpcore``.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSAttribute

from ._connecting.connect import connect_tcp, connect_unix
from ._ring.ring import Ring
from .streams import ZeroCopySocketStream
from .tls import wrap_tls

try:
    import httpcore
except ImportError as _missing:
    raise ImportError(
        "zc_anyio.httpcore needs httpcore: pip install 'zc_anyio[httpcore]'"
    ) from _missing

if TYPE_CHECKING:
    import httpx

__all__ = ["RingBackend", "httpx_transport"]

# A body is sent in pieces of this size.  Four fit into a stream's window, so that the kernel always
# has some of it, and at most a window is left to send when the call returns.
PIECE = 256 << 10


class RingBackend(httpcore.AsyncNetworkBackend):
    """Makes httpcore's connections, by :func:`connect_tcp` and :func:`connect_unix`.

    Use ``httpcore.AsyncConnectionPool(network_backend=RingBackend())``; for httpx clients use
    :func:`httpx_transport`.  Connecting with no ring open raises ``RuntimeError``.  A pool that
    outlives the ring of its connections can only be closed.

    :param ring: the ambient ring by default of the task that connects.
    """

    def __init__(self, *, ring: Ring | None = None) -> None:
        self._ring = ring

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to a host.  If cancelled, the call leaves no connection behind.

        :param host: its name or address; all its addresses are tried, as by anyio.
        :param port: port at that host.
        :param timeout: seconds for all of its addresses together.
        :param local_address: address of the interface to bind to.
        :param socket_options: arguments of ``setsockopt``, which is called after connecting.
        :raises httpcore.ConnectTimeout: the time was not enough.
        :raises httpcore.ConnectError: the connection failed.
        """
        with _connecting(timeout):
            stream = await connect_tcp(host, port, local_host=local_address, ring=self._ring)
            return await _with_options(stream, socket_options)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to a UNIX socket.  If cancelled, the call leaves no connection behind.

        :param path: path of the socket.
        :param timeout: seconds.
        :param socket_options: as for :meth:`connect_tcp`.

        Raises what :meth:`connect_tcp` raises.
        """
        with _connecting(timeout):
            stream = await connect_unix(path, ring=self._ring)
            return await _with_options(stream, socket_options)

    async def sleep(self, seconds: float) -> None:
        """Wait between attempts to connect.

        :param seconds: how long.
        """
        await anyio.sleep(seconds)


def httpx_transport(*, ring: Ring | None = None, **options: Any) -> httpx.AsyncHTTPTransport:
    """Return a transport of httpx whose connections send through a ring.

    :param ring: the ambient ring by default of the task that connects.
    :param options: those of :class:`httpx.AsyncHTTPTransport`: ``verify``, ``limits``, ``proxy``
        and so on; a client does not apply its own options to a transport that it is given.
    :raises RuntimeError: this version of httpx makes its connections in an unknown way.
    """
    import httpx

    transport = httpx.AsyncHTTPTransport(**options)
    # httpx has no parameter for the backend, unlike httpcore.
    pool: Any = transport._pool
    if not isinstance(getattr(pool, "_network_backend", None), httpcore.AsyncNetworkBackend):
        raise RuntimeError(f"httpx {httpx.__version__} has no place for a network backend")
    pool._network_backend = RingBackend(ring=ring)
    return transport


class _Connection(httpcore.AsyncNetworkStream):
    """A connection with httpcore's interface.

    :param stream: what is read and written: the connection itself, or TLS over it.
    """

    def __init__(self, connection: ZeroCopySocketStream, stream: ByteStream) -> None:
        self._connection = connection
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _errors(timeout, httpcore.ReadTimeout, httpcore.ReadError):
            try:
                return await self._stream.receive(max_bytes)
            except anyio.EndOfStream:
                return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # The timeout is for each piece: a large body may take long if it makes progress.
        for start in range(0, len(buffer), PIECE):
            whole = len(buffer) <= PIECE
            piece: Any = buffer if whole else memoryview(buffer)[start : start + PIECE]
            with _errors(timeout, httpcore.WriteTimeout, httpcore.WriteError):
                await self._stream.send(piece)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            with _connecting(timeout):
                stream = await wrap_tls(
                    self._stream,
                    ssl_context,
                    server_side=False,
                    server_hostname=server_hostname,
                    standard_compatible=False,
                    handshake_timeout=math.inf,
                )
        except BaseException:
            await anyio.aclose_forcefully(self._stream)
            raise
        return _Connection(self._connection, stream)

    def get_extra_info(self, info: str) -> Any:
        match info:
            case "ssl_object":
                return self._stream.extra(TLSAttribute.ssl_object, None)
            case "client_addr":
                return self._stream.extra(SocketAttribute.local_address, None)
            case "server_addr":
                return self._stream.extra(SocketAttribute.remote_address, None)
            case "socket":
                return self._stream.extra(SocketAttribute.raw_socket, None)
            case "is_readable":
                return self._connection.is_readable()
        return None


async def _with_options(
    stream: ZeroCopySocketStream, options: Iterable[httpcore.SOCKET_OPTION] | None
) -> _Connection:
    raw = stream.extra(SocketAttribute.raw_socket)
    try:
        for option in options or ():
            raw.setsockopt(*option)
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise
    return _Connection(stream, stream)


@contextmanager
def _errors(
    timeout: float | None, too_slow: type[Exception], failed: type[Exception]
) -> Generator[None, None, None]:
    """Limit the time, and turn exceptions of streams into httpcore's."""
    try:
        with anyio.fail_after(timeout):
            yield
    except TimeoutError as exc:
        raise too_slow(str(exc)) from exc
    except (anyio.BrokenResourceError, anyio.ClosedResourceError) as exc:
        raise failed(str(exc)) from exc


@contextmanager
def _connecting(timeout: float | None) -> Generator[None, None, None]:
    with _errors(timeout, httpcore.ConnectTimeout, httpcore.ConnectError):
        try:
            yield
        except TimeoutError:
            raise
        except (OSError, anyio.EndOfStream) as exc:  # OSError includes ssl.SSLError
            raise httpcore.ConnectError(str(exc)) from exc
