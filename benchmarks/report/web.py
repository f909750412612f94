"""One application under several servers: tables, the numbers to reach, and a plot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib import pyplot
from rich.table import Table

from benchmarks.measure.rounds import Result, Round
from benchmarks.report import results as figures
from benchmarks.report.results import CaseResults, Results, Spread, ratio, spread
from benchmarks.report.tables import spread_text

__all__ = ["SCENARIO", "case_columns", "case_rows", "case_table", "goals_table", "plot"]

SCENARIO = "web"
REFERENCE = "uvicorn"
OURS, GROUP = "zc_anyio on uvloop", "zc_anyio on uvloop, send group"
# From this size of an operation on, what counts are bytes.
LARGE = 1 << 20


@dataclass(frozen=True, slots=True)
class Column:
    """A column of figures; ``None`` where there is none."""

    title: str
    figure: Callable[[Round], float | None]


def _note(name: str) -> Callable[[Round], float | None]:
    return lambda one: one.notes[name] / 1e3 if name in one.notes else None


def _memory(place: int) -> Callable[[Round], float | None]:
    return lambda one: one.memory[place] / 1e6 if one.memory is not None else None


LATENCIES = (Column("p50, ms", _note("p50_us")), Column("p99, ms", _note("p99_us")))
MEMORY = (Column("memory, MB", _memory(0)), Column("sockets, MB", _memory(1)))
SMALL_COLUMNS = (
    Column("a second", lambda one: one.operations / one.seconds),
    *LATENCIES,
    Column("CPU us each", lambda one: figures.operation_cpu_seconds(one) * 1e6),
    *MEMORY,
)
LARGE_COLUMNS = (
    Column("GB/s", lambda one: figures.throughput(one) / 1e9),
    *LATENCIES,
    Column("CPU s/GB", figures.cpu_per_gigabyte),
    *MEMORY,
)


def _columns(case: CaseResults) -> tuple[Column, ...]:
    return LARGE_COLUMNS if _is_large(case) else SMALL_COLUMNS


def _is_large(case: CaseResults) -> bool:
    return case.size >= LARGE


def case_columns(case: CaseResults) -> list[str]:
    """Return the titles of a case's table."""
    titles = [column.title for column in _columns(case)]
    return ["server", *titles, f"CPU, {REFERENCE}'s is 1"]


def case_rows(case: CaseResults) -> list[list[str]]:
    """Return a row for each server."""
    return [_row(case, result) for result in case.peers.values()]


def _row(case: CaseResults, result: Result) -> list[str]:
    columns = _columns(case)
    if result.failure or not result.rounds:
        return [result.peer, f"failed: {result.failure}", *[""] * len(columns)]
    cells = []
    for column in columns:
        found = [value for one in result.rounds if (value := column.figure(one)) is not None]
        cells.append(spread_text(spread(found)) if found else "")
    reference = case.peers.get(REFERENCE)
    compared = None
    if reference is not None and reference is not result and not reference.failure:
        compared = ratio(result.rounds, reference.rounds, figures.operation_cpu_seconds)
    return [result.peer, *cells, spread_text(compared) if compared else ""]


def case_table(case: CaseResults) -> Table:
    """Return a table for the terminal."""
    table = Table(title=case.name, title_justify="left")
    for number, title in enumerate(case_columns(case)):
        table.add_column(title, justify="right" if number else "left")
    for row in case_rows(case):
        table.add_row(*row, style="bold green" if row[0].startswith("zc_anyio") else None)
    return table


# --- the numbers to reach ---


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio of ours to theirs.

    :ivar most: the ratio of CPU times is to be this or less; ``None`` with ``least``.
    :ivar least: the ratio of rates is to be this or more.
    """

    case: str
    theirs: str
    most: float | None = None
    least: float | None = None
    ours: str = OURS


ROOM = "200 B to 500 WebSockets"
GOALS = (
    Goal("hello", "uvicorn", least=1.0),
    Goal("file of 100 KiB", "uvicorn", most=0.5),
    Goal("file of 1 GiB", "uvicorn", most=0.4),
    Goal("file of 1 GiB", "Granian", most=1.0),
    Goal(ROOM, "uvicorn", most=0.5, ours=GROUP),
    Goal(ROOM, "websockets.broadcast", most=1.0, ours=GROUP),
)


def goals_table(results: Results) -> list[list[str]]:
    """Return a title row, and a row for each goal."""
    rows = [["work", "ours", "against", "goal", "reached"]]
    for goal in GOALS:
        wanted = (
            f"CPU at most {goal.most:g}x"
            if goal.most is not None
            else f"rate at least {goal.least:g}x"
        )
        rows.append([goal.case, goal.ours, goal.theirs, wanted, _verdict(goal, results)])
    return rows


def _verdict(goal: Goal, results: Results) -> str:
    ours, theirs = (results.rounds(SCENARIO, goal.case, name) for name in (goal.ours, goal.theirs))
    figure = figures.operation_cpu_seconds if goal.most is not None else _rate
    found = ratio(ours, theirs, figure)
    if found is None:
        return "not measured"
    if goal.most is not None:
        reached = found.median <= goal.most
    else:
        reached = found.median >= (goal.least or 0.0)
    return f"{'yes' if reached else '**no**'} {spread_text(found)}"


def _rate(one: Round) -> float:
    return one.operations / one.seconds


# --- the plot ---


def plot(results: Results) -> Any:
    """Return the CPU time of each server in each case, or ``None`` if nothing was measured."""
    cases = list(results.scenarios.get(SCENARIO, {}).values())
    if not cases:
        return None
    figure, grid = pyplot.subplots(
        (len(cases) + 1) // 2, 2, figsize=(10, 11), layout="constrained", squeeze=False
    )
    for axes, case in zip(grid.flat, cases, strict=False):
        _bars(axes, case)
    for axes in grid.flat[len(cases) :]:
        axes.remove()
    return figure


def _bars(axes: Any, case: CaseResults) -> None:
    names, spreads = [], []
    for result in case.peers.values():
        if result.rounds and not result.failure:
            names.append(result.peer)
            spreads.append(_cpu(case, result))
    middle = [one.median for one in spreads]
    sides = [[one.median - one.low for one in spreads], [one.high - one.median for one in spreads]]
    colours = ["#005f9e" if name.startswith("zc_anyio") else "#8c8c8c" for name in names]
    axes.barh(names, middle, xerr=sides, color=colours, ecolor="#222222")
    axes.invert_yaxis()
    axes.set_title(case.name)
    axes.set_xlabel("CPU s/GB" if _is_large(case) else "CPU us each")
    axes.grid(alpha=0.3, axis="x")


def _cpu(case: CaseResults, result: Result) -> Spread:
    if _is_large(case):
        return spread([figures.cpu_per_gigabyte(one) for one in result.rounds])
    return spread([figures.operation_cpu_seconds(one) * 1e6 for one in result.rounds])
