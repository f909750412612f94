"""``python -m examples.stream FOLDER``; ``--help`` lists the options."""

from __future__ import annotations

import argparse
import html
from pathlib import Path
from string import Template
from urllib.parse import quote

import anyio
import anyio.to_thread

try:
    from examples.web import (
        Asset,
        Exchange,
        Limits,
        Metrics,
        Request,
        Routes,
        Server,
        add_options,
        address,
        assets,
        listen,
        open_ring,
        run,
        stop_on_signal,
    )

    from .files import Files
    from .folder import Entry, Folder
    from .live import Live
    from .picture import Picture
except ImportError as exc:  # pragma: no cover - they are optional dependencies
    raise SystemExit(f"the stream server needs zc_anyio[examples]: {exc}") from exc

PAGES = Path(__file__).parent / "pages"
LISTED_SECONDS = 1.0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.stream",
        description="Serve a folder of videos, and a live test picture, over HTTP.",
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path(), help="default: this one")
    live = parser.add_argument_group("live picture")
    live.add_argument("--fps", type=float, default=25, help="frames a second (%(default)s)")
    live.add_argument("--width", type=int, default=960, help="in pixels (%(default)s)")
    live.add_argument("--viewers", type=int, default=500, metavar="N", help="at once (%(default)s)")
    live.add_argument(
        "--stall",
        type=float,
        default=10,
        metavar="SECONDS",
        help="a viewer who takes nothing for this long is dropped (%(default)s)",
    )
    add_options(parser, port=8000)
    options = parser.parse_args()
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is not a folder")
    if not 0 < options.fps <= 120:
        parser.error("--fps must be more than 0, and 120 at most")
    if not 160 <= options.width <= 3840:
        parser.error("--width must be 160 to 3840")
    if options.viewers < 1 or options.stall <= 0:
        parser.error("--viewers and --stall must be positive")
    return options


class Page:
    """The page, with a list of the files in the folder, which is read at most once a second."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._template = Template((PAGES / "index.html").read_text())
        self._looking = anyio.Lock()
        self._asset: Asset | None = None
        self._looked = 0.0

    async def __call__(self, request: Request, exchange: Exchange) -> None:
        async with self._looking:
            if self._asset is None or anyio.current_time() - self._looked > LISTED_SECONDS:
                entries = await anyio.to_thread.run_sync(self._folder.list)
                items = "\n".join(map(_item, entries)) or "<li>There are no files here yet.</li>"
                page = self._template.substitute(files=items).encode()
                self._asset = Asset(page, "index.html")
                self._looked = anyio.current_time()
            asset = self._asset
        await asset(request, exchange)


def _item(entry: Entry) -> str:
    """Return a link to a file; the page's script plays the file if it can be played."""
    playable = entry.content_type.startswith(("video/", "audio/"))
    return (
        f'<li><a href="/files/{quote(entry.path)}"{" data-play" if playable else ""}>'
        f"{html.escape(entry.path)}</a> <small>{_size(entry.size)}</small></li>"
    )


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


async def main(options: argparse.Namespace) -> None:
    """Serve until a signal comes."""
    folder = Folder(options.folder)
    metrics = Metrics()
    async with open_ring(options) as ring, await listen(options) as listener:
        metrics.tell_serving(backend=options.backend, ring=ring)
        live = Live(
            Picture(options.width, options.width * 9 // 16),
            metrics,
            ring=ring,
            fps=options.fps,
            viewers=options.viewers,
            stall_seconds=options.stall,
        )
        routes = Routes(
            {
                "/": Page(folder),
                "/live": live.handle,
                "/metrics": metrics.handle,
                **assets(PAGES),
            },
            {"/files/": Files(folder, metrics)},
        )
        server = Server(
            routes, ring=ring, metrics=metrics, limits=Limits(connections=options.connections)
        )
        async with stop_on_signal() as stop, anyio.create_task_group() as tasks:
            tasks.start_soon(live.run)
            print(f"serving {options.folder.resolve()} at {address(options, listener)}", flush=True)
            await server.serve(listener, stop)
            tasks.cancel_scope.cancel()


if __name__ == "__main__":
    run(main, parse())
