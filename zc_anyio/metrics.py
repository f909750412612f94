"""A ring's counters for Prometheus; needs ``prometheus-client``, the extra ``metrics``."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from ._ring.ring import Ring

__all__ = ["RingCollector"]

# The metric's name, the statistic, and what it counts.  Prometheus' names end in the unit; the
# client adds "_total" to those of counters.
COUNTERS = [
    ("sends", "sends", "Sends that were accepted"),
    ("sent_bytes", "bytes_sent", "Bytes that the kernel has taken"),
    ("zero_copied_sends", "zero_copied", "Sends that the kernel did not copy, by its own report"),
    ("copied_sends", "copied", "Sends of which the kernel copied a part, by its own report"),
    ("encrypted_sends", "kernel_tls", "Sends that the kernel encrypted, which are copied"),
    ("staged_sends", "staged", "Small sends that were gathered in the ring's own memory"),
    ("failed_sends", "failed", "Sends that ended in an error or were cancelled"),
    ("released_generations", "generations_released", "Generations whose buffers are free again"),
    ("requests", "requests", "Requests to send; one may carry several sends"),
    ("registered_requests", "registered", "Requests that read from registered memory"),
    ("refused_requests", "refused", "Zero-copy requests copied for want of memory to pin"),
    ("submissions", "submits", "Times the kernel was entered to submit"),
    ("completions", "completions", "Results and notifications of sends"),
    ("receives", "receives", "Times that bytes were received through the ring"),
]
GAUGES = [
    ("queued_sends", "queued", "Sends that are not submitted yet"),
    ("in_flight_sends", "in_flight", "Sends that are submitted and have no result yet"),
    ("held_sends", "held", "Sends that are taken, whose buffers the kernel still reads"),
    ("open_generations", "generations_open", "Generations that are not released yet"),
    ("receivers", "receivers", "Sockets that receive through the ring"),
]


class RingCollector(Collector):
    """What :meth:`zc_anyio.Ring.statistics` says, as metrics whose names begin with ``zc_anyio_``.

    Register it with the registry that your program exposes.  It reads the counters whenever the
    registry is collected, and costs nothing until then.  When the ring has ended, it gives their
    last values.

    Collect in the ring's thread, for example in an asynchronous handler that returns
    ``prometheus_client.generate_latest()``; from another thread, such as that of
    ``prometheus_client.start_http_server``, collecting raises ``RuntimeError``.

    :param ring: the ring to read; a registry takes the metrics of one.
    """

    def __init__(self, ring: Ring) -> None:
        self._ring = ring

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics, as ``prometheus_client`` asks for them.

        :raises RuntimeError: the ring is open and belongs to another thread or process.
        """
        statistics = self._ring.statistics()
        yield InfoMetricFamily(
            "zc_anyio_ring", "What carries the sends", {"driver": statistics.driver}
        )
        for name, statistic, text in COUNTERS:
            yield CounterMetricFamily(f"zc_anyio_{name}", text, getattr(statistics, statistic))
        for name, statistic, text in GAUGES:
            yield GaugeMetricFamily(f"zc_anyio_{name}", text, getattr(statistics, statistic))
