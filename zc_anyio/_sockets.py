"""The sockets of a ring: which stream means which socket, and how long the ring keeps it.

A socket is attached by a duplicate of its descriptor, from the first send until nothing of it is
queued, in flight or held.  The duplicate is what makes it impossible to send to a number that was
closed and reused.  It is given up when idle because it keeps the connection open: without that, a
program that closes its stream would never make the peer see the end of it.

This library's own streams say when they are closed, so they are kept attached until then.
"""

from __future__ import annotations

import errno
import socket
import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import anyio
from anyio.abc import ConnectedUDPSocket, SocketAttribute, SocketStream, UDPSocket

from ._errors import os_error
from ._lib import NativeRing, SocketInfo, new_learned, socket_info

__all__ = ["AttachedSocket", "SocketTable"]

IPPROTO_MPTCP = 262
# Sockets are remembered by inode number, which the kernel hands out in turn from 32 bits; so many
# of the latest.
SOCKETS_REMEMBERED = 4096
# What the native part knew of sockets when they were detached, from whichever ring.  While two
# rings have one attached, the second knows nothing of it.
_learned: OrderedDict[int, Any] = OrderedDict()


class AttachedSocket:
    """A socket while the ring keeps a duplicate of it."""

    __slots__ = ("connected", "datagram", "handle", "ident", "inode", "keeper", "streams")

    def __init__(
        self, inode: int, ident: int, handle: Any, *, datagram: bool, connected: bool
    ) -> None:
        self.datagram = datagram
        self.connected = connected
        self.inode = inode
        self.ident = ident
        self.handle = handle
        self.streams: list[object] = []
        # The stream that keeps it attached, for as long as that is open.
        self.keeper: weakref.ref[object] | None = None


class SocketTable:
    """Finds, attaches and detaches the sockets of one ring."""

    def __init__(self, native: NativeRing) -> None:
        self._native = native
        # Set by the ring: has a turn taken soon.
        self.turn_soon: Callable[[], None] = lambda: None
        self._next = 0
        # A stream's own idea of its descriptor, and what it was when the stream was attached.
        self.by_stream: dict[object, tuple[AttachedSocket, Callable[[], int], int]] = {}
        # The same for streams that keep their sockets attached; a stream is never kept alive.
        self._keepers: weakref.WeakKeyDictionary[
            object, tuple[AttachedSocket, Callable[[], int], int]
        ] = weakref.WeakKeyDictionary()
        self._by_inode: dict[int, AttachedSocket] = {}
        self._by_ident: dict[int, AttachedSocket] = {}
        self._broken: OrderedDict[int, OSError] = OrderedDict()

    def attach(self, stream: Any, *, unconnected: bool = False) -> AttachedSocket:
        """Return the attached socket of a stream, attaching it if it is not.

        :param unconnected: a UDP socket needs no peer.
        :raises TypeError: the object is not a socket, or a stream of one.
        :raises anyio.ClosedResourceError: the stream is closed.
        :raises anyio.BrokenResourceError: an earlier send broke the socket, or it was reset.
        :raises OSError: ``EDESTADDRREQ``, a UDP socket without a peer; ``EMFILE``, no descriptor
            left for the duplicate.
        """
        known = self.by_stream.get(stream)
        if known is None and (known := self._keepers.get(stream)) is not None:
            # Found at once by the next sends, until the socket is idle.
            self.by_stream[stream] = known
            known[0].streams.append(stream)
        if known is not None:
            attached, fileno, fd = known
            if fileno() != fd:
                raise _closed(stream)
            if attached.connected or unconnected:
                return attached
            # A UDP socket may have been connected meanwhile.
            attached.connected = socket_info(fd).connected
            if attached.connected:
                return attached
            raise _no_peer()
        return self._attach(stream, unconnected)

    def keep(self, stream: object, sock: socket.socket) -> AttachedSocket:
        """Attach the socket of a stream until :meth:`let_go`.

        :raises OSError: ``EMFILE``, no descriptor left for the duplicate.
        """
        fd = sock.fileno()
        info = socket_info(fd)
        attached = self._by_inode.get(info.inode) or self._attach_new(fd, info)
        # Of a stream that was reset before, a send tells that.
        attached.connected = attached.connected or not attached.datagram
        attached.keeper = weakref.ref(stream)
        # What keeps messages apart is sent past the ring; a group refuses it like a plain socket.
        if info.type != socket.SOCK_SEQPACKET:
            self._keepers[stream] = attached, sock.fileno, fd
        return attached

    def let_go(self, attached: AttachedSocket, name: object) -> bool:
        """Detach a socket that was kept, as soon as what was queued is out and released.

        :param name: what a failure of it is reported for from now on.
        :return: whether it is so now.
        """
        attached.keeper = None
        self._keepers.pop(name, None)
        attached.streams.append(name)
        self.by_stream[name] = attached, lambda: -1, 0
        # Told as an event, behind the failures that are still to be told.
        idle = self._native.tell_idle(attached.handle)
        self.turn_soon()
        return idle

    def _attach(self, stream: Any, unconnected: bool) -> AttachedSocket:
        fileno = _descriptor_of(stream)
        fd = fileno()
        if fd < 0:
            raise _closed(stream)
        info = socket_info(fd)
        if info.type not in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            raise TypeError(f"only stream and datagram sockets can be sent to, not {stream!r}")
        if (broken := self._broken.get(info.inode)) is not None:
            raise anyio.BrokenResourceError from broken
        if not info.connected and info.type == socket.SOCK_DGRAM:
            if not unconnected:
                raise _no_peer()
        elif not info.connected:
            raise anyio.BrokenResourceError from os_error(errno.ENOTCONN)
        attached = self._by_inode.get(info.inode)
        if attached is None:
            attached = self._attach_new(fd, info)
            # If the send is refused after all, that turn tells that the socket is idle.
            self.turn_soon()
        attached.streams.append(stream)
        self.by_stream[stream] = attached, fileno, fd
        return attached

    def _attach_new(self, fd: int, info: SocketInfo) -> AttachedSocket:
        ident = self._next + 1
        datagram = info.type == socket.SOCK_DGRAM
        handle = self._native.attach(
            fd,
            ident,
            datagram=datagram,
            # The kernel would answer EOPNOTSUPP for these.
            can_zero_copy=info.domain in (socket.AF_INET, socket.AF_INET6)
            and info.protocol != IPPROTO_MPTCP,
            learned=_learned.pop(info.inode, None) or new_learned(local=info.local),
        )
        self._next = ident
        attached = AttachedSocket(
            info.inode, ident, handle, datagram=datagram, connected=info.connected
        )
        self._by_inode[info.inode] = self._by_ident[ident] = attached
        return attached

    def broken(self, attached: AttachedSocket) -> anyio.BrokenResourceError:
        """Return the exception for a send to a socket that is broken."""
        number = self._native.socket_error(attached.handle)
        error = anyio.BrokenResourceError()
        error.__cause__ = self._broken.get(attached.inode) or os_error(number)
        return error

    def identity(self, stream: Any) -> object:
        """Return what all objects of one socket have in common; of a closed one, the object."""
        known = self.by_stream.get(stream) or self._keepers.get(stream)
        if known is not None:
            return known[0].inode
        try:
            return socket_info(_descriptor_of(stream)()).inode
        except (OSError, TypeError):
            return stream

    def name(self, ident: int) -> object:
        """Return the stream by which a socket was attached."""
        attached = self._by_ident[ident]
        keeper = attached.keeper() if attached.keeper is not None else None
        return keeper if keeper is not None else attached.streams[0]

    def on_socket_failed(self, ident: int, error: int) -> None:
        """A send failed: a stream is broken by that, a datagram socket is not."""
        attached = self._by_ident[ident]
        if self._native.socket_error(attached.handle):
            self._remember_broken(attached, error)

    def on_socket_idle(self, ident: int) -> None:
        """Nothing refers to the socket any more."""
        attached = self._by_ident.get(ident)
        if attached is None:
            return
        # A cancelled send that was cut short tells no failure.
        if (error := self._native.socket_error(attached.handle)) != 0:
            self._remember_broken(attached, error)
        if attached.keeper is None:
            learned = self._native.learned(attached.handle)
            if not self._native.detach(attached.handle):
                # What was told before this has queued another send.
                return
            _remember(_learned, attached.inode, learned)
            del self._by_inode[attached.inode], self._by_ident[ident]
        for stream in attached.streams:
            self.by_stream.pop(stream, None)
        attached.streams.clear()

    def _remember_broken(self, attached: AttachedSocket, error: int) -> None:
        if attached.inode not in self._broken:
            _remember(self._broken, attached.inode, os_error(error))


