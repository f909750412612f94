"""Tables: what each peer reached in a case, for the terminal and for a page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.table import Table

from benchmarks.measure.rounds import Result, Round
from benchmarks.report import results as figures
from benchmarks.report.results import CaseResults, Spread, ratio, spread
from benchmarks.scenarios.scenario import Scenario

__all__ = ["case_rows", "case_table", "columns", "spread_text"]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of figures.

    :ivar scale: the factor that gives a figure its unit.
    :ivar inverse: less is better, so the ratio to the reference is inverted.
    """

    title: str
    figure: Callable[[Round], float]
    scale: float
    inverse: bool = False


THROUGHPUT = Column("GB/s", figures.throughput, 1e-9)
OPERATION = Column("us each", figures.operation_seconds, 1e6, inverse=True)
OPERATION_CPU = Column("CPU us each", figures.operation_cpu_seconds, 1e6, inverse=True)
CPU = Column("CPU s/GB", figures.cpu_per_gigabyte, 1.0, inverse=True)
COLUMNS = {
    "throughput": (THROUGHPUT, OPERATION, CPU),
    "operation": (OPERATION, OPERATION_CPU, THROUGHPUT),
    "memory": (
        Column("MB, MemAvailable", figures.memory_available, 1e-6, inverse=True),
        Column("MB, sockets", figures.memory_sockets, 1e-6, inverse=True),
        Column("ms to queue", lambda one: one.seconds, 1e3, inverse=True),
    ),
}


def columns(scenario: Scenario) -> list[str]:
    """Return the titles of a scenario's table."""
    titles = [column.title for column in COLUMNS[scenario.unit]]
    return ["peer", *titles, "times as good"]


def spread_text(value: Spread) -> str:
    """Write a median and its quartiles with three significant digits."""

    def number(one: float) -> str:
        digits = 0 if abs(one) >= 100 else 1 if abs(one) >= 10 else 2 if abs(one) >= 1 else 3
        return f"{one:,.{digits}f}"

    return f"{number(value.median)} ({number(value.low)}-{number(value.high)})"


def case_rows(scenario: Scenario, case: CaseResults) -> list[list[str]]:
    """Return a row for each peer; the last column compares with the scenario's reference."""
    reference = case.peers.get(scenario.reference or "")
    return [_row(scenario, result, reference) for result in case.peers.values()]


def _row(scenario: Scenario, result: Result, reference: Result | None) -> list[str]:
    shown = COLUMNS[scenario.unit]
    if result.failure or not result.rounds:
        reason = f"failed: {result.failure}" if result.failure else f"not run: {result.skipped}"
        return [result.peer, reason, *[""] * len(shown)]
    cells = [
        spread_text(spread([column.figure(one) * column.scale for one in result.rounds]))
        for column in shown
    ]
    # The first column is the main figure of a scenario; for memory it is the sockets' counter.
    main = shown[0] if scenario.unit != "memory" else shown[1]
    compared = ""
    if reference is not None and reference is not result and reference.rounds:
        pair = (reference, result) if main.inverse else (result, reference)
        found = ratio(pair[0].rounds, pair[1].rounds, main.figure)
        compared = spread_text(found) if found else ""
    return [result.peer, *cells, compared]


def case_table(scenario: Scenario, case: CaseResults) -> Table:
    """Return a table for the terminal."""
    where = "" if case.place == "lab" else f" ({case.place})"
    table = Table(title=f"{scenario.title} {case.name}{where}", title_justify="left")
    for number, title in enumerate(columns(scenario)):
        table.add_column(title, justify="right" if number else "left", no_wrap=number != 1)
    for row in case_rows(scenario, case):
        ours = row[0].startswith("zc_anyio")
        table.add_row(*row, style="bold green" if ours else None)
    if scenario.reference:
        table.caption = f"median (quartiles); the last column compares with {scenario.reference}"
    return table
