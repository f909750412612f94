"""What the demonstration shows: bars while it runs, then what arrived and what it cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from .dropped import Dropped
from .sending import Measured
from .sending import Progress as Report

MIB = 1 << 20
# The counters of a ring that are shown, and their headings.
COUNTERS = {"zero_copied": "zero-\ncopied", "copied": "copied", "staged": "staged"}


def differences(measured: Measured) -> list[str]:
    """Return one sentence for each receiver that did not get exactly what was sent."""
    found = []
    for one in measured.received:
        if one.error is not None:
            found.append(
                f"{measured.way}: connection {one.connection} broke after {one.size} bytes: "
                f"{one.error}"
            )
        elif one.size != measured.size_each:
            found.append(
                f"{measured.way}: connection {one.connection} got {one.size} bytes of "
                f"{measured.size_each}"
            )
        elif one.sha256 != measured.sha256:
            found.append(
                f"{measured.way}: connection {one.connection} got other bytes, with SHA-256 "
                f"{one.sha256} instead of {measured.sha256}"
            )
    return found


@contextmanager
def bars(console: Console) -> Iterator[Progress]:
    """Show progress bars, where there is a terminal to show them on."""
    progress = Progress(
        TextColumn("{task.description:<20}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with progress:
        yield progress


def bar(progress: Progress, way: str, size: int) -> Report:
    """Add a bar; return a function to call with the bytes that were sent so far."""
    task = progress.add_task(way, total=size)
    return lambda sent: progress.update(task, completed=sent)


def print_report(console: Console, results: list[Measured]) -> bool:
    """Print what arrived and the table; return whether every receiver got the right bytes."""
    console.print()
    all_match = True
    for measured in results:
        found = differences(measured)
        all_match = all_match and not found
        for sentence in found:
            console.print(f"DIFFERS  {sentence}", style="bold red", highlight=False)
        if not found:
            count = measured.connections
            receivers = "1 receiver" if count == 1 else f"{count} receivers"
            console.print(
                f"matches  {measured.way}: SHA-256 {measured.sha256} at {receivers}",
                highlight=False,
                soft_wrap=True,
            )
    console.print()
    console.print(_table(results))
    _explain(console, results)
    return all_match


def print_dropped(console: Console, ways: list[Dropped]) -> None:
    """Print the cost of datagrams to a device that drops everything."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("way", no_wrap=True)
    for column in ("MiB", "CPU\nms a GiB", "zero-\ncopied", "copied"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in ways:
        counts = (each.zero_copied, each.copied)
        table.add_row(
            each.way,
            f"{each.size / MIB:.0f}",
            f"{each.cpu_seconds * 1000 / (each.size / (1 << 30)):.0f}",
            *("-" if count is None else str(count) for count in counts),
        )
    console.print()
    console.print(table)
    console.print(
        "Datagrams of 60,000 bytes to a device that drops them, in a network namespace of its own: "
        "only sending.  socket.send copies, and the kernel does not count that.",
        highlight=False,
    )


def _table(results: list[Measured]) -> Table:
    # Made to fit into 80 columns.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("way", no_wrap=True)
    for column in ("peers", "MiB", "time\ns", "CPU\ns", *COUNTERS.values(), "peak\nMiB"):
        table.add_column(column, justify="right", no_wrap=True)
    for measured in results:
        counters = measured.statistics
        peak = measured.peak_memory
        table.add_row(
            measured.way,
            str(measured.connections),
            f"{measured.size / MIB:.1f}",
            f"{measured.seconds:.2f}",
            f"{measured.cpu_seconds:.2f}",
            *("-" if counters is None else str(getattr(counters, name)) for name in COUNTERS),
            "?" if peak is None else f"{peak / MIB:.0f}",
        )
    return table


def _explain(console: Console, results: list[Measured]) -> None:
    drivers = sorted({m.statistics.driver for m in results if m.statistics is not None})
    for line in (
        f"driver: {', '.join(drivers)}.  The counters count sends: zero-copied and copied by the "
        "kernel's own report, staged if they were small and gathered.",
        "Over loopback the kernel always copies: a Linux machine cannot receive its own zero-copy "
        "data without copying it.  Part of that falls to the receiving process.",
        "CPU: this process, user and system.  Peak: resident memory of this process; the file is "
        "mapped, so its pages that were sent count as well.",
    ):
        console.print(line, highlight=False)
