"""The sockets of a ring: which stream means which socket, and how long the ring keeps it.

A socket is attached by a duplicate of its descriptor, from the first send until nothing of it is
queued, in flight or held.  The duplicate is what makes it impossible to send to a number that was
closed and reused.  It is given up when idle because it keeps the connection open: without that, a
program that closes its stream would never make the peer see the end of it; where something is held
for long, the reaper has it looked for what the program has closed.  What is known of an idle socket
is kept, and it is *suspended*: with the next send it is resumed, which costs a fraction
of finding out again what it is.

This library's own streams say when they are closed, so they are kept attached until then.
"""

from __future__ import annotations

import errno
import socket
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import anyio

from .._base.errors import os_error
from .._native.lib import SocketInfo, socket_info
from .._native.ring import NativeRing
from .descriptors import closed_error, descriptor_of

__all__ = ["AttachedSocket", "KnownSocket", "SocketTable"]

# Sockets are remembered by inode number, which the kernel hands out in turn from 32 bits; so many
# of the latest.
SOCKETS_REMEMBERED = 4096
# Sockets that a ring keeps suspended; what is more is detached, that which was suspended first.
SUSPENDED_MOST = 16384
# What the native part knew of sockets when they were detached, from whichever ring, in whichever
# thread: each change is one call.  While two rings have one attached, or suspended, the second
# knows nothing of it.  Numbers of MSG_ZEROCOPY in it are not trusted after a fork, neither by the
# parent nor by the child.
_learned: OrderedDict[int, Any] = OrderedDict()


class AttachedSocket:
    """A socket that the ring knows, and keeps a duplicate of unless it is suspended."""

    # Many of them live long: what the garbage collector would have to look at as well, is spared.
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
        # By which it was attached since it was idle, and by which others.
        self.stream: object = None
        self.others: tuple[object, ...] = ()
        # The program has closed it, and there is no sending to it any more.
        self.ended = False
        # The stream that keeps it attached, for as long as that is open.
        self.keeper: weakref.ref[object] | None = None

    def add(self, stream: object) -> None:
        """Remember one more by which it was attached, until it is idle."""
        if self.stream is None:
            self.stream = stream
        else:
            self.others += (stream,)


# With a function, what that gives for as long as the stream has its socket, and by which descriptor
# it has it.
KnownSocket: TypeAlias = tuple[AttachedSocket, Callable[[], int], int, int]


class SocketTable:
    """Finds, attaches and detaches the sockets of one ring."""

    def __init__(self, native: NativeRing) -> None:
        self._native = native
        # Set by the ring: has a turn taken soon.
        self.turn_soon: Callable[[], None] = lambda: None
        self._next = 0
        self.by_stream: dict[object, KnownSocket] = {}
        # The same for all streams that were sent to; a stream is never kept alive by that, so what
        # is a socket itself is asked itself.
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
        """Keep sockets that are idle attached: more are being attached, to be sent to together."""
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
        :raises TypeError: the object is not a socket, or a stream of one.
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
        # Of a stream that was reset before, a send tells that.
        attached.connected = attached.connected or not attached.datagram
        attached.keeper = weakref.ref(stream)
        # What keeps messages apart is sent past the ring; a group refuses it like a plain socket.
        if info.type != socket.SOCK_SEQPACKET:
            self._known[stream] = attached, sock.fileno, fd, fd
        return attached

    def let_go(self, attached: AttachedSocket, name: object) -> bool:
        """Detach a socket that was kept, as soon as what was queued is out and released.

        :param name: what a failure of it is reported for from now on.
        :return: whether it is so now.
        """
        attached.keeper = None
        self._known.pop(name, None)
        attached.add(name)
        self.by_stream[name] = attached, _has_no_socket, 0, -1
        # Told as an event, behind the failures that are still to be told.
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
            # If the send is refused after all, that turn tells that the socket is idle.
            self.turn_soon()
        elif attached.keeper is None:
            self._native.watch(attached.handle, fd)
        attached.add(stream)
        self.by_stream[stream] = known = attached, probe, expected, fd
        is_itself = getattr(probe, "__self__", None) is stream
        try:  # noqa: SIM105 - suppress() costs as much as the rest of this
            self._known[stream] = (attached, None, expected, fd) if is_itself else known
        except TypeError:  # not every object can be weakly referred to
            pass
        return attached

    def _recall(self, stream: Any) -> KnownSocket | None:
        """Return what was known of a stream, with its socket resumed; ``None`` if nothing was."""
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
        # Found at once by the next sends, until the socket is idle.
        attached.add(stream)
        self.by_stream[stream] = found = attached, probe, expected, fd
        return found

    def _find(self, fd: int, info: SocketInfo) -> AttachedSocket | None:
        """Return the socket of a descriptor if the ring knows it, resumed."""
        attached = self._by_inode.get(info.inode)
        if attached is None or not attached.suspended:
            return attached
        if attached.datagram == (info.type == socket.SOCK_DGRAM) and self._resume(attached, fd):
            return attached
        self._detach(attached)
        return None

    def _resume(self, attached: AttachedSocket, fd: int) -> bool:
        """Resume a suspended socket; ``False`` if it is another, or not connected any more.

        :raises OSError: no descriptor is left for the duplicate.
        """
        number = self._native.resume(attached.handle, fd)
        if number in (errno.ESTALE, errno.ENOTCONN):
            return False
        if number:
            raise os_error(number)
        attached.suspended = False
        del self._suspended[attached.ident]
        # If the send is refused after all, that turn tells that the socket is idle.
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
        """Return what all objects of one socket have in common; of a closed one, the object."""
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
        """A send failed: a stream is broken by that, a datagram socket is not."""
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
        # A cancelled send that was cut short tells no failure.
        if (error := self._native.socket_error(attached.handle)) != 0:
            self._remember_broken(attached, error)
        if attached.keeper is None:
            is_open = self._native.suspend(attached.handle)
            if is_open is None:
                # What was told before this has queued another send, or broken the connection:
                # it is told again when that is dealt with.
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
        """The program has closed the socket, and its connection has ended but for what is held."""
        attached = self._by_ident[ident]
        attached.ended = True
        self._forget_inode(attached)
        # A failure is still reported for the stream.
        for stream in (attached.stream, *attached.others):
            self.by_stream.pop(stream, None)

    def detach_suspended(self) -> None:
        """Forget the sockets that are suspended: the ring ends."""
        for attached in list(self._suspended.values()):
            self._detach(attached)

    def _detach(self, attached: AttachedSocket) -> None:
        """Forget a suspended socket."""
        _remember(_learned, attached.inode, self._native.learned(attached.handle))
        self._native.detach(attached.handle)
        attached.detached = True
        del self._suspended[attached.ident], self._by_ident[attached.ident]
        self._forget_inode(attached)

    def _forget_inode(self, attached: AttachedSocket) -> None:
        # It may be another's by now, or have been forgotten when the connection ended.
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
    """What a stream answers that was closed."""
    return -1
