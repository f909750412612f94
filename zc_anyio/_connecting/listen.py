"""Listening: anyio's functions, with the same arguments."""

from __future__ import annotations

import os
from socket import AddressFamily, SocketKind
from typing import Any

import anyio
from anyio.abc import IPAddressType, SocketStream
from anyio.streams.stapled import MultiListener

from .._ring.opening import require_ring
from .._ring.ring import Ring
from ..listeners import ZeroCopySocketListener
from .kinds import Family, UNIXKind, of_kind
from .wrap import wrap_listener

__all__ = ["create_tcp_listener", "create_unix_listener"]


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

    If cancelled, the call leaves nothing open.

    :param local_host: address of the interface; all interfaces by default.
    :param local_port: port; 0 for any that is free, the same on all interfaces.
    :param family: family of the addresses, if ``local_host`` is not given.
    :param backlog: connections that may wait to be accepted, 65536 at most.
    :param reuse_port: let several sockets listen on the port.
    :param ring: the ambient ring by default.
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

    If cancelled, the call leaves nothing open.

    :param path: path of the socket; a socket that exists there is removed.
    :param mode: permissions of the socket.
    :param backlog: connections that may wait to be accepted, 65536 at most.
    :param kind: as for :func:`connect_unix`.
    :param ring: the ambient ring by default.
    :raises OSError: the path cannot be listened on.
    :raises RuntimeError: no ring is open.
    """
    ring = require_ring(ring)
    made = await anyio.create_unix_listener(path, mode=mode, backlog=backlog, **of_kind(kind))
    return await wrap_listener(made, ring=ring)
