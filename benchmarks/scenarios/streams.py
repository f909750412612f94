"""One TCP stream, from 64 B to 4 MiB; and the same by each driver, and over loopback."""

from __future__ import annotations

from benchmarks.measure.rounds import Case
from benchmarks.scenarios.scenario import Scenario, scenario, size_name

SIZES = (64, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20)


def _cases(*sizes: int) -> tuple[Case, ...]:
    return tuple(Case(size_name(size), size) for size in sizes)


scenario(
    Scenario(
        "stream",
        "One TCP stream, sends of",
        "stream",
        _cases(*SIZES),
        quick=("64 B", "64 KiB"),
        reference="anyio stream on trio",
    )
)
scenario(
    Scenario(
        "drivers",
        "One TCP stream by each driver, sends of",
        "driver",
        _cases(*SIZES),
        quick=("64 B", "64 KiB"),
        reference="zc_anyio by copy",
    )
)
scenario(
    Scenario(
        "one-at-a-time",
        "One TCP stream, each send leaves before the next is made, sends of",
        "one at a time",
        _cases(64, 1 << 10, 16 << 10, 64 << 10),
        quick=("64 B",),
        reference="anyio stream on trio",
        unit="operation",
    )
)
scenario(
    Scenario(
        "loopback",
        "One TCP stream over loopback, sends of",
        "stream",
        _cases(*SIZES),
        quick=("64 KiB",),
        reference="anyio stream on trio",
        places=("loopback",),
    )
)
scenario(
    Scenario(
        "loopback-one-at-a-time",
        "One TCP stream over loopback, each send leaves before the next is made, sends of",
        "one at a time",
        _cases(64, 1 << 10, 16 << 10, 64 << 10),
        quick=(),
        reference="anyio stream on trio",
        unit="operation",
        places=("loopback",),
    )
)
