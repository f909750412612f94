"""``python -m examples.demo``; ``--help`` lists the options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio

import zc_anyio

from .files import largest_file

try:
    from rich.console import Console

    from .report import bar, bars, print_dropped, print_report
except ImportError as exc:  # pragma: no cover - rich is an optional dependency
    raise SystemExit(f"the demonstration needs rich: install zc_anyio[cli] ({exc})") from exc

from .dropped import NotHere, measure
from .sending import Measured, Payload, by_anyio, by_broadcast, by_group
from .server import SLOW_BYTES_A_SECOND, start_server

MIB = 1 << 20
BACKENDS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
DRIVERS = ("auto", "io_uring", "msg_zerocopy", "copy")
# Exit statuses: 1, a receiver got other bytes; 2, the demonstration could not run.
DIFFERENT, UNABLE = 1, 2


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo",
        description=(
            "Send a file to a server in a second process on this machine, by anyio's own send, by "
            "a send group, and by a broadcast to many connections; compare what arrived, and "
            "show what it cost.  Then, where a network namespace can be made, send datagrams to a "
            "device that drops them, where nothing is copied.  The exit status is 1 if other bytes "
            "arrived than were sent, 2 if the demonstration could not run."
        ),
    )
    parser.add_argument(
        "file", nargs="?", type=Path, help="default: the largest file found that fits the limit"
    )
    parser.add_argument("--backend", choices=BACKENDS, default="asyncio", help="(%(default)s)")
    parser.add_argument("--driver", choices=DRIVERS, default="auto", help="(%(default)s)")
    parser.add_argument(
        "--connections", type=int, default=50, help="peers of the broadcast (%(default)s)"
    )
    parser.add_argument(
        "--slow",
        type=int,
        default=5,
        help=f"how many of these read {SLOW_BYTES_A_SECOND // MIB} MiB a second (%(default)s)",
    )
    parser.add_argument(
        "--limit",
        type=int,
        default=256,
        metavar="MIB",
        help="of a larger file only the beginning is sent (%(default)s)",
    )
    parser.add_argument(
        "--broadcast-limit",
        type=int,
        default=32,
        metavar="MIB",
        help="how much of it goes to each peer of the broadcast (%(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.connections < 1:
        parser.error("--connections must be 1 or more")
    if not 0 <= options.slow <= options.connections:
        parser.error("--slow must be between 0 and the number of connections")
    if options.limit < 1 or options.broadcast_limit < 1:
        parser.error("--limit and --broadcast-limit must be 1 or more")
    return options


async def run(options: argparse.Namespace, payload: Payload, console: Console) -> list[Measured]:
    """Send in the three ways, one after the other."""
    driver = options.driver
    count = min(payload.size, options.broadcast_limit * MIB)
    async with start_server() as server:
        with bars(console) as progress:
            return [
                await by_anyio(server, payload, bar(progress, "stream.send", payload.size)),
                await by_group(
                    server, payload, bar(progress, "send group", payload.size), driver=driver
                ),
                await by_broadcast(
                    server,
                    payload,
                    bar(progress, "broadcast", count * options.connections),
                    driver=driver,
                    connections=options.connections,
                    slow=options.slow,
                    count=count,
                ),
            ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration and return its exit status."""
    options = parse(arguments)
    console = Console()
    path = options.file or largest_file(options.limit * MIB)
    if path is None:
        print("demo: found no file to send, name one", file=sys.stderr)
        return UNABLE
    try:
        payload = Payload(path, options.limit * MIB)
        console.print(
            f"sending {path} ({payload.size / MIB:.1f} MiB) on {options.backend}",
            highlight=False,
            soft_wrap=True,
        )
        results = anyio.run(run, options, payload, console, **BACKENDS[options.backend])
    except (OSError, ValueError, zc_anyio.DriverUnavailable) as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return UNABLE
    if not print_report(console, results):
        return DIFFERENT
    try:
        ways = measure(path, payload.size, options.driver, BACKENDS[options.backend])
    except NotHere as exc:
        console.print(f"Zero copy cannot be shown here: {exc}", highlight=False)
    else:
        print_dropped(console, ways)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
