"""UDP into a device that drops every datagram with its pages untouched."""

from __future__ import annotations

from benchmarks.measure.rounds import Case, measure_datagrams
from benchmarks.scenarios.scenario import Scenario, scenario, size_name

scenario(
    Scenario(
        "datagrams",
        "UDP, datagrams of",
        "datagram",
        tuple(Case(size_name(size), size) for size in (1_400, 4 << 10, 16 << 10, 60_000)),
        quick=("60,000 B",),
        reference="anyio UDP socket on trio",
        places=("lab",),
        measure=measure_datagrams,
    )
)
