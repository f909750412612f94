"""Printing what ``python -m zc_anyio`` found; the only module that needs rich."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .._ring.capabilities import System
from .measure import Loopback, Measured, Measurement
from .report import DriverReport, Report

__all__ = ["show", "show_measurement", "waiting"]

DISABLED = {0: "0 (allowed)", 1: "1 (privileged processes only)", 2: "2 (forbidden)"}
UNKNOWN = "not known"


def show(report: Report) -> None:
    """Print everything but the measurement."""
    console = Console()
    console.print(Text(report.verdict, style="bold green" if report.zero_copy else "bold red"))
    console.print()
    for table in _drivers(report.drivers), _facts(report):
        console.print(table)
    if report.capabilities is not None and report.capabilities.zero_copy_limited is not None:
        console.print(Text(f"Limited: {report.capabilities.zero_copy_limited}.", style="yellow"))


def show_measurement(measurement: Measurement) -> None:
    """Print what was measured."""
    console = Console()
    console.print(
        Text(
            f"Copying against zero copy to {measurement.host} port {measurement.port}, "
            f"by {measurement.driver}:"
        )
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("buffer", "zero copy", "MB/s", "CPU s/GB", "sends", "zero-copied", "copied"):
        table.add_column(heading, justify="left" if heading == "zero copy" else "right")
    for result in measurement.results:
        table.add_row(
            _size(result.buffer_size),
            result.zero_copy,
            f"{result.bytes_per_second / 1e6:.1f}",
            f"{result.cpu_seconds_per_gigabyte:.3f}",
            str(result.sends),
            str(result.zero_copied),
            str(result.copied),
        )
    console.print(table)
    for line in _comparisons(measurement):
        console.print(Text(line))


def waiting(what: str) -> None:
    """Say what the program waits for, if standard error is a terminal."""
    console = Console(stderr=True)
    if console.is_terminal:
        console.print(Text(what, style="dim"))


def _drivers(drivers: dict[str, DriverReport]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("driver", no_wrap=True)
    table.add_column("runs", no_wrap=True)
    table.add_column("why not, or a zero-copy send over loopback")
    for name, report in drivers.items():
        if report.unavailable is not None:
            table.add_row(name, Text("no", style="red"), Text(report.unavailable))
        else:
            outcome = "" if report.loopback is None else _outcome(name, report.loopback)
            table.add_row(name, Text("yes", style="green"), Text(outcome))
    return table


def _outcome(driver: str, loopback: Loopback) -> str:
    if loopback.error is not None:
        return f"not tried: {loopback.error}"
    if driver == "copy":
        return "copied, as everything is by this driver"
    if loopback.refused:
        return "refused: memory may not be pinned, see RLIMIT_MEMLOCK; sent by copying"
    if loopback.copied:
        return "taken, and copied on its way, as always over loopback"
    return "taken, and not copied"


def _facts(report: Report) -> Table:
    system, capabilities = report.system, report.capabilities
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_row("zc_anyio", Text(report.version or UNKNOWN))
    table.add_row("kernel", Text(f"{system.kernel} {system.machine}"))
    table.add_row("opcodes", Text(_opcodes(report.opcodes)))
    if capabilities is not None:
        flags = " ".join(capabilities.setup_flags)
        table.add_row("driver chosen", Text(capabilities.driver))
        table.add_row("flags chosen", Text(flags or "none"))
        table.add_row("kernel reports copies", Text(_yes(capabilities.reports_usage)))
        table.add_row("kernel cuts datagrams", Text(_yes(capabilities.sends_trains)))
    probe = report.drivers["io_uring"].loopback
    if probe is not None and probe.error is None:
        refused = probe.unregistered
        table.add_row("registered buffers", Text("yes" if refused is None else f"no: {refused}"))
    no_tls = report.no_kernel_tls
    table.add_row("kernel encrypts TLS", Text("yes" if no_tls is None else f"no: {no_tls}"))
    for name, value in _settings(system).items():
        table.add_row(name, Text(value))
    return table


def _opcodes(opcodes: dict[str, bool | None]) -> str:
    if all(there is None for there in opcodes.values()):
        return "not known, since no ring could be made"
    return ", ".join(f"{name} {_yes(there)}" for name, there in opcodes.items())


def _settings(system: System) -> dict[str, str]:
    transparent, total = system.transparent_huge_pages, system.huge_pages_total
    return {
        "RLIMIT_MEMLOCK": f"{_limit(system.memlock_soft)} (hard {_limit(system.memlock_hard)})",
        "CAP_IPC_LOCK": _yes(system.cap_ipc_lock)
        + (": the limit does not bind this process" if system.cap_ipc_lock else ""),
        "transparent huge pages": transparent or UNKNOWN,
        "explicit huge pages": UNKNOWN
        if total is None
        else f"{system.huge_pages_free} of {total} free, {_size(system.huge_page_size or 0)} each",
        "net.core.optmem_max": _number(system.optmem_max),
        "kernel.io_uring_disabled": "not there"
        if system.io_uring_disabled is None
        else DISABLED.get(system.io_uring_disabled, str(system.io_uring_disabled)),
        "seccomp": system.seccomp or UNKNOWN,
    }


def _comparisons(measurement: Measurement) -> list[str]:
    lines = []
    by_size: dict[int, dict[str, Measured]] = {}
    for result in measurement.results:
        by_size.setdefault(result.buffer_size, {})[result.zero_copy] = result
    for size, ways in by_size.items():
        never, always = ways["never"], ways["always"]
        ratio = always.bytes_per_second / never.bytes_per_second
        line = f"{_size(size)}: zero copy sends {ratio:.2f} times the bytes per second"
        if never.cpu_seconds:
            ratio = always.cpu_seconds_per_gigabyte / never.cpu_seconds_per_gigabyte
            line += f", for {ratio:.2f} times the CPU time per byte"
        lines.append(line + ".")
    if all(result.zero_copied == 0 for result in measurement.results):
        lines.append(
            "Nothing was zero-copied: memory may not be pinned, or the kernel copied on the way, "
            "as it does to a peer on the same machine."
        )
    return lines


def _yes(value: bool | None) -> str:
    return UNKNOWN if value is None else "yes" if value else "no"


def _number(value: int | None) -> str:
    return UNKNOWN if value is None else str(value)


def _limit(value: int | None) -> str:
    return "unlimited" if value is None else f"{value} bytes"


def _size(value: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if value >= unit and value % unit == 0:
            return f"{value // unit} {name}"
    return f"{value} B"
