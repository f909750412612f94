"""``python -m examples.chat``; ``--help`` lists the options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import anyio
from anyio.abc import Listener, SocketStream

import zc_anyio

from ..web import (
    Asset,
    Limits,
    Metrics,
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
from .chat import Chat
from .limits import ChatLimits
from .log import MemoryLog
from .metrics import ChatMetrics
from .redis_log import RedisLog
from .workers import run_workers

PAGE = Path(__file__).parent / "page"
MIB = 1 << 20


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    defaults = ChatLimits()
    parser = argparse.ArgumentParser(prog="python -m examples.chat", description="A chat server.")
    add_options(parser, port=8001)
    group = parser.add_argument_group("chat")
    group.add_argument(
        "--redis", metavar="URL", help="share rooms with other servers, redis://host:port/db"
    )
    group.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes that accept on the same port; they share rooms through --redis",
    )
    group.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    group.add_argument(
        "--origin",
        action="append",
        default=[],
        metavar="URL",
        help="pages of this origin may connect as well, https://example.org; may be repeated",
    )
    group.add_argument(
        "--message-rate",
        type=float,
        default=defaults.message_rate,
        metavar="N",
        help="messages a second that a member may send (%(default)s)",
    )
    group.add_argument(
        "--queue",
        type=float,
        default=defaults.queue_bytes / MIB,
        metavar="MIB",
        help="what may wait for a member before it is dropped as slow (%(default)s)",
    )
    group.add_argument(
        "--lag",
        type=float,
        default=defaults.lag_seconds,
        metavar="SECONDS",
        help="how long it may wait (%(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error("--workers must be 1 or more")
    if options.workers > 1 and options.redis is None:
        parser.error("--workers needs --redis: through it the processes share rooms")
    return options


def limits_of(options: argparse.Namespace) -> ChatLimits:
    """Return the limits that the command line asks for."""
    return ChatLimits(
        message_rate=options.message_rate,
        queue_bytes=int(options.queue * MIB),
        lag_seconds=options.lag,
    )


async def main(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT."""
    async with (
        open_ring(options) as ring,
        await listen(options, reuse_port=options.worker) as listener,
        stop_on_signal() as stop,
    ):
        print("serving", address(options, listener), flush=True)
        await serve(options, limits_of(options), ring=ring, listener=listener, stop=stop)


async def serve(
    options: argparse.Namespace,
    limits: ChatLimits,
    *,
    ring: zc_anyio.Ring | None,
    listener: Listener[SocketStream],
    stop: anyio.Event,
) -> None:
    """Serve the page, the chat and the metrics until ``stop`` is set."""
    metrics = Metrics()
    metrics.tell_serving(backend=options.backend, ring=ring)
    chat_metrics = ChatMetrics(metrics.registry)
    log: MemoryLog | RedisLog
    log = MemoryLog() if options.redis is None else RedisLog(options.redis, chat_metrics)
    chat = Chat(
        log,
        ring=ring,
        metrics=chat_metrics,
        limits=limits,
        server={
            "backend": options.backend,
            "driver": "plain" if ring is None else ring.capabilities.driver,
        },
        origins=frozenset(options.origin),
    )
    if isinstance(log, RedisLog):
        log.attach(chat)
    routes = Routes(
        {
            "/": Asset((PAGE / "index.html").read_bytes(), "index.html"),
            **assets(PAGE),
            "/metrics": metrics.handle,
            "/chat": chat.handle,
        }
    )
    # Long enough to flush the log, and then for members to take their close frames.
    web_limits = Limits(connections=options.connections, stop_seconds=3 * limits.close_seconds)
    server = Server(routes, ring=ring, metrics=metrics, limits=web_limits)
    async with anyio.create_task_group() as tasks:
        await tasks.start(log.run)
        await tasks.start(chat.run, server.stopping)
        await server.serve(listener, stop)
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    chosen = parse()
    if chosen.workers > 1 and not chosen.worker:
        sys.exit(run_workers(chosen))
    run(main, chosen)
