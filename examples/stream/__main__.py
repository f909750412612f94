"""``python -m examples.stream FOLDER``; ``--help`` lists the options."""

from __future__ import annotations

import argparse
from pathlib import Path

import anyio

try:
    import zc_anyio
    from zc_anyio.asgi import Limits

    from ..serving import (
        Metrics,
        add_options,
        allowed_hosts,
        positive,
        run,
        serve,
        stop_on_signal,
        whole,
    )
    from .app import application
    from .folder import Folder
    from .history import History
    from .live import Live
    from .picture import Picture
except ImportError as exc:  # pragma: no cover - they are optional dependencies
    raise SystemExit(f"the stream server needs zc_anyio[examples]: {exc}") from exc

STOP_SECONDS = 5.0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.stream",
        description="Serve a folder of videos, and a live test picture, over HTTP.",
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="default: this one")
    live = parser.add_argument_group("live picture")
    live.add_argument("--fps", type=positive, default=25, help="frames a second (%(default)s)")
    live.add_argument("--width", type=whole, default=960, help="in pixels (%(default)s)")
    live.add_argument(
        "--viewers", type=whole, default=500, metavar="N", help="at once (%(default)s)"
    )
    slow = parser.add_argument_group("slow clients")
    slow.add_argument(
        "--stall",
        type=positive,
        default=10,
        metavar="SECONDS",
        help="whoever takes no frame for this long is dropped (%(default)s)",
    )
    slow.add_argument(
        "--least-rate",
        type=whole,
        default=1000,
        metavar="BYTES",
        help="whoever takes less a second, for twice as long, is dropped (%(default)s)",
    )
    add_options(parser, port=8000)
    options = parser.parse_args()
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is not a folder")
    if not 1 <= options.fps <= 120:
        parser.error("--fps must be 1 to 120")
    if not 160 <= options.width <= 3840:
        parser.error("--width must be 160 to 3840")
    return options


async def main(options: argparse.Namespace) -> None:
    """Serve until a signal comes."""
    folder = Folder(options.folder)
    limits = Limits(
        concurrency=options.connections,
        # Longer than the live picture waits, which drops and counts its viewers itself.
        stall_seconds=2 * options.stall,
        least_rate=options.least_rate,
        stop_seconds=STOP_SECONDS,
    )
    async with (
        zc_anyio.open_ring(driver=options.driver, drain_timeout=1.0) as ring,
        stop_on_signal() as stop,
        anyio.create_task_group() as tasks,
    ):
        metrics = Metrics(ring, options.backend)
        live = Live(
            Picture(options.width, options.width * 9 // 16),
            metrics,
            fps=options.fps,
            viewers=options.viewers,
            stall_seconds=options.stall,
        )
        history = History(metrics.registry)
        app = application(folder, live, metrics, history, allowed_hosts(options))
        tasks.start_soon(live.run, ring, stop)
        tasks.start_soon(history.run)
        what = str(options.folder.resolve())
        await serve(app, options, what=what, ring=ring, limits=limits, stop=stop)
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    run(main, parse())
