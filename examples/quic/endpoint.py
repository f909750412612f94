"""What a server and a client have in common: QUIC connections that share a UDP socket."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

import anyio
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import H3Event
from aioquic.quic.connection import NetworkAddress, QuicConnection
from aioquic.quic.events import ConnectionTerminated, ProtocolNegotiated, QuicEvent
from anyio.lowlevel import checkpoint

__all__ = ["INTERNAL_ERROR", "Endpoint", "Figures", "Link"]

# Bytes of a stream that may wait to be sent or acknowledged.
STREAM_BUFFER = 1 << 20
ANSWERS_MOST = 1000
# Timers are looked at this many seconds after something was sent, at the earliest: aioquic's pacing
# asks for single packets, and those of a while leave in one train.
GRANULARITY = 1e-3
# H3_INTERNAL_ERROR, RFC 9114, section 8.1.
INTERNAL_ERROR = 0x102
logger = logging.getLogger(__name__)


@dataclass
class Figures:
    """What an endpoint has received and sent.

    :ivar pieces: what came in one call each.
    :ivar calls: how often datagrams were handed to the socket.
    """

    pieces: int = 0
    received: int = 0
    calls: int = 0
    sent: int = 0


class Link:
    """A QUIC connection, and HTTP/3 on it as soon as that is agreed.

    :ivar closed: why the connection has ended.
    """

    def __init__(self, quic: QuicConnection) -> None:
        self.quic = quic
        self._h3: H3Connection | None = None
        self.closed: ConnectionTerminated | None = None
        self._waiting: dict[anyio.Event, Callable[[], bool]] = {}

    @property
    def h3(self) -> H3Connection:
        """HTTP/3; there is none before the handshake has agreed on it."""
        assert self._h3 is not None
        return self._h3

    @property
    def agreed(self) -> bool:
        """Whether the handshake has come so far that HTTP/3 can be spoken."""
        return self._h3 is not None

    def h3_events(self, event: QuicEvent) -> list[H3Event]:
        """Return what an event of QUIC means to HTTP/3."""
        if isinstance(event, ProtocolNegotiated):
            self._h3 = H3Connection(self.quic)
        return [] if self._h3 is None else self._h3.handle_event(event)

    def progressed(self) -> None:
        """Wake those for whom what they wait for has come."""
        for waiter, reached in list(self._waiting.items()):
            if self.closed is not None or reached():
                waiter.set()

    async def wait_until(self, reached: Callable[[], bool]) -> None:
        """Wait until something holds, which is looked at when something was received.

        :raises ConnectionError: the connection has ended.
        """
        self.check()
        if reached():
            await checkpoint()
            return
        waiter = anyio.Event()
        self._waiting[waiter] = reached
        try:
            await waiter.wait()
        finally:
            del self._waiting[waiter]
        self.check()

    def check(self) -> None:
        """Raise :exc:`ConnectionError` if the connection has ended."""
        if self.closed is not None:
            raise ConnectionError(self.closed.reason_phrase or f"code {self.closed.error_code}")

    async def wait_room(self, stream_id: int) -> None:
        """Wait until a stream's buffer is not full: aioquic itself takes any amount.

        :raises ConnectionError: the connection has ended.
        """
        await self.wait_until(lambda: self._buffered(stream_id) < STREAM_BUFFER)

    def _buffered(self, stream_id: int) -> int:
        # aioquic (1.7) has no public way to ask, and no event for what was acknowledged.
        stream = self.quic._streams.get(stream_id)
        return 0 if stream is None else len(stream.sender._buffer)


class Endpoint(ABC):
    """Links, their timers, and what they have to send.

    :ivar links: those that have not ended, and when the timer of each runs out.
    """

    def __init__(self) -> None:
        self.links: dict[Link, float] = {}
        self.figures = Figures()
        self._due: set[Link] = set()
        self._answers: list[tuple[bytes, NetworkAddress]] = []
        self._sends = False
        self._wake = anyio.Event()
        self._sleep = anyio.CancelScope()

    @abstractmethod
    async def _send(self, datagrams: list[tuple[bytes, NetworkAddress]]) -> None: ...

    @abstractmethod
    def _on_quic_event(self, link: Link, event: QuicEvent) -> None: ...

    @abstractmethod
    def _on_h3_event(self, link: Link, event: H3Event) -> None: ...

    def count_received(self, data: bytes, segment_size: int) -> list[bytes]:
        """Cut what came in one piece into its datagrams."""
        step = max(segment_size, 1)
        datagrams = [data[start : start + step] for start in range(0, len(data), step)]
        self.figures.pieces += 1
        self.figures.received += len(datagrams)
        return datagrams

    def changed(self, link: Link) -> None:
        """Handle a link's events; :meth:`transmit` sends what it has to send."""
        if link.closed is not None:
            return
        while (event := link.quic.next_event()) is not None:
            if isinstance(event, ConnectionTerminated):
                self._ended(link, event)
            self._on_quic_event(link, event)
            for h3_event in link.h3_events(event):
                self._on_h3_event(link, h3_event)
        link.progressed()
        self._due.add(link)

    @contextmanager
    def guarded(self, link: Link) -> Iterator[None]:
        """Drop a link when something fails that has to do with it: others go on."""
        try:
            yield
        except Exception as exc:
            logger.warning("a connection is dropped: %r", exc)
            failure = ConnectionTerminated(INTERNAL_ERROR, None, "it has failed")
            self._ended(link, failure)
            self._on_quic_event(link, failure)
            link.progressed()

    def _ended(self, link: Link, event: ConnectionTerminated) -> None:
        link.closed = event
        self.links.pop(link, None)

    def answer(self, datagram: bytes, address: NetworkAddress) -> None:
        """Have a datagram sent that belongs to no link; if many wait already, it is dropped."""
        if len(self._answers) < ANSWERS_MOST:
            self._answers.append((datagram, address))

    async def transmit(self) -> None:
        """Send what links have to send.

        Who has received calls this itself: what an acknowledgement lets go then leaves without
        another task.  What a call finds that another one is sending for is left to that one.
        """
        if self._sends:
            return
        self._sends = True
        try:
            while self._due or self._answers:
                now = monotonic()
                due, self._due = self._due, set()
                datagrams, self._answers = self._answers, []
                for link in due:
                    with self.guarded(link):
                        datagrams += link.quic.datagrams_to_send(now=now)
                        if link in self.links:
                            self.links[link] = link.quic.get_timer() or math.inf
                if datagrams:
                    self.figures.calls += 1
                    self.figures.sent += len(datagrams)
                    await self._send(datagrams)
        finally:
            self._sends = False
        self._sleep.deadline = self._next_look()

    def transmit_soon(self) -> None:
        """Have another task send what links have to send."""
        self._wake.set()

    async def run_timers(self) -> None:
        """Run the timers of links, and send what they lead to, until cancelled."""
        while True:
            now = monotonic()
            for link in [link for link, deadline in self.links.items() if deadline <= now]:
                with self.guarded(link):
                    link.quic.handle_timer(now=now)
                    self.changed(link)
            await self.transmit()
            with anyio.CancelScope(deadline=self._next_look()) as self._sleep:
                await self._wake.wait()
            self._wake = anyio.Event()

    def _next_look(self) -> float:
        """Return when, by the clock of the event loop, the next timer has run out for sure."""
        wait = min(self.links.values(), default=math.inf) - monotonic()
        return anyio.current_time() + max(wait, GRANULARITY)
