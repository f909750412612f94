"""Making streams, listeners and UDP sockets: anyio's functions, with the same arguments."""

from __future__ import annotations

import os
import socket
import ssl
from socket import AddressFamily, SocketKind
from typing import TYPE_CHECKING, Any, Literal, overload

import anyio
from anyio import aclose_forcefully
from anyio.abc import IPAddressType, SocketListener, SocketStream
from anyio.streams.stapled import MultiListener
from anyio.streams.tls import TLSStream

from .._base.takeover import take_socket
from .._ring.opening import require_ring
from .._ring.ring import Ring
from ..datagrams import ZeroCopyConnectedUDPSocket, ZeroCopyUDPSocket
from ..listeners import ZeroCopySocketListener
from ..streams import ZeroCopySocketStream, ZeroCopyUNIXSocketStream, make_unix_stream

if TYPE_CHECKING:
    import trio.abc

__all__ = [
    "as_trio_stream",
    "connect_tcp",
    "connect_unix",
    "create_connected_udp_socket",
    "create_tcp_listener",
    "create_udp_socket",
    "create_unix_listener",
    "wrap_listener",
    "wrap_stream",
]

UNIXKind = Literal[SocketKind.SOCK_STREAM, SocketKind.SOCK_SEQPACKET]
Family = Literal[AddressFamily.AF_UNSPEC, AddressFamily.AF_INET, AddressFamily.AF_INET6]


@overload
async def connect_tcp(
    remote_host: IPAddressType,
    remote_port: int,
    *,
    local_host: IPAddressType | None = ...,
    local_port: int | None = ...,
    ssl_context: ssl.SSLContext | None = ...,
    tls_standard_compatible: bool = ...,
    tls_hostname: str,
    happy_eyeballs_delay: float = ...,
    ring: Ring | None = ...,
) -> TLSStream: ...


@overload
async def connect_tcp(
    remote_host: IPAddressType,
    remote_port: int,
    *,
    local_host: IPAddressType | None = ...,
    local_port: int | None = ...,
    ssl_context: ssl.SSLContext,
    tls_standard_compatible: bool = ...,
    tls_hostname: str | None = ...,
    happy_eyeballs_delay: float = ...,
    ring: Ring | None = ...,
) -> TLSStream: ...


@overload
async def connect_tcp(
    remote_host: IPAddressType,
    remote_port: int,
    *,
    local_host: IPAddressType | None = ...,
    local_port: int | None = ...,
    tls: Literal[True],
    ssl_context: ssl.SSLContext | None = ...,
    tls_standard_compatible: bool = ...,
    tls_hostname: str | None = ...,
    happy_eyeballs_delay: float = ...,
    ring: Ring | None = ...,
) -> TLSStream: ...


@overload
async def connect_tcp(
    remote_host: IPAddressType,
    remote_port: int,
    *,
    local_host: IPAddressType | None = ...,
    local_port: int | None = ...,
    tls: Literal[False] = ...,
    ssl_context: None = ...,
    tls_standard_compatible: bool = ...,
    tls_hostname: None = ...,
    happy_eyeballs_delay: float = ...,
    ring: Ring | None = ...,
) -> ZeroCopySocketStream: ...


async def connect_tcp(
    remote_host: IPAddressType,
    remote_port: int,
    *,
    local_host: IPAddressType | None = None,
    local_port: int | None = None,
    tls: bool = False,
    ssl_context: ssl.SSLContext | None = None,
    tls_standard_compatible: bool = True,
    tls_hostname: str | None = None,
    happy_eyeballs_delay: float = 0.25,
    ring: Ring | None = None,
) -> ZeroCopySocketStream | TLSStream:
    """Connect to a host over TCP; :func:`anyio.connect_tcp` for a ring, with its arguments.

    :param remote_host: IP address or host name; all its addresses are tried, as anyio does it.
    :param remote_port: port at that host.
    :param local_host: address or name of the interface to bind to.
    :param local_port: port to bind to.
    :param tls: do a TLS handshake; so do ``ssl_context`` and ``tls_hostname``.
    :param ssl_context: default a new client context.
    :param tls_standard_compatible: as in :meth:`anyio.streams.tls.TLSStream.wrap`.
    :param tls_hostname: name that the certificate must have; default ``remote_host``.
    :param happy_eyeballs_delay: seconds until the next address is tried as well.
    :param ring: default the ambient ring.
    :return: a stream; with TLS anyio's own over it, whose ciphertext goes through the ring.
    :raises OSError: the connection failed.
    :raises RuntimeError: no ring is open.
    """
    ring = require_ring(ring)
    made = await anyio.connect_tcp(
        remote_host,
        remote_port,
        local_host=local_host,
        local_port=local_port,
        happy_eyeballs_delay=happy_eyeballs_delay,
    )
    stream = await _wrap(made, ring)
    if not (tls or tls_hostname or ssl_context):
        return stream
    try:
        return await TLSStream.wrap(
            stream,
            server_side=False,
            hostname=tls_hostname or str(remote_host),
            ssl_context=ssl_context,
            standard_compatible=tls_standard_compatible,
        )
    except BaseException:
        await aclose_forcefully(stream)
        raise


