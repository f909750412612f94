"""The metrics of the server, for Prometheus and for the pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, ProcessCollector, generate_latest
from prometheus_client.core import (
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import zc_anyio
from zc_anyio.metrics import RingCollector

__all__ = ["Counted", "Metrics"]


class ServingCollector(Collector):
    """Event loop and driver of the server, and its private memory.

    ``process_resident_memory_bytes`` also counts the page cache that is mapped for sending.
    """

    def __init__(self, backend: str, driver: str) -> None:
        self._labels = {"backend": backend, "driver": driver}

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("serving", "What the server runs on", self._labels)
        text = Path("/proc/self/status").read_text()
        if (match := re.search(r"^RssAnon:\s*(\d+) kB$", text, re.MULTILINE)) is not None:
            yield GaugeMetricFamily(
                "process_private_memory_bytes", "Without mapped files", int(match[1]) * 1024
            )


class Metrics:
    """The metrics of a server, in a registry of their own, to which an application adds its own.

    :ivar requests: requests answered, by status.
    """

    def __init__(self, ring: zc_anyio.Ring, backend: str) -> None:
        self.registry = CollectorRegistry()
        # process_resident_memory_bytes and the like.
        ProcessCollector(registry=self.registry)
        self.registry.register(ServingCollector(backend, ring.capabilities.driver))
        self.registry.register(RingCollector(ring))
        self.requests = Counter(
            "http_requests", "Requests answered", ["status"], registry=self.registry
        )

    async def answer(self, _request: Request) -> Response:
        """Answer ``/metrics``."""
        return Response(
            generate_latest(self.registry),
            media_type=CONTENT_TYPE_PLAIN_0_0_4,
            headers={"cache-control": "no-store"},
        )


class Counted:
    """Middleware that counts answers by their status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._requests = metrics.requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def count(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._requests.labels(str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, count)
