"""The sockets of a ring: which stream means which socket, and how long the ring keeps it.

A socket is attached by a duplicate of its descriptor, from the first send until nothing of it is
queued, in flight or held.  The duplicate is what makes it impossible to send to a number that was
closed and reused.  It keeps the connection open, so it is closed when the socket is idle: otherwise
the peer would never see the end of a stream that the program closes.  While something is held for
long, the reaper looks whether the program has closed the socket.  What is known of an idle socket
is kept, and the socket is *suspended*: the next send resumes it, which costs a fraction of finding
out again what it is.

This library's own streams say when they are closed, so they are kept attached until then.
"""

from __future__ import annotations

import errno
import socket
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeAlias

import anyio

from .._base.errors import os_error
from .._native.lib import SocketInfo, socket_info
from .._native.ring import NativeRing
from .descriptors import closed_error, descriptor_of

__all__ = ["AttachedSocket", "KnownSocket", "SocketTable"]

# How many of the latest sockets are remembered, by inode number, which the kernel hands out in turn
# from 32 bits.
SOCKETS_REMEMBERED = 4096
# How many sockets a ring keeps suspended; beyond that it detaches the one suspended first.
SUSPENDED_MOST = 16384
# Forgotten in one turn at the end of a ring: about a millisecond of work.
DETACHED_AT_ONCE = 512
# What the native part knew of sockets when they were detached, for the rings of all threads: each
# change of it is one call.  While one ring has a socket attached or suspended, a second ring finds
# nothing here about it.  After a fork neither the parent nor the child trusts the numbers of
# MSG_ZEROCOPY in it.
_learned: OrderedDict[int, Any] = OrderedDict()


class AttachedSocket:
    """A socket that the ring knows, and keeps a duplicate of unless it is suspended."""

    # Many of them live long, so the garbage collector should have no dictionary of each to look at.
    __slots__ = (
        "connected",
        "datagram",
        "detached",
        "ended",
        "handle",
        "ident",
        "inode",
        "keeper",
        "others",
        "stream",
        "suspended",
    )

    def __init__(
        self, inode: int, ident: int, handle: Any, *, datagram: bool, connected: bool
    ) -> None:
        self.datagram = datagram
        self.connected = connected
        self.inode = inode
        self.ident = ident
        self.handle = handle
        self.suspended = self.detached = False
        # The stream by which it was attached since it was last idle; `others` are further ones.
        self.stream: object = None
        self.others: tuple[object, ...] = ()
        # Whether the program has closed it, so that nothing can be sent to it any more.
        self.ended = False
        # The stream that keeps it attached for as long as the stream is open.
        self.keeper: weakref.ref[object] | None = None

    def add(self, stream: object) -> None:
        """Remember one more stream by which it is attached, until it is idle."""
        if self.stream is None:
            self.stream = stream
        else:
            self.others += (stream,)


# A socket; a function, and what it returns for as long as the stream has the socket; the stream's
# descriptor of it.
KnownSocket: TypeAlias = tuple[AttachedSocket, Callable[[], int], int, int]


