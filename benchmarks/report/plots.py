"""Plots: jobs compared, throughput by size, deliveries by connections, memory by peers, files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

from benchmarks.measure.rounds import Round
from benchmarks.peers.peer import BACKENDS
from benchmarks.report import results as figures
from benchmarks.report import web
from benchmarks.report.results import CaseResults, Results, spread
from benchmarks.report.summary import JOBS, gain
from benchmarks.scenarios.scenario import size_name

__all__ = ["draw"]

# The markers differ, so that they can be told apart without colours.
STYLES: dict[str, dict[str, Any]] = {
    "zc_anyio on trio": {"color": "#005f9e", "marker": "o", "linewidth": 2.2},
    "zc_anyio on uvloop": {"color": "#5aa9e6", "marker": "o", "linewidth": 2.2},
    "zc_anyio on trio, pool": {"color": "#005f9e", "marker": "^", "linestyle": "--"},
    "zc_anyio on trio, huge pages": {"color": "#005f9e", "marker": "s", "linestyle": ":"},
    "zc_anyio on trio, send_many": {"color": "#005f9e", "marker": "s", "linestyle": "--"},
    "zc_anyio on trio, send_segments": {"color": "#005f9e", "marker": "D", "linestyle": ":"},
    "anyio stream on trio": {"color": "#b8480b", "marker": "v"},
    "anyio UDP socket on trio": {"color": "#b8480b", "marker": "v"},
    "StreamWriter on uvloop": {"color": "#8a5a00", "marker": "D"},
    "socket.send loop": {"color": "#6b6b6b", "marker": "x"},
    "os.sendfile loop": {"color": "#6b6b6b", "marker": "x"},
    "loop.sock_sendfile on asyncio": {"color": "#8a5a00", "marker": "D"},
    "read and send on asyncio": {"color": "#b8480b", "marker": "v"},
    "sendmsg with UDP_SEGMENT in Python": {"color": "#6b6b6b", "marker": "d", "linestyle": ":"},
    "MSG_ZEROCOPY in C": {"color": "#7b3fa0", "marker": "P"},
    "sendmmsg in C": {"color": "#7b3fa0", "marker": "x", "linestyle": "--"},
    "liburing send-zerocopy": {"color": "#1b7f3b", "marker": "*"},
    "liburing send-zerocopy, huge pages": {"color": "#1b7f3b", "marker": "s", "linestyle": ":"},
}
STABLE: Any = {"svg.hashsalt": "zc_anyio", "svg.fonttype": "none", "font.size": 9}


def draw(results: Results, folder: Path) -> None:
    """Draw what was measured."""
    folder.mkdir(parents=True, exist_ok=True)
    with pyplot.rc_context(STABLE):
        for name, make in (
            ("summary", _summary),
            ("throughput-by-size", _throughput),
            ("datagrams-by-size", _datagrams),
            ("delivery-by-connections", _deliveries),
            ("memory-by-stalled-peers", _memory),
            ("files-by-size", _files),
            ("web", web.plot),
        ):
            figure = make(results)
            if figure is None:
                continue
            # Without a date in it, the file changes only when the picture does.
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            pyplot.close(figure)


def _summary(results: Results) -> Any:
    figure, axes = pyplot.subplots(figsize=(9, 5), layout="constrained")
    axes.axvline(1, color="#6b6b6b", linewidth=1)
    for backend, style in zip(BACKENDS, ("o", "s", "D"), strict=True):
        for place, job in enumerate(JOBS):
            found = gain(results, job, backend)
            if found is None:
                continue
            color = "#005f9e" if found.median >= 1 else "#b8480b"
            axes.plot([found.low, found.high], [place, place], color=color, alpha=0.4, linewidth=3)
            axes.plot(found.median, place, style, color=color, markersize=5)
    for backend, style in zip(BACKENDS, ("o", "s", "D"), strict=True):
        axes.plot([], [], style, color="#005f9e", label=backend)
    axes.set_xscale("log")
    ticks = (0.5, 1, 2, 5, 10, 20, 50, 100)
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(JOBS)), [job.work for job in JOBS])
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")
    axes.legend(loc="lower right", fontsize=8)
    return figure


def _throughput(results: Results) -> Any:
    cases = list(results.scenarios.get("stream", {}).values())
    if not cases:
        return None
    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    _lines(axes, cases, lambda case: case.size, figures.throughput, 1e-9)
    sizes = [case.size for case in cases]
    axes.set_xticks(sizes, [size_name(size) for size in sizes])
    axes.set_xlabel("bytes of one send")
    axes.set_ylabel("GB/s, one core")
    axes.set_title("One TCP stream")
    axes.legend(fontsize=8)
    return figure


def _datagrams(results: Results) -> Any:
    cases = list(results.scenarios.get("datagrams", {}).values())
    if not cases:
        return None
    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    _lines(axes, cases, lambda case: case.size, figures.bytes_for_cpu_second, 1e-9)
    sizes = [case.size for case in cases]
    # The two smallest are too near to each other for two labels.
    axes.set_xticks(sizes[1:], [size_name(size) for size in sizes[1:]])
    axes.set_xlabel("bytes of one datagram")
    axes.set_ylabel("GB for a second of CPU time")
    axes.set_title("UDP")
    axes.legend(fontsize=8)
    return figure


def _deliveries(results: Results) -> Any:
    cases = list(results.scenarios.get("broadcast", {}).values())
    sizes = sorted({case.size for case in cases})
    if not sizes:
        return None
    figure, grid = pyplot.subplots(
        (len(sizes) + 1) // 2, 2, figsize=(9, 7), layout="constrained", squeeze=False
    )
    for axes, size in zip(grid.flat, sizes, strict=False):
        chosen = [case for case in cases if case.size == size]
        _lines(axes, chosen, lambda case: case.connections, figures.operation_seconds, 1e6)
        connections = [case.connections for case in chosen]
        axes.set_xticks(connections, [f"{number:,}" for number in connections])
        axes.set_xlabel("connections")
        axes.set_ylabel("us a delivery")
        # From zero on, so that a flat line looks flat.
        axes.set_yscale("linear")
        axes.set_ylim(bottom=0)
        axes.set_title(f"Broadcast of {size_name(size)}")
    for axes in grid.flat[len(sizes) :]:
        axes.remove()
    grid.flat[0].legend(fontsize=7)
    return figure


def _memory(results: Results) -> Any:
    cases = list(results.scenarios.get("stalled", {}).values())
    if not cases:
        return None
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 4.5), layout="constrained")
    _lines(left, cases, lambda case: case.connections, figures.memory_available, 1e-6)
    _lines(right, cases, lambda case: case.connections, lambda one: one.seconds, 1e3)
    for axes, what in ((left, "MB of memory (MemAvailable)"), (right, "ms to queue it")):
        connections = [case.connections for case in cases]
        axes.set_xticks(connections, [f"{number:,}" for number in connections])
        axes.set_xlabel("peers that read nothing, 1 MiB for each")
        axes.set_ylabel(what)
    # Ours is near zero, and noise may make it negative.
    left.set_yscale("symlog", linthresh=1)
    right.legend(fontsize=8)
    return figure


def _files(results: Results) -> Any:
    hot, cold = (list(results.scenarios.get(name, {}).values()) for name in ("files", "cold-files"))
    if not hot or not cold:
        return None
    figure, grid = pyplot.subplots(1, 2, figsize=(9, 4.5), layout="constrained", sharey=True)
    for axes, cases, where in zip(grid, (hot, cold), ("in memory", "on the disk"), strict=True):
        _lines(axes, cases, lambda case: case.size, figures.throughput, 1e-9)
        sizes = [case.size for case in cases]
        axes.set_xticks(sizes, [size_name(size) for size in sizes])
        axes.set_xlabel(f"bytes of a file {where}")
    grid[0].set_ylabel("GB/s, one core")
    grid[0].legend(fontsize=8)
    return figure


def _lines(
    axes: Any,
    cases: list[CaseResults],
    place: Callable[[CaseResults], int],
    figure: Callable[[Round], float],
    scale: float,
) -> None:
    """Draw a line for each peer that has a style: medians, and quartiles as bars."""
    for name, style in STYLES.items():
        points: list[tuple[int, float, float, float]] = []
        for case in cases:
            result = case.peers.get(name)
            if result is not None and result.rounds and not result.failure:
                found = spread([figure(one) * scale for one in result.rounds])
                below, above = found.median - found.low, found.high - found.median
                points.append((place(case), found.median, below, above))
        if points:
            where, middle, below_all, above_all = zip(*points, strict=True)
            axes.errorbar(where, middle, yerr=(below_all, above_all), label=name, **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
