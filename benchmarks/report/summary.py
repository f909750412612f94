"""What a reader wants to know first: common jobs, and how much more anyio's own way takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.measure.rounds import Round
from benchmarks.peers.peer import BACKENDS
from benchmarks.report import results as figures
from benchmarks.report.results import Results, Spread, ratio
from benchmarks.report.tables import spread_text

__all__ = ["JOBS", "Job", "gain", "summary_table"]


@dataclass(frozen=True, slots=True)
class Job:
    """Work that both libraries do on the same event loop.

    :ivar ours: our peer, with ``{}`` for the event loop.
    :ivar theirs: anyio's peer.
    :ivar figure: what is compared; less is better.
    """

    work: str
    scenario: str
    case: str
    ours: str = "zc_anyio on {}"
    theirs: str = "anyio stream on {}"
    figure: Callable[[Round], float] = figures.operation_seconds


JOBS = (
    Job("64 B after 64 B, in one group", "stream", "64 B"),
    Job("4 KiB after 4 KiB", "stream", "4 KiB"),
    Job("64 KiB after 64 KiB, from a pool", "stream", "64 KiB", "zc_anyio on {}, pool"),
    Job("1 MiB after 1 MiB", "stream", "1 MiB"),
    Job("1 KiB to each of 100 connections", "broadcast", "1 KiB to 100"),
    Job("1 KiB to each of 1,000", "broadcast", "1 KiB to 1,000"),
    Job("1 KiB to each of 9,900, the first time", "broadcast", "1 KiB to 9,900"),
    Job("1 MiB to each of 100", "broadcast", "1 MiB to 100"),
    Job(
        *("memory for 1 MiB to 200 peers that read nothing", "stalled", "1 MiB to 200"),
        figure=figures.memory_sockets,
    ),
    Job("UDP, 1,400 B after 1,400 B", "datagrams", "1,400 B", theirs="anyio UDP socket on {}"),
    Job(
        *("UDP, 1,400 B after 1,400 B, in trains", "datagrams", "1,400 B"),
        ours="zc_anyio on {}, send_segments",
        theirs="anyio UDP socket on {}",
    ),
    Job("64 KiB after 64 KiB over loopback", "loopback", "64 KiB"),
    Job("one 1 KiB by a stream's send", "one-at-a-time", "1 KiB", "zc_anyio stream on {}"),
    Job("one 64 KiB by a stream's send", "one-at-a-time", "64 KiB", "zc_anyio stream on {}"),
    Job(
        *("one 1 KiB, in a group of its own", "one-at-a-time", "1 KiB"),
        ours="zc_anyio on {}, group for each",
    ),
)


def gain(results: Results, job: Job, backend: str) -> Spread | None:
    """Return how many times as much anyio's way takes as ours."""
    theirs = results.rounds(job.scenario, job.case, job.theirs.format(backend))
    ours = results.rounds(job.scenario, job.case, job.ours.format(backend))
    return ratio(theirs, ours, job.figure)


def summary_table(results: Results) -> list[list[str]]:
    """Return a title row, and a row for each job."""
    rows = [["job", *[f"on {backend}" for backend in BACKENDS]]]
    for job in JOBS:
        gains = [gain(results, job, backend) for backend in BACKENDS]
        rows.append([job.work, *[spread_text(one) if one else "not measured" for one in gains]])
    return rows
