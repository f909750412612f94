"""anyio's UDP sockets that send through a ring."""

from __future__ import annotations

import socket
import warnings
from collections import deque
from collections.abc import Iterable
from typing import Any

import anyio
from anyio.abc import ConnectedUDPSocket, UDPPacketType, UDPSocket
from anyio.lowlevel import checkpoint

from ._base.halves import Half
from ._native.lib import NO_ADDRESS, address_of
from ._outputs import Output
from ._receiving.receiver import DirectReceiver
from ._ring.ring import Ring
from ._sending.buffers import Buffer

__all__ = ["ZeroCopyConnectedUDPSocket", "ZeroCopyUDPSocket"]

LARGEST = 65536


class _Datagrams:
    """What UDP sockets with and without a peer have in common."""

    def __init__(self, ring: Ring, sock: socket.socket, received: Iterable[Any]) -> None:
        self._closed = True
        self._ring = ring
        self._socket = sock
        self._received = deque(received)
        self._receiver = DirectReceiver(ring._loop_calls, sock)
        try:
            self._output = Output(ring, self, sock)
        except BaseException:
            sock.close()
            raise
        self._sending = Half("writing to")
        self._receiving = Half("reading from")
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"fd={self._socket.fileno()}"
        return f"<{type(self).__name__} {state}>"

    @property
    def _raw_socket(self) -> socket.socket:
        return self._socket

    async def _send(self, data: Buffer, address: Any = NO_ADDRESS) -> None:
        with self._sending:
            await self._ring._loop_calls.checkpoint_before()
            if type(data) is not bytes and not self._closed:
                # A datagram has at most 64 KiB: copying it is cheaper than waiting for its release.
                data = self._output.unchangeable(data) or memoryview(data).tobytes()
            while not self._output.offer(data, address):
                await self._output.wait_window()
            await self._ring._loop_calls.checkpoint_after()

    async def _receive(self) -> tuple[bytes, Any]:
        with self._receiving:
            if self._received and not self._closed:
                await checkpoint()
                packet: tuple[bytes, Any] = self._received.popleft()
                return packet
            try:
                return await self._receiver.call(self._socket.recvfrom, LARGEST)
            except OSError as exc:
                raise anyio.BrokenResourceError from exc

    async def aclose(self) -> None:
        """Close the socket; tasks that wait in it get :exc:`anyio.ClosedResourceError`.

        What was accepted still goes out.  Calling it again does nothing.
        """
        if not self._closed:
            self._closed = True
            self._receiver.close()
            self._output.close(self)
            self._socket.close()
        await checkpoint()

    def __del__(self) -> None:
        if self._closed:
            return
        try:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=1)
        finally:
            self._closed = True
            self._output.drop(self._receiver)


class ZeroCopyConnectedUDPSocket(_Datagrams, ConnectedUDPSocket):
    """An anyio UDP socket with one peer that sends through a ring.

    Sends that fail after they were accepted are counted in ``Ring.statistics().failed``; the socket
    goes on, as UDP does.
    """

    async def send(self, item: Buffer) -> None:
        """Send a datagram; returns when it is accepted: sent, or queued within a window of 1 MiB.

        If cancelled, the call has queued nothing.

        :param item: any C-contiguous buffer.  If it can change, the caller may change it when this
            has returned.
        :raises anyio.ClosedResourceError: the socket is closed, or was while this waited.
        :raises anyio.BrokenResourceError: it could not be sent (it may be too large, or the peer
            may refuse it); its cause is the ``OSError``.  The socket is still usable.
        :raises anyio.BusyResourceError: another task is sending.
        """
        await self._send(item)

    async def receive(self) -> bytes:
        """Return the next datagram.

        If cancelled, the call has taken nothing.

        :raises anyio.ClosedResourceError: the socket is closed, or was while this waited.
        :raises anyio.BrokenResourceError: the peer refused one that was sent; its cause is the
            ``OSError``.  The socket is still usable.
        :raises anyio.BusyResourceError: another task is receiving.
        """
        return (await self._receive())[0]


class ZeroCopyUDPSocket(_Datagrams, UDPSocket):
    """An anyio UDP socket without a peer that sends through a ring.

    Sends that fail after they were accepted are counted in ``Ring.statistics().failed``.
    """

    async def send(self, item: UDPPacketType) -> None:
        """Send a datagram to an address: ``(data, (host, port))``; a name is looked up each time.

        If cancelled, the call has queued nothing.

        :param item: the datagram, and the address that it goes to.
        :raises OSError: the name has no address.

        Raises what :meth:`ZeroCopyConnectedUDPSocket.send` raises.
        """
        data, (host, port) = item
        try:
            address = _pack(host, port)
        except ValueError:
            found = await anyio.getaddrinfo(
                host, port, family=self._socket.family, type=socket.SOCK_DGRAM
            )
            address = _pack(*found[0][4])
        await self._send(data, address)

    async def receive(self) -> UDPPacketType:
        """Return the next datagram and where it comes from: ``(data, (host, port))``.

        If cancelled, the call has taken nothing.

        Raises what :meth:`ZeroCopyConnectedUDPSocket.receive` raises.
        """
        data, address = await self._receive()
        if len(address) == 4 and address[3]:
            # The form in which anyio writes an address that belongs to one interface.
            return data, (f"{address[0].partition('%')[0]}%{address[3]}", address[1])
        return data, address[:2]


def _pack(host: str, port: int) -> bytes:
    name, _, scope = host.partition("%")
    if not scope:
        return address_of(name, port)
    return address_of(
        name, port, 0, int(scope) if scope.isdigit() else socket.if_nametoindex(scope)
    )
