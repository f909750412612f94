"""The command line that the servers share, and what it starts."""

from __future__ import annotations

import argparse
import logging
import resource
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import Listener, SocketAttribute, SocketStream

import zc_anyio

__all__ = [
    "BACKENDS",
    "DRIVERS",
    "add_options",
    "address",
    "listen",
    "open_ring",
    "run",
    "stop_on_signal",
]

BACKENDS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
DRIVERS = ("auto", "io_uring", "msg_zerocopy", "copy")
# A connection needs a descriptor, its duplicate while it is sent to, and an open file.
DESCRIPTORS_EACH = 3
DESCRIPTORS_APART = 100


def add_options(parser: argparse.ArgumentParser, *, port: int) -> None:
    """Add the options of every server.

    :param port: the default of ``--port``.
    """
    group = parser.add_argument_group("serving")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    group.add_argument("--port", type=int, default=port, help="0 for a free one (%(default)s)")
    group.add_argument("--backend", choices=BACKENDS, default="asyncio", help="(%(default)s)")
    group.add_argument("--driver", choices=DRIVERS, default="auto", help="(%(default)s)")
    group.add_argument(
        "--plain",
        action="store_true",
        help="send by anyio's own streams, which copy, for comparison",
    )
    group.add_argument(
        "--connections", type=int, default=1000, metavar="N", help="at once (%(default)s)"
    )


def run(main: Callable[[argparse.Namespace], Awaitable[None]], options: argparse.Namespace) -> None:
    """Run a server's main function on the backend that was chosen."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    needed = DESCRIPTORS_EACH * options.connections + DESCRIPTORS_APART
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise SystemExit(f"--connections {options.connections} needs `ulimit -n {needed}`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        anyio.run(main, options, **BACKENDS[options.backend])
    except zc_anyio.DriverUnavailable as exc:
        raise SystemExit(f"the driver {options.driver} cannot run: {exc}") from exc
    except OSError as exc:
        raise SystemExit(f"{options.host}, port {options.port}: {exc}") from exc


@asynccontextmanager
async def open_ring(options: argparse.Namespace) -> AsyncIterator[zc_anyio.Ring | None]:
    """Open the ring that was chosen; none for ``--plain``."""
    if options.plain:
        yield None
        return
    # When the scope ends, answers under way have had the time that a stop gives them.
    async with zc_anyio.open_ring(driver=options.driver, drain_timeout=1.0) as ring:
        yield ring


async def listen(
    options: argparse.Namespace, *, reuse_port: bool = False
) -> Listener[SocketStream]:
    """Listen as chosen; ``listener.extra(SocketAttribute.local_port)`` is the port."""
    create = anyio.create_tcp_listener if options.plain else zc_anyio.create_tcp_listener
    return await create(local_host=options.host, local_port=options.port, reuse_port=reuse_port)


def address(options: argparse.Namespace, listener: Listener[SocketStream]) -> str:
    """Return the URL of a listener, as a browser takes it."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    return f"http://{host}:{listener.extra(SocketAttribute.local_port)}/"


@asynccontextmanager
async def stop_on_signal() -> AsyncIterator[anyio.Event]:
    """Yield an event that SIGTERM and SIGINT set."""
    stop = anyio.Event()

    async def watch() -> None:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                stop.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        yield stop
        tasks.cancel_scope.cancel()