async def connect_unix(
    path: str | bytes | os.PathLike[Any],
    kind: UNIXKind = SocketKind.SOCK_STREAM,
    *,
    ring: Ring | None = None,
) -> ZeroCopyUNIXSocketStream:
    """Connect to a UNIX socket; :func:`anyio.connect_unix` for a ring.

    :param path: path of the socket.
    :param kind: ``SOCK_STREAM``, or ``SOCK_SEQPACKET`` (anyio 4.16 or newer): what one call sends,
        one call receives.  Such a stream sends past the ring, and send groups refuse it.
    :param ring: default the ambient ring.
    :raises OSError: the connection failed.
    :raises RuntimeError: no ring is open.
    """
    ring = require_ring(ring)
    sock, _ = await take_socket(await anyio.connect_unix(path, **_of_kind(kind)))
    return make_unix_stream(ring, sock)


async def create_tcp_listener(
    *,
    local_host: IPAddressType | None = None,
    local_port: int = 0,
    family: Family = AddressFamily.AF_UNSPEC,
    backlog: int = 65536,
    reuse_port: bool = False,
    ring: Ring | None = None,
) -> MultiListener[SocketStream]:
    """Listen on TCP; :func:`anyio.create_tcp_listener` for a ring, with its arguments.

    :param local_host: address of the interface; default all of them.
    :param local_port: 0 for any that is free, the same on all interfaces.
    :param family: of the addresses, if ``local_host`` was not given.
    :param backlog: connections that may wait to be accepted, 65536 at most.
    :param reuse_port: let several sockets listen on the port.
    :param ring: default the ambient ring.
    :raises OSError: an address cannot be listened on.
    :raises RuntimeError: no ring is open.
    """
    ring = require_ring(ring)
    made = await anyio.create_tcp_listener(
        local_host=local_host,
        local_port=local_port,
        family=family,
        backlog=backlog,
        reuse_port=reuse_port,
    )
    return await wrap_listener(made, ring=ring)


async def create_unix_listener(
    path: str | bytes | os.PathLike[Any],
    *,
    mode: int | None = None,
    backlog: int = 65536,
    kind: UNIXKind = SocketKind.SOCK_STREAM,
    ring: Ring | None = None,
) -> ZeroCopySocketListener:
    """Listen on a UNIX socket; :func:`anyio.create_unix_listener` for a ring.

    :param path: of the socket; one that exists there is removed.
    :param mode: permissions of the socket.
    :param backlog: connections that may wait to be accepted, 65536 at most.
    :param kind: as of :func:`connect_unix`.
    :param ring: default the ambient ring.
    :raises OSError: it cannot be listened on.
    :raises RuntimeError: no ring is open.
    """
    ring = require_ring(ring)
    made = await anyio.create_unix_listener(path, mode=mode, backlog=backlog, **_of_kind(kind))
    return await wrap_listener(made, ring=ring)


async def create_udp_socket(
    family: Family = AddressFamily.AF_UNSPEC,
    *,
    local_host: IPAddressType | None = None,
    local_port: int = 0,
    reuse_port: bool = False,
    ring: Ring | None = None,
) -> ZeroCopyUDPSocket:
    """Make a UDP socket; :func:`anyio.create_udp_socket` for a ring, with its arguments.

    :param family: default that of ``local_host``; one of the two has to be given.
    :param local_host: address or name of the interface to bind to.
    :param local_port: port to bind to, 0 for any.
    :param reuse_port: let several sockets use the port.
    :param ring: default the ambient ring.
    :raises OSError: it cannot be bound.
    :raises RuntimeError: no ring is open.
    """
    ring = require_ring(ring)
    made = await anyio.create_udp_socket(
        family, local_host=local_host, local_port=local_port, reuse_port=reuse_port
    )
    sock, received = await take_socket(made)
    return ZeroCopyUDPSocket(ring, sock, received)


