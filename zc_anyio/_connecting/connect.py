"""Connecting: anyio's functions, with the same arguments."""

from __future__ import annotations

import math
import os
import ssl
from socket import SocketKind
from typing import Any, Literal, overload

import anyio
from anyio import aclose_forcefully
from anyio.abc import IPAddressType
from anyio.streams.tls import TLSStream

from .._base.takeover import take_socket
from .._ring.opening import require_ring
from .._ring.ring import Ring
from .._seqpacket import make_unix_stream
from ..streams import ZeroCopySocketStream, ZeroCopyUNIXSocketStream
from ..tls import wrap_tls
from .kinds import UNIXKind, of_kind
from .wrap import take_over

__all__ = ["connect_tcp", "connect_unix"]


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

    If cancelled, the call leaves no connection behind.

    :param remote_host: IP address or host name; all its addresses are tried, as by anyio.
    :param remote_port: port at that host.
    :param local_host: address or name of the interface to bind to.
    :param local_port: port to bind to.
    :param tls: do a TLS handshake; ``ssl_context`` and ``tls_hostname`` imply it.
    :param ssl_context: a new client context by default.
    :param tls_standard_compatible: as ``standard_compatible`` of :func:`zc_anyio.tls.wrap_tls`.
    :param tls_hostname: name that the certificate must have; ``remote_host`` by default.
    :param happy_eyeballs_delay: seconds until the next address is tried as well.
    :param ring: the ambient ring by default.
    :return: a stream; with TLS, one as of :func:`zc_anyio.tls.wrap_tls`, which is a ``TLSStream``
        of anyio, and which groups take if the kernel encrypts.
    :raises OSError: the connection failed.
    :raises ssl.SSLError: the handshake failed.
    :raises anyio.BrokenResourceError: the connection ended during the handshake.
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
    stream = await take_over(made, ring)
    if not (tls or tls_hostname or ssl_context):
        return stream
    try:
        return await wrap_tls(
            stream,
            ssl_context or _client_context(),
            server_side=False,
            server_hostname=tls_hostname or str(remote_host),
            standard_compatible=tls_standard_compatible,
            handshake_timeout=math.inf,
        )
    except BaseException:
        await aclose_forcefully(stream)
        raise


def _client_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    # As anyio does: an end without close_notify is to be noticed.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    return context


async def connect_unix(
    path: str | bytes | os.PathLike[Any],
    kind: UNIXKind = SocketKind.SOCK_STREAM,
    *,
    ring: Ring | None = None,
) -> ZeroCopyUNIXSocketStream:
    """Connect to a UNIX socket; :func:`anyio.connect_unix` for a ring.

    If cancelled, the call leaves no connection behind.

    :param path: path of the socket.
    :param kind: ``SOCK_STREAM``, or ``SOCK_SEQPACKET`` (anyio 4.16 or newer): what one call sends,
        one call receives.  Such a stream does not send through the ring, and send groups refuse it.
    :param ring: the ambient ring by default.
    :raises OSError: the connection failed.
    :raises RuntimeError: no ring is open.
    """
    ring = require_ring(ring)
    sock, _ = await take_socket(await anyio.connect_unix(path, **of_kind(kind)))
    return make_unix_stream(ring, sock)
