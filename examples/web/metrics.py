"""The metrics of the server, for Prometheus and for the pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

import zc_anyio

from .exchange import Exchange, Request

__all__ = ["Metrics"]

COUNTERS = {
    "sends": "Sends queued",
    "bytes_sent": "Bytes that sockets have taken",
    "zero_copied": "Sends that the kernel did not copy, by its own report",
    "copied": "Sends that the kernel copied",
    "staged": "Small sends, gathered in memory of the ring",
    "failed": "Sends that failed or were cancelled",
    "generations_released": "Generations whose buffers are free again",
}
GAUGES = {
    "queued": "Sends not submitted yet",
    "in_flight": "Sends submitted, without a result yet",
    "held": "Sends whose buffers the kernel still reads",
    "generations_open": "Generations not released yet",
}


class RingCollector(Collector):
    """The counters of a ring, read when the metrics are."""

    def __init__(self, ring: zc_anyio.Ring) -> None:
        self._ring = ring

    def collect(self) -> Iterator[Metric]:
        statistics = self._ring.statistics()
        for name, text in COUNTERS.items():
            yield CounterMetricFamily(f"zc_{name}", text, getattr(statistics, name))
        for name, text in GAUGES.items():
            yield GaugeMetricFamily(f"zc_{name}", text, getattr(statistics, name))


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

    :ivar connections: open connections.
    :ivar requests: requests answered, by status.
    :ivar refused: connections and requests refused, by reason.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        # process_resident_memory_bytes and the like.
        ProcessCollector(registry=self.registry)
        self.connections = Gauge("http_connections", "Open", registry=self.registry)
        self.requests = Counter(
            "http_requests", "Requests answered", ["status"], registry=self.registry
        )
        self.refused = Counter(
            "http_refused", "Connections and the like refused", ["reason"], registry=self.registry
        )

    def tell_serving(self, *, backend: str, ring: zc_anyio.Ring | None) -> None:
        """Add what the server runs on, and the counters of its ring."""
        driver = "plain" if ring is None else ring.capabilities.driver
        self.registry.register(ServingCollector(backend, driver))
        if ring is not None:
            self.registry.register(RingCollector(ring))

    async def handle(self, request: Request, exchange: Exchange) -> None:
        """Answer ``/metrics``."""
        request.allow("GET")
        await exchange.respond(
            200,
            generate_latest(self.registry),
            content_type=CONTENT_TYPE_PLAIN_0_0_4,
            headers=[("cache-control", "no-store")],
        )
