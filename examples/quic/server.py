"""The server: which connection a datagram belongs to, and which new ones are taken."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic

import anyio
from aioquic.buffer import Buffer
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE, QuicConfiguration
from aioquic.quic.connection import NetworkAddress, QuicConnection
from aioquic.quic.events import (
    ConnectionIdIssued,
    ConnectionIdRetired,
    ConnectionTerminated,
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)
from aioquic.quic.packet import (
    QuicHeader,
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
    pull_quic_header,
)
from aioquic.quic.retry import QuicRetryTokenHandler
from anyio.abc import TaskGroup

import zc_anyio

from .endpoint import Endpoint, Link
from .files import Files

__all__ = ["Limits", "Server"]

# H3_NO_ERROR and H3_EXCESSIVE_LOAD, RFC 9114, section 8.1.
NO_ERROR = 0x100
EXCESSIVE_LOAD = 0x107


@dataclass(frozen=True)
class Limits:
    """What peers may use.

    :ivar connections: at once; further ones get no answer.
    :ivar requests: of one connection, at once; further ones are answered with 503.
    :ivar stream_bytes: that a peer may send on one stream: requests have no bodies worth more.
    """

    connections: int = 100
    requests: int = 16
    stream_bytes: int = 256 << 10


class Served(Link):
    """A connection with its requests by stream: not complete, and under way."""

    def __init__(self, quic: QuicConnection) -> None:
        super().__init__(quic)
        self.ids: set[bytes] = set()
        self.asked: dict[int, HeadersReceived] = {}
        self.requests: dict[int, anyio.CancelScope] = {}
        self.received: dict[int, int] = {}


class Server(Endpoint):
    """Serves a folder to everyone who proves, by Retry, that an address is theirs."""

    def __init__(
        self, configuration: QuicConfiguration, files: Files, limits: Limits | None = None
    ) -> None:
        super().__init__()
        self._configuration = configuration
        self._files = files
        self._limits = limits or Limits()
        self._retry = QuicRetryTokenHandler()
        self._by_id: dict[bytes, Served] = {}
        self._socket: zc_anyio.ZeroCopyUDPSocket
        self._tasks: TaskGroup

    async def serve(self, sock: zc_anyio.ZeroCopyUDPSocket) -> None:
        """Serve until cancelled; then peers are told that connections end."""
        self._socket = sock
        try:
            async with anyio.create_task_group() as self._tasks:
                self._tasks.start_soon(self.run_timers)
                while True:
                    try:
                        data, size, address = await sock.receive_segments()
                    except anyio.BrokenResourceError:
                        continue
                    self._received(self.count_received(data, size), address)
                    await self.transmit()
        finally:
            with anyio.move_on_after(1, shield=True):
                await self._close_all()

    def _received(self, datagrams: list[bytes], address: NetworkAddress) -> None:
        now = monotonic()
        arrived: dict[Served, list[bytes]] = {}
        for datagram in datagrams:
            if (link := self._link_of(datagram, address, now)) is not None:
                arrived.setdefault(link, []).append(datagram)
        for link, parts in arrived.items():
            with self.guarded(link):
                for part in parts:
                    link.quic.receive_datagram(part, address, now=now)
                self.changed(link)

    def _link_of(self, datagram: bytes, address: NetworkAddress, now: float) -> Served | None:
        try:
            header = pull_quic_header(
                Buffer(data=datagram), host_cid_length=self._configuration.connection_id_length
            )
        except ValueError:
            return None
        if (link := self._by_id.get(header.destination_cid)) is not None:
            return link
        if (
            len(datagram) < SMALLEST_MAX_DATAGRAM_SIZE
            or header.version is None
            or header.packet_type == QuicPacketType.VERSION_NEGOTIATION
        ):
            return None
        if header.version not in self._configuration.supported_versions:
            negotiation = encode_quic_version_negotiation(
                source_cid=header.destination_cid,
                destination_cid=header.source_cid,
                supported_versions=self._configuration.supported_versions,
            )
            self.answer(negotiation, address)
            return None
        if header.packet_type != QuicPacketType.INITIAL:
            return None
        return self._accept(header, address, now)

    def _accept(self, header: QuicHeader, address: NetworkAddress, now: float) -> Served | None:
        """Return a new connection; ``None``: the address is not proven, or there are too many."""
        version = header.version or 0
        if not header.token:
            source_cid = os.urandom(self._configuration.connection_id_length)
            token = self._retry.create_token(
                address=address,
                original_destination_connection_id=header.destination_cid,
                retry_source_connection_id=source_cid,
                now=now,
            )
            retry = encode_quic_retry(
                version=version,
                source_cid=source_cid,
                destination_cid=header.source_cid,
                original_destination_cid=header.destination_cid,
                retry_token=token,
            )
            self.answer(retry, address)
            return None
        if len(self.links) >= self._limits.connections:
            return None
        try:
            original = self._retry.validate_token(
                address=address, destination_cid=header.destination_cid, token=header.token, now=now
            )
        except ValueError:
            return None
        quic = QuicConnection(
            configuration=self._configuration,
            original_destination_connection_id=original,
            retry_source_connection_id=header.destination_cid,
        )
        link = Served(quic)
        self.links[link] = math.inf
        self._add_id(link, header.destination_cid)
        self._add_id(link, quic.host_cid)
        return link

    def _add_id(self, link: Served, connection_id: bytes) -> None:
        self._by_id[connection_id] = link
        link.ids.add(connection_id)

    async def _send(self, datagrams: list[tuple[bytes, NetworkAddress]]) -> None:
        # An address may be unreachable; QUIC sends again what was lost of others.
        with suppress(anyio.BrokenResourceError):
            await self._socket.send_many(datagrams)

    def _on_quic_event(self, link: Link, event: QuicEvent) -> None:
        assert isinstance(link, Served)
        if isinstance(event, ConnectionIdIssued):
            self._add_id(link, event.connection_id)
        elif isinstance(event, ConnectionIdRetired):
            self._by_id.pop(event.connection_id, None)
            link.ids.discard(event.connection_id)
        elif isinstance(event, StreamDataReceived):
            total = link.received.get(event.stream_id, 0) + len(event.data)
            link.received[event.stream_id] = total
            if total > self._limits.stream_bytes:
                link.quic.close(error_code=EXCESSIVE_LOAD, reason_phrase="a stream is too long")
        elif isinstance(event, StreamReset | StopSendingReceived):
            link.received.pop(event.stream_id, None)
            link.asked.pop(event.stream_id, None)
            if (scope := link.requests.get(event.stream_id)) is not None:
                scope.cancel()
        elif isinstance(event, ConnectionTerminated):
            for connection_id in link.ids:
                self._by_id.pop(connection_id, None)
            for scope in link.requests.values():
                scope.cancel()

    def _on_h3_event(self, link: Link, event: H3Event) -> None:
        assert isinstance(link, Served)
        if not isinstance(event, HeadersReceived | DataReceived):
            return
        if isinstance(event, HeadersReceived):
            # A second header would be the trailer.
            link.asked.setdefault(event.stream_id, event)
        if not event.stream_ended or (request := link.asked.pop(event.stream_id, None)) is None:
            return
        if len(link.requests) >= self._limits.requests:
            self._files.refuse(link, request.stream_id, 503)
            return
        link.requests[request.stream_id] = anyio.CancelScope()
        self._tasks.start_soon(self._answer, link, request)

    async def _answer(self, link: Served, event: HeadersReceived) -> None:
        try:
            with link.requests[event.stream_id], self.guarded(link), suppress(ConnectionError):
                await self._files.answer(self, link, event)
        finally:
            del link.requests[event.stream_id]
            link.received.pop(event.stream_id, None)

    async def _close_all(self) -> None:
        now = monotonic()
        farewell = []
        for link in self.links:
            link.quic.close(error_code=NO_ERROR)
            farewell += link.quic.datagrams_to_send(now=now)
        await self._send(farewell)
