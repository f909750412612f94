"""Results as a file, and figures made of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.measure.rounds import Result, Round

__all__ = ["CaseResults", "Results", "Spread", "ratio", "spread"]


@dataclass(slots=True)
class CaseResults:
    """All peers in one case."""

    name: str
    size: int
    connections: int
    place: str
    peers: dict[str, Result] = field(default_factory=dict)


@dataclass(slots=True)
class Results:
    """Scenarios by name, with where and when each was measured last, and its cases by name."""

    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    scenarios: dict[str, dict[str, CaseResults]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Results:
        """Read what :meth:`write` wrote; nothing if there is no such file."""
        results = cls()
        if not path.exists():
            return results
        stored = json.loads(path.read_text())
        results.environments = stored["environments"]
        for scenario, cases in stored["scenarios"].items():
            results.scenarios[scenario] = {
                name: CaseResults(**{**case, "peers": _peers(case["peers"])})
                for name, case in cases.items()
            }
        return results

    def write(self, path: Path) -> None:
        """Write; a reader never sees half of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(asdict(self), indent=1) + "\n")
        unfinished.replace(path)

    def rounds(self, scenario: str, case: str, peer: str) -> list[Round]:
        """Return the rounds of a peer; none if it was not measured, or failed."""
        results = self.scenarios.get(scenario, {}).get(case)
        result = results.peers.get(peer) if results is not None else None
        return [] if result is None or result.failure else result.rounds


def _peers(stored: dict[str, dict[str, object]]) -> dict[str, Result]:
    def result(peer: dict[str, object]) -> Result:
        rounds = peer["rounds"]
        assert isinstance(rounds, list)
        made = [Round(**{**one, "memory": _pair(one["memory"])}) for one in rounds]
        return Result(**{**peer, "rounds": made})  # type: ignore[arg-type]

    return {name: result(peer) for name, peer in stored.items()}


def _pair(memory: list[int] | None) -> tuple[int, int] | None:
    return (memory[0], memory[1]) if memory else None


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and its quartiles."""

    low: float
    median: float
    high: float


def spread(values: list[float]) -> Spread:
    """Return the median and the quartiles of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


def ratio(
    ours: list[Round], theirs: list[Round], figure: Callable[[Round], float]
) -> Spread | None:
    """Return how a figure of ours is to theirs, of rounds that ran in the same turn."""
    pairs = [(figure(a), figure(b)) for a, b in zip(ours, theirs, strict=False)]
    values = [a / b for a, b in pairs if b > 0]
    return spread(values) if values else None


def throughput(one: Round) -> float:
    """Bytes a second."""
    return one.bytes / one.seconds


def bytes_for_cpu_second(one: Round) -> float:
    """Bytes for each second of CPU time."""
    return one.bytes / one.cpu_seconds if one.cpu_seconds else 0.0


def operation_seconds(one: Round) -> float:
    """Seconds of one operation."""
    return one.seconds / one.operations


def cpu_per_gigabyte(one: Round) -> float:
    """CPU seconds of 10**9 bytes."""
    return one.cpu_seconds / one.bytes * 1e9 if one.bytes else 0.0


def operation_cpu_seconds(one: Round) -> float:
    """CPU seconds of one operation."""
    return one.cpu_seconds / one.operations


def memory_available(one: Round) -> float:
    """Bytes taken, by MemAvailable."""
    return float(one.memory[0]) if one.memory else 0.0


def memory_sockets(one: Round) -> float:
    """Bytes taken, by the counter of TCP sockets."""
    return float(one.memory[1]) if one.memory else 0.0