async def create_connected_udp_socket(
    remote_host: IPAddressType,
    remote_port: int,
    *,
    family: Family = AddressFamily.AF_UNSPEC,
    local_host: IPAddressType | None = None,
    local_port: int = 0,
    reuse_port: bool = False,
    ring: Ring | None = None,
) -> ZeroCopyConnectedUDPSocket:
    """Make a connected UDP socket; :func:`anyio.create_connected_udp_socket` for a ring.

    :param remote_host: address or name of the only peer.
    :param remote_port: port of the peer.
    :param family: default that of the hosts.
    :param local_host: address or name of the interface to bind to.
    :param local_port: port to bind to, 0 for any.
    :param reuse_port: let several sockets use the port.
    :param ring: default the ambient ring.
    :raises OSError: it cannot be bound, or connected.
    :raises RuntimeError: no ring is open.
    """
    ring = require_ring(ring)
    made = await anyio.create_connected_udp_socket(
        remote_host,
        remote_port,
        family=family,
        local_host=local_host,
        local_port=local_port,
        reuse_port=reuse_port,
    )
    sock, received = await take_socket(made)
    return ZeroCopyConnectedUDPSocket(ring, sock, received)


async def wrap_stream(stream: SocketStream, *, ring: Ring | None = None) -> ZeroCopySocketStream:
    """Take over the connection of an anyio socket stream, and what that has received already.

    The stream itself is closed by this; tasks that use it meanwhile get
    :exc:`anyio.ClosedResourceError`.

    :param ring: default the ambient ring.
    :raises TypeError: it is no socket stream: of a TLS stream, for one, wrap the transport.
    :raises anyio.ClosedResourceError: it is closed.
    :raises anyio.BusyResourceError: bytes that it has accepted are not sent.
    :raises RuntimeError: no ring is open.
    """
    ring = require_ring(ring)
    _expect(stream, SocketStream, ZeroCopySocketStream)
    return await _wrap(stream, ring)


@overload
async def wrap_listener(
    listener: SocketListener, *, ring: Ring | None = ...
) -> ZeroCopySocketListener: ...


@overload
async def wrap_listener(
    listener: MultiListener[SocketStream], *, ring: Ring | None = ...
) -> MultiListener[SocketStream]: ...


async def wrap_listener(
    listener: SocketListener | MultiListener[SocketStream], *, ring: Ring | None = None
) -> ZeroCopySocketListener | MultiListener[SocketStream]:
    """Take over the socket of an anyio listener, or those of a ``MultiListener``.

    The listener itself is closed by this.

    :param ring: default the ambient ring.
    :return: a :class:`ZeroCopySocketListener`, or a ``MultiListener`` of them.
    :raises TypeError: it is no socket listener.
    :raises anyio.ClosedResourceError: it is closed.
    :raises RuntimeError: no ring is open.
    """
    ring = require_ring(ring)
    if isinstance(listener, MultiListener):
        return MultiListener([await _listen(one, ring) for one in listener.listeners])
    return await _listen(listener, ring)


def as_trio_stream(stream: ZeroCopySocketStream) -> trio.abc.HalfCloseableStream:
    """Return a trio stream that is another face of a stream; closing one closes both.

    It raises trio's exceptions, and is for programs that run on trio.
    """
    from .trio_stream import TrioStream

    return TrioStream(stream)


def _of_kind(kind: UNIXKind) -> dict[str, Any]:
    # anyio before 4.16 has no such parameter.
    return {} if kind is SocketKind.SOCK_STREAM else {"kind": kind}


async def _wrap(made: SocketStream, ring: Ring) -> ZeroCopySocketStream:
    sock, received = await take_socket(made)
    try:
        if sock.family == socket.AF_UNIX:
            return make_unix_stream(ring, sock)
        return ZeroCopySocketStream(ring, sock, b"".join(received))
    except BaseException:
        sock.close()
        raise


async def _listen(made: object, ring: Ring) -> ZeroCopySocketListener:
    _expect(made, SocketListener, ZeroCopySocketListener)
    sock, _ = await take_socket(made)
    return ZeroCopySocketListener(ring, sock)


def _expect(made: object, kind: type, own: type) -> None:
    if not isinstance(made, kind) or isinstance(made, own):
        raise TypeError(f"expected an anyio {kind.__name__}, not {type(made).__name__}")
