"""anyio's UDP sockets that send through a ring."""

from __future__ import annotations

import socket
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from operator import itemgetter
from typing import Any, SupportsIndex, TypeVar

import anyio
from anyio.abc import ConnectedUDPSocket, UDPPacketType, UDPSocket
from anyio.lowlevel import checkpoint

from ._base.halves import Half
from ._native.lib import NO_ADDRESS, address_of
from ._outputs import Output
from ._receiving.receiver import DirectReceiver
from ._ring.ring import Ring
from ._sending.buffers import Buffer, Data
from ._sending.trains import Address, Run, in_batches, in_runs

__all__ = ["ZeroCopyConnectedUDPSocket", "ZeroCopyUDPSocket"]

T = TypeVar("T")
LARGEST = 65536
# include/uapi/linux/udp.h; its level is IPPROTO_UDP.
UDP_GRO = 104
SIZE_BYTES = 4


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
        # Whether the kernel has been asked to hand over many datagrams as one.
        self._gathers = False
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

    async def _send_segments(
        self, data: Data, segment_size: SupportsIndex, address: Any = NO_ADDRESS
    ) -> None:
        with self._sending:
            await self._ring._loop_calls.checkpoint_before()
            self._ring.put_off_yield()
            await self._output.send_segments(data, segment_size, address)
            await self._ring._loop_calls.checkpoint_after()

    async def _send_many(
        self, batches: Iterable[list[T]], in_runs: Callable[[list[T]], list[Run]]
    ) -> None:
        with self._sending:
            await self._ring._loop_calls.checkpoint_before()
            self._ring.put_off_yield()
            await self._output.send_many(batches, in_runs)
            await self._ring._loop_calls.checkpoint_after()

    async def _receive(self) -> tuple[bytes, Any]:
        if not self._gathers:
            return await self._receive_one()
        data, size, address = await self._receive_segments()
        if len(data) > size:
            parts = [data[start : start + size] for start in range(size, len(data), size)]
            self._received.extend((part, address) for part in parts)
        return data[:size], address

    async def _receive_segments(self) -> tuple[bytes, int, Any]:
        """Return what came in one piece, and the size of its datagrams."""
        if not self._gathers and not self._closed:
            # Linux 5.0; without it each datagram comes by itself.
            with suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
            self._gathers = True
        if self._received and not self._closed:
            data, address = await self._receive_one()
            return data, len(data), address
        with self._receiving:
            try:
                data, ancillary, _, address = await self._receiver.call(
                    self._socket.recvmsg, LARGEST, socket.CMSG_SPACE(SIZE_BYTES)
                )
            except OSError as exc:
                raise anyio.BrokenResourceError from exc
        sizes = [
            int.from_bytes(value[:SIZE_BYTES], sys.byteorder)
            for level, kind, value in ancillary
            if (level, kind) == (socket.IPPROTO_UDP, UDP_GRO)
        ]
        return data, sizes[0] if sizes else len(data), address

    async def _receive_one(self) -> tuple[bytes, Any]:
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

    async def send_segments(self, data: Data, segment_size: SupportsIndex) -> None:
        """Send what lies in a buffer as datagrams of one size; the last one may be shorter.

        Returns when they are accepted, see :meth:`send`.  They leave in trains, see
        :meth:`SendGroup.send_segments`.  Cancelled, the call has queued nothing, or the first
        datagrams if there are more than 256 KiB.

        :param data: a C-contiguous buffer, or a sequence of up to 1,024, taken as if they lay one
            behind another.  One that can change is the caller's own again when this returns.
        :param segment_size: bytes of a datagram, at most 65,507 over IPv4.
        :raises ValueError: the segment size is not positive, or the buffer is empty.

        Raises what :meth:`send` raises.
        """
        await self._send_segments(data, segment_size)

    async def send_many(self, datagrams: Iterable[Buffer]) -> None:
        """Send many datagrams; neighbours of one size leave in trains.

        Returns when they are accepted, see :meth:`send`.  A call that is cancelled, or that raises
        for one of them, has queued those before it.

        :param datagrams: a buffer for each, as of :meth:`send`.

        Raises what :meth:`send` raises.
        """
        await self._send_many(in_batches(datagrams), lambda batch: [(batch, NO_ADDRESS)])

    async def receive_segments(self) -> tuple[bytes, int]:
        """Return what came in one piece: ``(data, segment_size)``, datagrams one behind another.

        Each has ``segment_size`` bytes; the last one may be shorter.  The kernel gathers what one
        sender has sent in a train or at once (``UDP_GRO``, Linux 5.0), from the first call on.
        What came before that comes by itself, as everything does on an older kernel.
        :meth:`receive` still returns single datagrams.  What else comes with a datagram, ECN marks
        or ``IP_PKTINFO``, is not handed over.  Cancelled, the call has taken nothing.

        Raises what :meth:`receive` raises.
        """
        data, size, _ = await self._receive_segments()
        return data, size

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
        data, address = item
        await self._send(data, await self._look_up(address))

    async def send_segments(
        self, data: Data, segment_size: SupportsIndex, address: Address
    ) -> None:
        """Send what lies in a buffer as datagrams of one size; the last one may be shorter.

        Cancelled, the call has queued what :meth:`ZeroCopyConnectedUDPSocket.send_segments` says.

        :param data: as of :meth:`ZeroCopyConnectedUDPSocket.send_segments`.
        :param segment_size: the same.
        :param address: ``(host, port)``; a name is looked up each time.
        :raises OSError: the name has no address.

        Raises what :meth:`ZeroCopyConnectedUDPSocket.send_segments` raises.
        """
        await self._send_segments(data, segment_size, await self._look_up(address))

    async def send_many(self, datagrams: Iterable[UDPPacketType]) -> None:
        """Send many datagrams; neighbours of one size and one address leave in trains.

        A call that is cancelled, or that raises for one of them, has queued those before it.

        :param datagrams: each as of :meth:`send`; a name is looked up once in a call.
        :raises OSError: a name has no address; then nothing was queued, nor if the iterable raises.

        Raises what :meth:`send` raises.
        """
        items = list(datagrams)
        addresses = set(map(itemgetter(1), items))
        found = {address: await self._look_up(address) for address in addresses}

        def to_runs(batch: list[UDPPacketType]) -> list[Run]:
            # Nothing here is a step for each datagram in Python.
            return in_runs(map(itemgetter(0), batch), map(found.get, map(itemgetter(1), batch)))

        await self._send_many(in_batches(items), to_runs)

    async def receive_segments(self) -> tuple[bytes, int, Address]:
        """Return what came in one piece: ``(data, segment_size, (host, port))``.

        Cancelled, the call has taken nothing.  See
        :meth:`ZeroCopyConnectedUDPSocket.receive_segments`, also for what it raises.
        """
        data, size, address = await self._receive_segments()
        return data, size, _written(address)

    async def _look_up(self, address: Address) -> bytes:
        host, port = address
        try:
            return _pack(host, port)
        except ValueError:
            found = await anyio.getaddrinfo(
                host, port, family=self._socket.family, type=socket.SOCK_DGRAM
            )
            return _pack(*found[0][4])

    async def receive(self) -> UDPPacketType:
        """Return the next datagram and where it comes from: ``(data, (host, port))``.

        If cancelled, the call has taken nothing.

        Raises what :meth:`ZeroCopyConnectedUDPSocket.receive` raises.
        """
        data, address = await self._receive()
        return data, _written(address)


def _written(address: Any) -> Address:
    """Return an address in the form that anyio has."""
    if len(address) == 4 and address[3]:
        # It belongs to one interface.
        return f"{address[0].partition('%')[0]}%{address[3]}", address[1]
    return address[0], address[1]


def _pack(host: str, port: int) -> bytes:
    name, _, scope = host.partition("%")
    if not scope:
        return address_of(name, port)
    return address_of(
        name, port, 0, int(scope) if scope.isdigit() else socket.if_nametoindex(scope)
    )
