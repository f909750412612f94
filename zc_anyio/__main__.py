"""``python -m zc_anyio``: whether zero copy works here; ``--help`` lists the options."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import anyio

from ._doctor.measure import Measurement, MeasurementFailed, measure
from ._doctor.report import Report, as_json, survey

WORKS, WORKS_NOT, UNABLE = 0, 1, 2
DEFAULT_SECONDS = 10.0

DESCRIPTION = """\
Report what this machine and this process can do: which drivers run and why the others do not, the
settings that zero-copy sends depend on, and what the kernel does with a send over loopback.
No connection leaves this machine unless --measure names a peer.
"""
EPILOG = """\
Exit status: 0, zero copy works: a ring takes io_uring or msg_zerocopy, and the kernel pins
memory; 1, zero copy does not work; 2, the command line is wrong, rich is missing, or the
measurement could not be made.
"""


class Display(Protocol):
    """Prints for people; needs rich."""

    def show(self, report: Report, /) -> None: ...
    def show_measurement(self, measurement: Measurement, /) -> None: ...
    def waiting(self, what: str, /) -> None: ...


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m zc_anyio", description=DESCRIPTION, epilog=EPILOG
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--measure",
        type=address,
        metavar="HOST:PORT",
        help="measure copying against zero copy to a TCP peer of yours that discards what it gets",
    )
    parser.add_argument(
        "--seconds",
        type=duration,
        help=f"how long to measure ({DEFAULT_SECONDS:g}); a slow peer makes it longer",
    )
    options = parser.parse_args(arguments)
    if options.seconds is not None and options.measure is None:
        parser.error("--seconds is for --measure")
    return options


def address(text: str) -> tuple[str, int]:
    """Read ``HOST:PORT``; an IPv6 address is in brackets."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise argparse.ArgumentTypeError(f"an IPv6 address needs brackets: [{host}]:{port}")
    if not colon or not host or not port.isascii() or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    if not 0 < int(port) < 1 << 16:
        raise argparse.ArgumentTypeError(f"{port} is not a port, 1 to 65535")
    return host, int(port)


def duration(text: str) -> float:
    """Read a positive number of seconds."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report and return the exit status."""
    options = parse(arguments)
    if options.json:
        return run(options, None)
    try:
        from ._doctor import display
    except ImportError as exc:
        return fail(f"the report needs rich: install zc_anyio[cli], or ask for --json ({exc})")
    return run(options, display)


def run(options: argparse.Namespace, display: Display | None) -> int:
    """Survey, measure if asked to, and print; without a display, print JSON."""
    report = anyio.run(survey)
    if display is not None:
        display.show(report)
    measurement: Measurement | None = None
    failed: str | None = None
    if options.measure is not None:
        host, port = options.measure
        seconds = options.seconds or DEFAULT_SECONDS
        if display is not None:
            display.waiting(f"measuring for {seconds:g} s …")
        try:
            measurement = anyio.run(lambda: measure(host, port, seconds=seconds))
        except MeasurementFailed as exc:
            failed = f"{host} port {port} {exc}"
    if display is None:
        print(json.dumps(as_json(replace(report, measurement=measurement)), indent=2))
    elif measurement is not None:
        display.show_measurement(measurement)
    if failed is not None:
        return fail(failed)
    return WORKS if report.zero_copy else WORKS_NOT


def fail(reason: str) -> int:
    """Say what could not be done."""
    print(f"zc_anyio: {reason}", file=sys.stderr)
    return UNABLE


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
