"""``python -m examples.load``; ``--help`` lists the options."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Protocol

import anyio
from rich.console import Console
from rich.live import Live

from ..serving import BACKENDS
from .chat import ChatLoad
from .figures import Figures, scrape
from .live import LiveLoad
from .table import table

TABLE_SECONDS = 0.5
SCRAPE_SECONDS = 1.0


class Load(Protocol):
    """One of the kinds of load."""

    figures: Figures

    async def run(self) -> None: ...


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("url", help="URL of the server, http://127.0.0.1:8001/")
    common.add_argument("--slow", type=int, default=0, metavar="N", help="N read slowly (0)")
    common.add_argument("--stalled", type=int, default=0, metavar="N", help="N read nothing (0)")
    common.add_argument("--seconds", type=float, default=10, help="(%(default)s)")
    common.add_argument(
        "--warm-up", type=float, default=2, metavar="SECONDS", help="not counted (%(default)s)"
    )
    common.add_argument("--backend", choices=BACKENDS, default="uvloop", help="(%(default)s)")
    common.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser = argparse.ArgumentParser(
        prog="python -m examples.load",
        description="Load for the chat server and for the live picture of the stream server.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    chat = kinds.add_parser("chat", parents=[common], help="members in one room")
    chat.add_argument("--members", type=int, default=100, metavar="N", help="(%(default)s)")
    chat.add_argument("--rate", type=float, default=10, help="messages a second (%(default)s)")
    chat.add_argument("--size", type=int, default=200, help="bytes of a message (%(default)s)")
    chat.add_argument(
        "--picture-every", type=float, default=0, metavar="SECONDS", help="0 for none (0)"
    )
    chat.add_argument(
        "--picture-size", type=int, default=1 << 20, metavar="BYTES", help="(%(default)s)"
    )
    live = kinds.add_parser("live", parents=[common], help="viewers of the live picture")
    live.add_argument("--viewers", type=int, default=50, metavar="N", help="(%(default)s)")
    return parser.parse_args(arguments)


def make_load(options: argparse.Namespace) -> Load:
    """Make the load that was chosen."""
    if options.kind == "live":
        return LiveLoad(
            options.url,
            viewers=options.viewers,
            slow=options.slow,
            stalled=options.stalled,
            seconds=options.seconds,
            warm_up=options.warm_up,
        )
    return ChatLoad(
        options.url,
        members=options.members,
        slow=options.slow,
        stalled=options.stalled,
        rate=options.rate,
        size=options.size,
        seconds=options.seconds,
        warm_up=options.warm_up,
        picture_seconds=options.picture_every,
        picture_size=options.picture_size,
    )


async def run(options: argparse.Namespace) -> Figures:
    """Run the load, show the table, and return what was seen."""
    load = make_load(options)
    figures = load.figures
    console = Console(stderr=True)
    began = time.monotonic()

    async def watch_server() -> None:
        while True:
            figures.memory.add(time.monotonic() - began, await scrape(options.url))
            await anyio.sleep(SCRAPE_SECONDS)

    shown = Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext()

    async def show() -> None:
        while isinstance(shown, Live):
            shown.update(table(figures, done=False), refresh=True)
            await anyio.sleep(TABLE_SECONDS)

    with shown:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch_server)
            tasks.start_soon(show)
            await load.run()
            figures.metrics = await scrape(options.url)
            tasks.cancel_scope.cancel()
    console.print(table(figures, done=True))
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a load; return the exit status, 1 if clients that keep up have lost anything."""
    options = parse(arguments)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    figures: Figures | None = None
    try:
        figures = anyio.run(run, options, **BACKENDS[options.backend])
    except* OSError as exc:
        print(f"load: {options.url}: {exc.exceptions[0]}", file=sys.stderr)
    if figures is None:
        return 2
    if options.json is not None:
        options.json.write_text(json.dumps(figures.as_json(options.warm_up), indent=2) + "\n")
    lost = figures.lost if options.kind == "chat" else 0
    return int(bool(lost or figures.disordered or figures.failed))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
