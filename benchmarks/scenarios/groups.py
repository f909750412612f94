"""What a group that sends nothing costs."""

from __future__ import annotations

from benchmarks.measure.rounds import Case, measure_entering
from benchmarks.scenarios.scenario import Scenario, scenario

scenario(
    Scenario(
        "empty-group",
        "Entering and leaving",
        "empty group",
        (Case("a group without sends", 0),),
        quick=("a group without sends",),
        unit="operation",
        measure=measure_entering,
    )
)
