"""Viewers of the live picture: most keep up, some read slowly, some read nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import anyio
from anyio.abc import SocketStream

from .figures import Figures
from .slow import connect_slow, wait_reset
from .waiting import wait_until

__all__ = ["LiveLoad", "Parts"]

RECEIVE = 256 << 10
CONNECTING = 50
GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream)
SLOW_BYTES = 16 << 10
SLOW_SECONDS = 0.5


class Parts:
    """The heads of the parts of a ``multipart/x-mixed-replace`` body, whose bodies are skipped."""

    def __init__(self) -> None:
        self._head = b""
        self._skip = 0

    def feed(self, data: bytes) -> Iterator[dict[str, str]]:
        """Take in bytes, and return the heads of the parts whose bodies are complete or begun."""
        while data:
            if self._skip:
                skipped = min(self._skip, len(data))
                self._skip -= skipped
                data = data[skipped:]
                continue
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._head = b""
            lines = (line.partition(": ") for line in head.decode("latin-1").split("\r\n"))
            fields = {name.lower(): value for name, _, value in lines}
            if "x-frame" in fields:
                self._skip = int(fields["content-length"])
                yield fields


class LiveLoad:
    """See the module.

    A frame that a viewer was too slow for counts as lost.  A frame that the server sends out of
    order counts as disordered.

    :param warm_up: seconds at the beginning whose latencies do not count.
    """

    def __init__(
        self, url: str, *, viewers: int, slow: int, stalled: int, seconds: float, warm_up: float
    ) -> None:
        self.figures = Figures(kind="live", clients=viewers, slow=slow, stalled=stalled)
        self._url = url
        self._seconds = seconds
        self._warm_up = warm_up
        self._first = self._newest = 0
        self._began = 0.0

    async def run(self) -> None:
        """Connect, watch for the given time, and compare."""
        async with anyio.create_task_group() as tasks:
            limiter = anyio.CapacityLimiter(CONNECTING)
            for _ in range(self.figures.clients):
                tasks.start_soon(self._viewer, limiter)
            for number in range(self.figures.slow + self.figures.stalled):
                tasks.start_soon(self._slow, number < self.figures.slow)
            await wait_until(self.figures.all_connected)
            self._began = time.monotonic()
            self._first = self._newest
            end = self._began + self._seconds
            while (now := time.monotonic()) < end:
                self.figures.seconds = now - self._began
                self.figures.sent = self._newest - self._first
                await anyio.sleep(0.1)
            tasks.cancel_scope.cancel()

    async def _viewer(self, limiter: anyio.CapacityLimiter) -> None:
        figures = self.figures
        parts = urlsplit(self._url)
        try:
            async with limiter:
                stream = await anyio.connect_tcp(parts.hostname or "", parts.port or 80)
            async with stream:
                await self._ask(stream)
                heads = Parts()
                last: int | None = None
                while True:
                    for head in heads.feed(await stream.receive(RECEIVE)):
                        number = int(head["x-frame"])
                        if last is None:
                            figures.connected += 1
                        elif self._began:
                            figures.deliveries += 1
                            figures.delivered_bytes += int(head["content-length"])
                            figures.lost += max(number - last - 1, 0)
                            figures.disordered += number <= last
                            if time.monotonic() - self._began > self._warm_up:
                                figures.latencies.append(time.time() - float(head["x-time"]))
                        last = number
                        self._newest = max(self._newest, number)
        except (OSError, *GONE):
            figures.failed += 1

    async def _ask(self, stream: SocketStream) -> None:
        host = urlsplit(self._url).netloc
        await stream.send(f"GET /live HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())

    async def _slow(self, reads: bool) -> None:
        what = "reset"
        try:
            async with await connect_slow(self._url) as stream:
                await self._ask(stream)
                if reads:
                    while True:
                        await stream.receive(SLOW_BYTES)
                        await anyio.sleep(SLOW_SECONDS)
                await wait_reset(stream)
        except anyio.EndOfStream:
            what = "closed"
        except (OSError, *GONE):
            pass
        self.figures.drop(what)
