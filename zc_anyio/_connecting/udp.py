"""UDP sockets: anyio's functions, with the same arguments."""

from __future__ import annotations

from socket import AddressFamily

import anyio
from anyio.abc import IPAddressType

from .._base.takeover import take_socket
from .._ring.opening import require_ring
from .._ring.ring import Ring
from ..datagrams import ZeroCopyConnectedUDPSocket, ZeroCopyUDPSocket
from .kinds import Family

__all__ = ["create_connected_udp_socket", "create_udp_socket"]


async def create_udp_socket(
    family: Family = AddressFamily.AF_UNSPEC,
    *,
    local_host: IPAddressType | None = None,
    local_port: int = 0,
    reuse_port: bool = False,
    ring: Ring | None = None,
) -> ZeroCopyUDPSocket:
    """Make a UDP socket; :func:`anyio.create_udp_socket` for a ring, with its arguments.

    If cancelled, the call leaves nothing open; but uvloop may keep a socket until the loop ends, as
    it may with anyio.

    :param family: that of ``local_host`` by default; one of the two has to be given.
    :param local_host: address or name of the interface to bind to.
    :param local_port: port to bind to, 0 for any.
    :param reuse_port: let several sockets use the port.
    :param ring: the ambient ring by default.
    :raises OSError: the socket cannot be bound.
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

    If cancelled, the call leaves nothing open; but uvloop may keep a socket until the loop ends, as
    it may with anyio.

    :param remote_host: address or name of the only peer.
    :param remote_port: port of the peer.
    :param family: that of the hosts by default.
    :param local_host: address or name of the interface to bind to.
    :param local_port: port to bind to, 0 for any.
    :param reuse_port: let several sockets use the port.
    :param ring: the ambient ring by default.
    :raises OSError: the socket cannot be bound or connected.
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
