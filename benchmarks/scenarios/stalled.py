"""One buffer queued for many peers that read nothing: how much memory and time it takes."""

from __future__ import annotations

from benchmarks.measure.rounds import Case, measure_queueing
from benchmarks.scenarios.scenario import Scenario, scenario

scenario(
    Scenario(
        "stalled",
        "Held by peers that read nothing:",
        "stalled",
        (
            Case("1 MiB to 20", 1 << 20, 20),
            Case("1 MiB to 200", 1 << 20, 200),
            Case("1 MiB to 2,000", 1 << 20, 2_000),
        ),
        quick=("1 MiB to 20",),
        reference="socket.send loop",
        unit="memory",
        places=("lab",),
        measure=measure_queueing,
        once=True,
    )
)
