"""UDP into a device that drops every datagram with its pages untouched."""

from __future__ import annotations

from benchmarks.measure.rounds import Case, measure_datagrams
from benchmarks.scenarios.scenario import Scenario, scenario, size_name

# What QUIC sends, what fits into Ethernet, a page, a jumbo frame, and nearly the most there is.
SIZES = (1_200, 1_400, 4 << 10, 8_900, 60_000)

scenario(
    Scenario(
        "datagrams",
        "UDP, datagrams of",
        "datagram",
        tuple(Case(size_name(size), size) for size in SIZES),
        quick=("60,000 B",),
        reference="anyio UDP socket on trio",
        places=("lab",),
        measure=measure_datagrams,
    )
)
