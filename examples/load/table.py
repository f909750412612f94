"""The table that is shown during a load and at its end."""

from __future__ import annotations

from rich.table import Table

from .figures import MIB, Figures

__all__ = ["table"]


def table(figures: Figures, *, done: bool) -> Table:
    """Draw what was seen so far."""
    grid = Table(title=f"{figures.kind}, {figures.seconds:.0f} s", show_header=False)
    grid.add_column(style="bold")
    grid.add_column(justify="right")
    slow = f"{figures.slow} slow, {figures.stalled} stalled"
    grid.add_row("clients", f"{figures.connected} of {figures.clients}, and {slow}")
    grid.add_row("sent", f"{figures.sent:,}")
    grid.add_row("deliveries", f"{figures.deliveries:,}")
    seconds = max(figures.seconds, 1e-9)
    grid.add_row("a second", f"{figures.deliveries / seconds:,.0f}")
    grid.add_row("MiB a second", f"{figures.delivered_bytes / seconds / MIB:,.1f}")
    if done:
        for name, value in figures.percentiles().items():
            grid.add_row(f"latency {name}", f"{value:,.1f} ms")
        grid.add_row("lost", f"{figures.lost:,}")
        grid.add_row("out of order", f"{figures.disordered:,}")
    grid.add_row("quick ones dropped", f"{figures.failed:,}")
    for what, count in sorted(figures.dropped.items()):
        grid.add_row(f"slow ones that saw: {what}", f"{count:,}")
    # A slow reader notices late that it was dropped, so the server's count is shown as well.
    for name, value in figures.metrics.items():
        if name.endswith("_dropped_total"):
            grid.add_row("dropped by the server", f"{value:,.0f}")
    if resident := figures.memory.resident:
        grid.add_row("server's memory", f"{resident[-1] / MIB:,.0f} MiB")
    return grid
