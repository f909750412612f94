"""The ratios to reach, and those that were reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.measure.rounds import Round
from benchmarks.peers.peer import BACKENDS
from benchmarks.report import results as figures
from benchmarks.report.results import Results, Spread, ratio
from benchmarks.report.tables import spread_text

__all__ = ["defaults_table", "goals_table"]

ANYIO, UVLOOP = "anyio stream on trio", "StreamWriter on uvloop"
ANYIO_UDP = "anyio UDP socket on trio"
LIBURING, LIBURING_HUGE = "liburing send-zerocopy", "liburing send-zerocopy, huge pages"
SEND = "socket.send loop"
# Noise: "not slower" means not slower by more than this share.
TOLERANCE = 0.03


@dataclass(frozen=True, slots=True)
class Goal:
    """A ratio to reach.

    :ivar ours: our peers, with ``{}`` for the event loop.
    :ivar theirs: the peer that ours are compared with; ``{}`` is the same event loop.
    :ivar least: the ratio should be at least this; ``None`` with ``most``.
    :ivar most: the ratio should be at most this.
    """

    work: str
    scenario: str
    case: str
    ours: str
    theirs: str
    least: float | None
    most: float | None = None
    figure: Callable[[Round], float] = figures.throughput
    what: str = ""


def _at_least(
    work: str, scenario: str, case: str, ours: str, **theirs: tuple[str, float]
) -> list[Goal]:
    return [Goal(work, scenario, case, ours, name, least) for name, least in theirs.values()]


STREAM = "zc_anyio stream on {}"
OURS, POOL, HUGE = "zc_anyio on {}", "zc_anyio on {}, pool", "zc_anyio on {}, huge pages"
SEGMENTS, MANY = "zc_anyio on {}, send_segments", "zc_anyio on {}, send_many"
GOALS = [
    *_at_least("64 B", "stream", "64 B", OURS, a=(ANYIO, 20), u=(UVLOOP, 4)),
    *_at_least("1 KiB", "stream", "1 KiB", OURS, a=(ANYIO, 15), u=(UVLOOP, 4)),
    *_at_least("4 KiB", "stream", "4 KiB", OURS, a=(ANYIO, 12), u=(UVLOOP, 4), c=(LIBURING, 2)),
    *_at_least("16 KiB", "stream", "16 KiB", OURS, a=(ANYIO, 5), u=(UVLOOP, 2)),
    *_at_least(
        *("64 KiB, registered", "stream", "64 KiB", POOL),
        a=(ANYIO, 2.8),
        u=(UVLOOP, 1.5),
        c=(LIBURING, 1.0),
    ),
    *_at_least(
        *("64 KiB, registered huge pages", "stream", "64 KiB", HUGE),
        a=(ANYIO, 2.8),
        u=(UVLOOP, 1.5),
        c=(LIBURING_HUGE, 1.0),
    ),
    *_at_least(
        *("1 MiB, registered", "stream", "1 MiB", POOL),
        a=(ANYIO, 1.6),
        u=(UVLOOP, 1.35),
        c=(LIBURING, 1.2),
    ),
    *_at_least(
        *("1 MiB, registered huge pages", "stream", "1 MiB", HUGE),
        a=(ANYIO, 1.6),
        u=(UVLOOP, 1.35),
        c=(LIBURING_HUGE, 1.2),
    ),
    *_at_least(
        *("1 KiB to 1,000 connections", "broadcast", "1 KiB to 1,000", OURS),
        a=(ANYIO, 5),
        u=(UVLOOP, 1.3),
        s=(SEND, 1.15),
    ),
    *_at_least(
        *("UDP, 60,000 B", "datagrams", "60,000 B", OURS),
        z=("MSG_ZEROCOPY in C", 1.8),
        c=(LIBURING, 0.95),
    ),
    *_at_least(
        *("UDP, 60,000 B, registered", "datagrams", "60,000 B", POOL),
        z=("MSG_ZEROCOPY in C", 1.8),
        c=(LIBURING, 0.95),
    ),
    *_at_least(
        *("UDP, 1,400 B in trains", "datagrams", "1,400 B", SEGMENTS),
        a=(ANYIO_UDP, 50),
        c=(LIBURING, 12),
    ),
    *_at_least(
        *("UDP, 4 KiB in trains", "datagrams", "4 KiB", SEGMENTS), z=("MSG_ZEROCOPY in C", 2.27)
    ),
    *_at_least(
        *("UDP, 60,000 B, many", "datagrams", "60,000 B", MANY), z=("MSG_ZEROCOPY in C", 1.0)
    ),
    *[
        Goal(f"1 MiB to 200 stalled peers{how}", "stalled", "1 MiB to 200", ours, SEND, None, *rest)
        for how, ours in (("", OURS), (", registered", POOL))
        for rest in (
            (0.05, figures.memory_sockets, "memory of sockets"),
            (0.05, figures.memory_available, "memory by MemAvailable"),
            (0.10, figures.operation_seconds, "time to queue"),
        )
    ],
    *[
        Goal(f"loopback, {size}", "loopback", size, OURS, "anyio stream on {}", 1.0)
        for size in ("64 KiB", "1 MiB", "4 MiB")
    ],
]


def goals_table(results: Results, *, by_cpu: bool = False) -> list[list[str]]:
    """Return a title row, and a row for each goal: what was reached on each event loop.

    :param by_cpu: compare bytes for a second of CPU time instead of bytes a second, since other
        programs on the core do not change it; goals for other figures are left out.
    """
    rows = [["work", "against", "goal", *[f"on {backend}" for backend in BACKENDS]]]
    goals = GOALS
    if by_cpu:
        bytes_for_cpu = [one for one in GOALS if one.figure is figures.throughput]
        goals = [replace(one, figure=figures.bytes_for_cpu_second) for one in bytes_for_cpu]
    for goal in goals:
        reached = [_reached(results, goal, backend) for backend in BACKENDS]
        against = goal.theirs.format("the same") + (f": {goal.what}" if goal.what else "")
        wanted = f"{goal.least}x" if goal.least is not None else f"at most {goal.most:.0%}"
        rows.append([goal.work, against, wanted, *[_verdict(goal, one) for one in reached]])
    return rows


def _reached(results: Results, goal: Goal, backend: str) -> Spread | None:
    ours = results.rounds(goal.scenario, goal.case, goal.ours.format(backend))
    theirs = results.rounds(goal.scenario, goal.case, goal.theirs.format(backend))
    return ratio(ours, theirs, goal.figure)


def _verdict(goal: Goal, reached: Spread | None) -> str:
    if reached is None:
        return "not measured"
    if goal.least is not None:
        return f"{_mark(reached.median >= goal.least)} {spread_text(reached)}"
    assert goal.most is not None
    percents = "-".join(f"{100 * one:.1f}" for one in (reached.low, reached.high))
    return f"{_mark(reached.median <= goal.most)} {reached.median:.1%} ({percents})"


def _mark(met: bool) -> str:
    return "yes" if met else "**no**"


# Scenarios in which anyio does the same work, with our peers and theirs.
COMPARED = (
    ("stream", OURS, "anyio stream on {}"),
    ("stream", STREAM, "anyio stream on {}"),
    ("one-at-a-time", STREAM, "anyio stream on {}"),
    ("one-at-a-time", "zc_anyio on {}, flush after each", "anyio stream on {}"),
    ("one-at-a-time", "zc_anyio on {}, group for each", "anyio stream on {}"),
    ("broadcast", OURS, "anyio stream on {}"),
    ("datagrams", OURS, "anyio UDP socket on {}"),
    ("loopback", OURS, "anyio stream on {}"),
    ("loopback", STREAM, "anyio stream on {}"),
    ("loopback-one-at-a-time", STREAM, "anyio stream on {}"),
    ("loopback-one-at-a-time", "zc_anyio on {}, flush after each", "anyio stream on {}"),
    ("loopback-one-at-a-time", "zc_anyio on {}, group for each", "anyio stream on {}"),
)


def defaults_table(results: Results) -> list[list[str]]:
    """Return rows that say how many times as fast as anyio the defaults are on each event loop."""
    rows = [["scenario", "case", *[f"on {backend}" for backend in BACKENDS]]]
    for scenario, ours, theirs in COMPARED:
        variant = "its stream" if ours == STREAM else ours.partition(", ")[2] or "group"
        for case in results.scenarios.get(scenario, {}):
            cells = []
            for backend in BACKENDS:
                found = ratio(
                    results.rounds(scenario, case, ours.format(backend)),
                    results.rounds(scenario, case, theirs.format(backend)),
                    figures.throughput,
                )
                if found is None:
                    cells.append("not measured")
                    continue
                slow = found.median < 1 - TOLERANCE
                cells.append(f"{'**slower** ' if slow else ''}{spread_text(found)}")
            rows.append([f"{scenario}, {variant}", case, *cells])
    return rows
