"""Results as a file, and figures made of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    """Scenarios by name: where and when each was measured last, and its cases by name.

    Each scenario is a file of JSON lines: where it was measured, and then for each case what it is,
    and a line for each peer.  So measuring a scenario again changes only its own file, and a peer
    only its own line.
    """

    environments: dict[str, dict[str, str]] = field(default_factory=dict)
    scenarios: dict[str, dict[str, CaseResults]] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Results:
        """Read what :meth:`write` wrote; nothing if there is no such folder."""
        results = cls()
        for file in sorted(folder.glob("*.jsonl")):
            environment, *lines = map(json.loads, file.read_text().splitlines())
            results.environments[file.stem] = environment
            cases = results.scenarios[file.stem] = {}
            for line in lines:
                name = line.pop("case")
                if "size" in line:
                    cases[name] = CaseResults(name, **line)
                else:
                    cases[name].peers[line["peer"]] = _result(**line)
        return results

    def write(self, folder: Path, scenario: str) -> None:
        """Write a scenario; a reader never sees half of it."""
        lines: list[dict[str, Any]] = [dict(self.environments[scenario])]
        for name, case in self.scenarios[scenario].items():
            about = {"size": case.size, "connections": case.connections, "place": case.place}
            lines.append({"case": name, **about})
            lines.extend({"case": name, **_line(result)} for result in case.peers.values())
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"{scenario}.unfinished"
        unfinished.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        unfinished.replace(folder / f"{scenario}.jsonl")

    def rounds(self, scenario: str, case: str, peer: str) -> list[Round]:
        """Return the rounds of a peer; none if it was not measured, or failed."""
        results = self.scenarios.get(scenario, {}).get(case)
        result = results.peers.get(peer) if results is not None else None
        return [] if result is None or result.failure else result.rounds


def _line(result: Result) -> dict[str, Any]:
    """Return a result as columns, each with a figure for each round, without empty columns."""
    rounds = result.rounds
    line: dict[str, Any] = {
        "peer": result.peer,
        "failure": result.failure,
        "skipped": result.skipped,
        "operations": [one.operations for one in rounds],
        "bytes": [one.bytes for one in rounds],
        # The clocks have a resolution of nanoseconds.
        "seconds": [round(one.seconds, 9) for one in rounds],
        "cpu_seconds": [round(one.cpu_seconds, 9) for one in rounds],
        "memory": [one.memory for one in rounds if one.memory is not None],
        "notes": {name: [one.notes[name] for one in rounds] for name in rounds[0].notes}
        if rounds
        else {},
    }
    return {name: value for name, value in line.items() if value}


def _result(
    peer: str,
    failure: str | None = None,
    skipped: str | None = None,
    memory: list[list[int]] | None = None,
    notes: dict[str, list[int]] | None = None,
    **columns: list[Any],
) -> Result:
    figures = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    for number, row in enumerate(figures):
        row["memory"] = (memory[number][0], memory[number][1]) if memory else None
        row["notes"] = {name: values[number] for name, values in (notes or {}).items()}
    return Result(peer, [Round(**row) for row in figures], failure, skipped)


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
    """Return the ratio of a figure of ours to theirs, over rounds that ran in the same turn."""
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
