"""The figures of a load: counts, latencies, and the memory of the server."""

from __future__ import annotations

import math
import urllib.request
from array import array
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

import anyio.to_thread
from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Figures", "Memory", "scrape"]

MIB = 1 << 20
PERCENTILES = (0.5, 0.9, 0.99, 0.999)


async def scrape(url: str) -> dict[str, float]:
    """Return the metrics of a server by name; those that differ only in labels are added up."""

    def get() -> str:
        with urllib.request.urlopen(url.rstrip("/") + "/metrics", timeout=30) as answer:
            return str(answer.read().decode())

    values: dict[str, float] = {}
    for family in text_string_to_metric_families(await anyio.to_thread.run_sync(get)):
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
    return values


@dataclass(slots=True)
class Memory:
    """The server's memory, over time.

    :ivar seconds: since the load began.
    :ivar resident: bytes.
    """

    seconds: list[float] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)

    def add(self, seconds: float, metrics: dict[str, float]) -> None:
        """Note the server's memory."""
        self.seconds.append(seconds)
        self.resident.append(metrics["process_resident_memory_bytes"])

    def after(self, seconds: float) -> list[float]:
        """Return the memory noted from a time on."""
        return self.resident[bisect_left(self.seconds, seconds) :]


@dataclass(slots=True, kw_only=True)
class Figures:
    """What a load has seen so far.

    :ivar kind: of load.
    :ivar clients: connections that keep up, or should.
    :ivar slow: connections that read slowly.
    :ivar stalled: connections that read nothing.
    :ivar sent: messages or frames that should be delivered.
    :ivar deliveries: deliveries of these to clients that keep up.
    :ivar delivered_bytes: bytes of these deliveries.
    :ivar lost: deliveries that clients which keep up should have got, and did not.
    :ivar disordered: deliveries out of order.
    :ivar failed: clients that should have kept up, and were dropped.
    :ivar dropped: slow and stalled clients that the server has dropped, by its reason.
    :ivar latencies: seconds, one for each delivery after the warm-up.
    """

    kind: str
    clients: int
    slow: int
    stalled: int
    seconds: float = 0.0
    connected: int = 0
    sent: int = 0
    deliveries: int = 0
    delivered_bytes: int = 0
    lost: int = 0
    disordered: int = 0
    failed: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    latencies: array[float] = field(default_factory=lambda: array("d"))
    memory: Memory = field(default_factory=Memory)
    metrics: dict[str, float] = field(default_factory=dict)

    def all_connected(self) -> bool:
        """Whether every client that should keep up has been connected, or has failed."""
        return self.connected + self.failed >= self.clients

    def drop(self, what: str) -> None:
        """Count a slow or stalled client that was dropped."""
        self.dropped[what] = self.dropped.get(what, 0) + 1

    def percentiles(self) -> dict[str, float]:
        """Return latencies in milliseconds."""
        ordered = sorted(self.latencies)
        if not ordered:
            return {}
        names = {
            f"p{100 * p:g}": min(math.ceil(p * len(ordered)), len(ordered)) for p in PERCENTILES
        }
        found = {name: 1000 * ordered[place - 1] for name, place in names.items()}
        return found | {"max": 1000 * ordered[-1]}

    def as_json(self, warm_up: float) -> dict[str, Any]:
        """Return everything, for ``--json``."""
        resident = self.memory.after(warm_up)
        return {
            "kind": self.kind,
            "clients": self.clients,
            "slow": self.slow,
            "stalled": self.stalled,
            "seconds": round(self.seconds, 2),
            "sent": self.sent,
            "deliveries": self.deliveries,
            "deliveries_per_second": round(self.deliveries / max(self.seconds, 1e-9), 1),
            "delivered_bytes": self.delivered_bytes,
            "lost": self.lost,
            "disordered": self.disordered,
            "failed": self.failed,
            "dropped": self.dropped,
            "latency_ms": {name: round(value, 2) for name, value in self.percentiles().items()},
            "server_resident_mib": {
                "after_warm_up": round(resident[0] / MIB, 1) if resident else None,
                "end": round(resident[-1] / MIB, 1) if resident else None,
                "most": round(max(resident) / MIB, 1) if resident else None,
            },
            "server_metrics": self.metrics,
        }
