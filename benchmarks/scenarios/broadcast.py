"""The same bytes to 10, 100, 1,000 and 10,000 connections: a delivery should cost the same."""

from __future__ import annotations

import resource

from benchmarks.measure.rounds import Case
from benchmarks.scenarios.scenario import Scenario, scenario, size_name

SIZES = (64, 1 << 10, 16 << 10, 1 << 20)
# A ring has a duplicate of each socket; some descriptors are for everything else.
_descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
CONNECTIONS = (10, 100, 1_000, min(10_000, (_descriptors - 200) // 2))

scenario(
    Scenario(
        "broadcast",
        "Broadcast of",
        "broadcast",
        tuple(
            Case(f"{size_name(size)} to {connections:,}", size, connections)
            for size in SIZES
            for connections in CONNECTIONS
        ),
        quick=("1 KiB to 100",),
        reference="anyio stream on trio",
        unit="operation",
    )
)
