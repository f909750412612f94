"""What a scenario is: cases, and the kind of peers that are compared in them.

Each module of this folder adds its scenarios with :func:`scenario`.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.measure.rounds import Case, Measure, measure_sending

__all__ = ["Scenario", "Unit", "all_scenarios", "scenario", "size_name"]

# What is measured: bytes a second, the time of one operation, or memory.
Unit = Literal["throughput", "operation", "memory"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A comparison.

    :ivar kind: the kind of the peers that take part.
    :ivar places: where it can be measured, the best first.
    :ivar reference: the peer that others are compared with.
    :ivar once: a round does its work only once, instead of as often as fits into its time.
    :ivar quick: the cases of a quick run, by name.
    """

    name: str
    title: str
    kind: str
    cases: tuple[Case, ...]
    quick: tuple[str, ...]
    reference: str | None = None
    unit: Unit = "throughput"
    places: tuple[str, ...] = ("lab", "loopback")
    measure: Measure = measure_sending
    once: bool = False


_scenarios: dict[str, Scenario] = {}


def scenario(added: Scenario) -> None:
    """Add a scenario."""
    assert added.name not in _scenarios, added.name
    _scenarios[added.name] = added


def all_scenarios() -> dict[str, Scenario]:
    """Return the scenarios of all modules of this folder, by name."""
    for path in sorted(Path(__file__).parent.glob("*.py")):
        importlib.import_module(f"benchmarks.scenarios.{path.stem}")
    return _scenarios


def size_name(size: int) -> str:
    """Return a size as people write it."""
    for factor, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= factor and size % factor == 0:
            return f"{size // factor} {name}"
    return f"{size:,} B"