class SocketTable:
    """Finds, attaches and detaches the sockets of one ring."""

    def __init__(self, native: NativeRing) -> None:
        self._native = native
        # Set by the ring; it has a turn taken soon.
        self.turn_soon: Callable[[], None] = lambda: None
        self._next = 0
        self.by_stream: dict[object, KnownSocket] = {}
        # The same for all streams that were sent to, held weakly.  For a stream whose function is
        # its own method, None stands in its place: the method would keep the stream alive.
        self._known: weakref.WeakKeyDictionary[
            object, tuple[AttachedSocket, Callable[[], int] | None, int, int]
        ] = weakref.WeakKeyDictionary()
        self._by_inode: dict[int, AttachedSocket] = {}
        self._by_ident: dict[int, AttachedSocket] = {}
        self._suspended: OrderedDict[int, AttachedSocket] = OrderedDict()
        self._broken: OrderedDict[int, OSError] = OrderedDict()
        # How many broadcasts are attaching their targets, and what became idle meanwhile.
        self._broadcasts = 0
        self._idle_meanwhile: list[AttachedSocket] = []

    @contextmanager
    def none_given_up(self) -> Iterator[None]:
        """Keep idle sockets attached while more are being attached for the same broadcast."""
        self._broadcasts += 1
        try:
            yield
        finally:
            self._broadcasts -= 1
            if not self._broadcasts:
                for attached in self._idle_meanwhile:
                    if not attached.detached:
                        self._native.tell_idle(attached.handle)
                if self._idle_meanwhile:
                    self._idle_meanwhile.clear()
                    self.turn_soon()

    def attach(self, stream: Any, *, unconnected: bool = False) -> AttachedSocket:
        """Return the attached socket of a stream, attaching it if it is not.

        :param unconnected: a UDP socket needs no peer.
        :raises TypeError: the object is neither a socket nor a stream over one.
        :raises anyio.ClosedResourceError: the stream is closed.
        :raises anyio.BrokenResourceError: an earlier send broke the socket, or it was reset.
        :raises OSError: ``EDESTADDRREQ``, a UDP socket without a peer; ``EMFILE``, no descriptor
            left for the duplicate.
        """
        known = self.by_stream.get(stream) or self._recall(stream)
        if known is not None:
            attached, probe, expected, fd = known
            if probe() != expected:
                raise closed_error(stream)
            if attached.connected or unconnected:
                return attached
            # A UDP socket may have been connected meanwhile.
            attached.connected = bool(socket_info(fd).connected)
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
        attached = self._find(fd, info) or self._attach_new(fd, info)
        self._native.watch(attached.handle, -1)
        # If the stream was reset before, its first send reports that.
        attached.connected = attached.connected or not attached.datagram
        attached.keeper = weakref.ref(stream)
        # Streams of SOCK_SEQPACKET do not send through the ring, and groups refuse them.
        if info.type != socket.SOCK_SEQPACKET:
            self._known[stream] = attached, sock.fileno, fd, fd
        return attached

    def hide(self, stream: object) -> None:
        """Forget which socket a stream means, but not the socket; the next send asks the stream."""
        self._known.pop(stream, None)
        self.by_stream.pop(stream, None)

    def let_go(self, attached: AttachedSocket, name: object) -> bool:
        """Detach a socket that was kept, as soon as what was queued is sent and released.

        :param name: the object for which its failures are reported from now on.
        :return: whether everything is sent and released already.
        """
        attached.keeper = None
        self._known.pop(name, None)
        attached.add(name)
        self.by_stream[name] = attached, _has_no_socket, 0, -1
        # Reported by an event, after the failures that are still to be reported.
        idle = self._native.tell_idle(attached.handle)
        self.turn_soon()
        return idle

    def _attach(self, stream: Any, unconnected: bool) -> AttachedSocket:
        fd, probe, expected = descriptor_of(stream)
        if fd < 0:
            raise closed_error(stream)
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
        attached = self._find(fd, info)
        if attached is None:
            attached = self._attach_new(fd, info)
            # If the send is refused after all, that turn reports the socket as idle.
            self.turn_soon()
        elif attached.keeper is None:
            self._native.watch(attached.handle, fd)
        attached.add(stream)
        self.by_stream[stream] = known = attached, probe, expected, fd
        is_itself = getattr(probe, "__self__", None) is stream
        try:  # noqa: SIM105 - suppress() costs as much as the rest of this
            self._known[stream] = (attached, None, expected, fd) if is_itself else known
        except TypeError:  # not every object can be referred to weakly
            pass
        return attached

    def _recall(self, stream: Any) -> KnownSocket | None:
        """Return what is known of a stream, with its socket resumed, or ``None``."""
        known = self._known.get(stream)
        if known is None:
            return None
        attached, probe, expected, fd = known
        probe = probe or stream.fileno
        if (
            attached.detached
            or attached.ended
            or probe() != expected
            or (attached.suspended and not self._resume(attached, fd))
        ):
            del self._known[stream]
            return None
        # The next sends find it in by_stream, until the socket is idle.
        attached.add(stream)
        self.by_stream[stream] = found = attached, probe, expected, fd
        return found

    def _find(self, fd: int, info: SocketInfo) -> AttachedSocket | None:
        """Return the socket of a descriptor, resumed, if the ring knows it."""
        attached = self._by_inode.get(info.inode)
        if attached is None or not attached.suspended:
            return attached
        if attached.datagram == (info.type == socket.SOCK_DGRAM) and self._resume(attached, fd):
            return attached
        self._detach(attached)
        return None

    def _resume(self, attached: AttachedSocket, fd: int) -> bool:
        """Resume a suspended socket; ``False`` if ``fd`` is another by now, or has no connection.

        :raises OSError: no descriptor is left for the duplicate.
        """
        number = self._native.resume(attached.handle, fd)
        if number in (errno.ESTALE, errno.ENOTCONN):
            return False
        if number:
            raise os_error(number)
        attached.suspended = False
        del self._suspended[attached.ident]
        # If the send is refused after all, that turn reports the socket as idle.
        self.turn_soon()
        return True

    def _attach_new(self, fd: int, info: SocketInfo) -> AttachedSocket:
        ident = self._next + 1
        datagram = info.type == socket.SOCK_DGRAM
        handle = self._native.attach(fd, ident, info, _learned.pop(info.inode, None))
        self._next = ident
        attached = AttachedSocket(
            info.inode, ident, handle, datagram=datagram, connected=bool(info.connected)
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
        """Return the same value for all objects of one socket; for a closed one, the object."""
        known = self.by_stream.get(stream) or self._known.get(stream)
        if known is not None:
            return known[0].inode
        try:
            return socket_info(descriptor_of(stream)[0]).inode
        except (OSError, TypeError):
            return stream

    def name(self, ident: int) -> object:
        """Return the stream by which a socket was attached."""
        attached = self._by_ident[ident]
        keeper = attached.keeper() if attached.keeper is not None else None
        return keeper if keeper is not None else attached.stream

    def on_socket_failed(self, ident: int, error: int) -> None:
        """A send failed, which breaks a stream but not a datagram socket."""
        attached = self._by_ident[ident]
        if self._native.socket_error(attached.handle):
            self._remember_broken(attached, error)

    def on_socket_idle(self, ident: int) -> None:
        """Nothing refers to the socket any more."""
        attached = self._by_ident.get(ident)
        if attached is None:
            return
        if self._broadcasts:
            self._idle_meanwhile.append(attached)
            return
        # A cancelled send that was cut short has reported no failure.
        if (error := self._native.socket_error(attached.handle)) != 0:
            self._remember_broken(attached, error)
        if attached.keeper is None:
            is_open = self._native.suspend(attached.handle)
            if is_open is None:
                # An event before this one has led to another send, or broken the connection: the
                # socket is reported idle again when that is dealt with.
                return
            attached.suspended = True
            self._suspended[ident] = attached
            if error or not is_open:
                self._detach(attached)
            elif len(self._suspended) > SUSPENDED_MOST:
                self._detach(next(iter(self._suspended.values())))
        self.by_stream.pop(attached.stream, None)
        for stream in attached.others:
            self.by_stream.pop(stream, None)
        attached.stream, attached.others = None, ()

    def on_socket_ended(self, ident: int) -> None:
        """The program has closed the socket, and its connection has ended; sends may be held."""
        attached = self._by_ident[ident]
        attached.ended = True
        self._forget_inode(attached)
        # A failure is still reported for the stream.
        for stream in (attached.stream, *attached.others):
            self.by_stream.pop(stream, None)

    def detach_suspended(self) -> bool:
        """Forget some of the suspended sockets, at the end of the ring; return if none is left."""
        for attached in list(islice(self._suspended.values(), DETACHED_AT_ONCE)):
            self._detach(attached)
        return not self._suspended

    def _detach(self, attached: AttachedSocket) -> None:
        """Forget a suspended socket."""
        _remember(_learned, attached.inode, self._native.learned(attached.handle))
        self._native.detach(attached.handle)
        attached.detached = True
        del self._suspended[attached.ident], self._by_ident[attached.ident]
        self._forget_inode(attached)

    def _forget_inode(self, attached: AttachedSocket) -> None:
        # The inode may be another socket's by now, or forgotten since the connection ended.
        if self._by_inode.get(attached.inode) is attached:
            del self._by_inode[attached.inode]

    def _remember_broken(self, attached: AttachedSocket, error: int) -> None:
        if attached.inode not in self._broken:
            _remember(self._broken, attached.inode, os_error(error))


def _remember(memory: OrderedDict[int, Any], inode: int, value: Any) -> None:
    while len(memory) >= SOCKETS_REMEMBERED:
        memory.popitem(last=False)
    memory[inode] = value


def _no_peer() -> OSError:
    return os_error(errno.EDESTADDRREQ, "the UDP socket has no peer: connect it, or use send_to")


def _has_no_socket() -> int:
    """Stand in for ``fileno`` of a stream that was closed."""
    return -1