def _remember(memory: OrderedDict[int, Any], inode: int, value: Any) -> None:
    while len(memory) >= SOCKETS_REMEMBERED:
        memory.popitem(last=False)
    memory[inode] = value


def _closed(stream: Any) -> Exception:
    """Return the exception for a stream without a descriptor."""
    # asyncio closes the transport of a connection that was lost, though nobody closed the stream.
    if getattr(stream, "_closed", True):
        return anyio.ClosedResourceError()
    broken = anyio.BrokenResourceError()
    broken.__cause__ = os_error(errno.ENOTCONN, "the connection was lost")
    return broken


def _no_peer() -> OSError:
    return os_error(errno.EDESTADDRREQ, "the UDP socket has no peer: connect it, or use send_to")


def _descriptor_of(stream: Any) -> Callable[[], int]:
    """Return a function that gives a stream's descriptor, or -1 once it is closed."""
    plain = _plain_socket(stream)
    ssl: Any = sys.modules.get("ssl")
    # The bytes of an SSLSocket must be encrypted first, and these would not be.
    if plain is not None and not (ssl is not None and isinstance(plain, ssl.SSLSocket)):
        fileno: Callable[[], int] = plain.fileno
        return fileno
    if isinstance(stream, SocketStream | ConnectedUDPSocket | UDPSocket):
        # asyncio closes the socket later than the transport, and uvloop's stand-in for a socket
        # goes on giving the number for ever, so the transport is asked first.
        closing = getattr(getattr(stream, "_transport", None), "is_closing", None)
        if closing is not None and closing():
            return lambda: -1
        raw: Any = stream.extra(SocketAttribute.raw_socket)
        return (lambda: -1 if closing() else raw.fileno()) if closing else raw.fileno
    raise TypeError(
        "stream must be an anyio SocketStream or UDP socket, a trio SocketStream or socket, "
        f"or a socket.socket, not {type(stream).__name__}"
    )


def _plain_socket(stream: Any) -> Any:
    if isinstance(stream, socket.socket):
        return stream
    # Only a program that has imported trio can hand over one of its objects.
    trio: Any = sys.modules.get("trio")
    if trio is not None and isinstance(stream, trio.SocketStream):
        return stream.socket
    if trio is not None and isinstance(stream, trio.socket.SocketType):
        return stream
    return None
