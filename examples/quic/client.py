"""The client: requests over one connection."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic

import anyio
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import NetworkAddress, QuicConnection
from aioquic.quic.events import QuicEvent, StreamReset

import zc_anyio

from .endpoint import Endpoint, Link

__all__ = ["Client", "Response", "connect"]

# H3_NO_ERROR, RFC 9114, section 8.1.
NO_ERROR = 0x100


@dataclass
class Response:
    """An answer.

    :ivar size: bytes of the body that have arrived.
    :ivar reset: whether the server has given up.
    """

    write: Callable[[bytes], object]
    status: int = 0
    size: int = 0
    ended: bool = False
    reset: bool = False


class Client(Endpoint):
    """One connection to a server."""

    def __init__(
        self,
        sock: zc_anyio.ZeroCopyConnectedUDPSocket,
        configuration: QuicConfiguration,
        address: tuple[str, int],
    ) -> None:
        super().__init__()
        self._socket = sock
        self._address = address
        self._link = Link(QuicConnection(configuration=configuration))
        self._authority = f"[{address[0]}]" if ":" in address[0] else address[0]
        self._responses: dict[int, Response] = {}
        self.links[self._link] = math.inf
        self._link.quic.connect(address, now=monotonic())
        self.changed(self._link)

    async def get(
        self, path: str, write: Callable[[bytes], object], *, method: str = "GET"
    ) -> Response:
        """Ask for a path, and return when the answer is complete.

        :param write: called with each part of the body.
        :raises ConnectionError: the connection has ended, or the server has given up the answer.
        """
        self._link.check()
        stream_id = self._link.quic.get_next_available_stream_id()
        response = self._responses[stream_id] = Response(write)
        try:
            fields = {
                ":method": method,
                ":scheme": "https",
                ":authority": f"{self._authority}:{self._address[1]}",
                ":path": path,
            }
            self._link.h3.send_headers(
                stream_id, [(k.encode(), v.encode()) for k, v in fields.items()], end_stream=True
            )
            self.changed(self._link)
            self.transmit_soon()
            await self._link.wait_until(lambda: response.ended)
            if response.reset:
                raise ConnectionError("the server has given up the answer")
            return response
        finally:
            del self._responses[stream_id]

    async def run(self) -> None:
        """Receive and send until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.run_timers)
            while True:
                data, size = await self._socket.receive_segments()
                now = monotonic()
                for datagram in self.count_received(data, size):
                    self._link.quic.receive_datagram(datagram, self._address, now=now)
                self.changed(self._link)
                await self.transmit()

    async def wait_connected(self) -> None:
        """Wait for the end of the handshake.

        :raises ConnectionError: it has failed.
        """
        await self._link.wait_until(lambda: self._link.agreed)

    async def aclose(self) -> None:
        """Tell the server that the connection ends."""
        self._link.quic.close(error_code=NO_ERROR)
        await self._send(self._link.quic.datagrams_to_send(now=monotonic()))

    async def _send(self, datagrams: list[tuple[bytes, NetworkAddress]]) -> None:
        await self._socket.send_many([data for data, _ in datagrams])

    def _on_quic_event(self, link: Link, event: QuicEvent) -> None:
        assert link is self._link
        if isinstance(event, StreamReset) and event.stream_id in self._responses:
            response = self._responses[event.stream_id]
            response.reset = response.ended = True

    def _on_h3_event(self, link: Link, event: H3Event) -> None:
        assert link is self._link
        if not isinstance(event, HeadersReceived | DataReceived):
            return
        if (response := self._responses.get(event.stream_id)) is None:
            return
        if isinstance(event, DataReceived):
            response.size += len(event.data)
            response.write(event.data)
        elif response.status == 0:
            response.status = int(dict(event.headers)[b":status"])
        response.ended |= event.stream_ended


@asynccontextmanager
async def connect(host: str, port: int, configuration: QuicConfiguration) -> AsyncIterator[Client]:
    """Connect within a ring's scope.

    :raises ConnectionError: the handshake has failed.
    """
    async with await zc_anyio.create_connected_udp_socket(host, port) as sock:
        client = Client(sock, configuration, (host, port))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.run)
            try:
                await client.wait_connected()
                yield client
            finally:
                tasks.cancel_scope.cancel()
        await client.aclose()
