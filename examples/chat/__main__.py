"""``python -m examples.chat``; ``--help`` lists the options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import anyio
from anyio.abc import TaskStatus

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
    from .chat import Chat
    from .limits import ChatLimits
    from .log import MemoryLog
    from .messages import TEXT_FRAME_BYTES
    from .metrics import ChatMetrics
    from .redis_log import RedisLog
    from .workers import end_with_parent, run_workers
except ImportError as exc:  # pragma: no cover - they are optional dependencies
    raise SystemExit(f"the chat server needs zc_anyio[examples]: {exc}") from exc

MIB = 1 << 20


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    defaults = ChatLimits()
    parser = argparse.ArgumentParser(prog="python -m examples.chat", description="A chat server.")
    add_options(parser, port=8001)
    group = parser.add_argument_group("chat")
    group.add_argument(
        "--redis",
        type=_redis,
        metavar="URL",
        help="share rooms with other servers, redis://host:port/db",
    )
    group.add_argument(
        "--workers",
        type=whole,
        default=1,
        metavar="N",
        help="processes that accept on the same port; they share rooms through --redis",
    )
    group.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    group.add_argument(
        "--origin",
        action="append",
        default=[],
        metavar="URL",
        help="pages of this origin may connect as well, https://example.org; may be repeated",
    )
    group.add_argument(
        "--message-rate",
        type=positive,
        default=defaults.message_rate,
        metavar="N",
        help="messages a second that a member may send (%(default)s)",
    )
    group.add_argument(
        "--queue",
        type=positive,
        default=defaults.queue_bytes / MIB,
        metavar="MIB",
        help="what may wait for a member before it is dropped as slow (%(default)s)",
    )
    group.add_argument(
        "--lag",
        type=positive,
        default=defaults.lag_seconds,
        metavar="SECONDS",
        help="how long it may wait (%(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.workers > 1 and options.redis is None:
        parser.error("--workers needs --redis: through it the processes share rooms")
    return options


def _redis(text: str) -> str:
    try:
        parts = urlsplit(text)
        wrong = parts.hostname is None or parts.port == 0
    except ValueError:
        wrong = True
    if wrong or parts.scheme not in ("redis", "rediss") or parts.path[1:].strip("0123456789"):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form redis://host:port/db")
    return text


def limits_of(options: argparse.Namespace) -> ChatLimits:
    """Return the limits that the command line asks for."""
    return ChatLimits(
        message_rate=options.message_rate,
        queue_bytes=int(options.queue * MIB),
        lag_seconds=options.lag,
    )


async def main(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT."""
    async with zc_anyio.open_ring(driver=options.driver, drain_timeout=1.0) as ring:
        async with stop_on_signal() as stop:
            await serve_chat(options, limits_of(options), ring=ring, stop=stop)


async def serve_chat(
    options: argparse.Namespace,
    limits: ChatLimits,
    *,
    ring: zc_anyio.Ring,
    stop: anyio.Event,
    task_status: TaskStatus[list[str]] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the page, the chat and the metrics until ``stop`` is set."""
    metrics = Metrics(ring, options.backend)
    chat_metrics = ChatMetrics(metrics.registry)
    log: MemoryLog | RedisLog
    log = MemoryLog() if options.redis is None else RedisLog(options.redis, chat_metrics)
    chat = Chat(
        log,
        metrics=chat_metrics,
        limits=limits,
        server={"backend": options.backend, "driver": ring.capabilities.driver},
        origins=frozenset(options.origin),
    )
    if isinstance(log, RedisLog):
        log.attach(chat)
    web_limits = Limits(
        concurrency=options.connections,
        websocket_bytes=TEXT_FRAME_BYTES,
        websocket_ping_seconds=limits.ping_seconds,
        stop_seconds=limits.close_seconds,
    )
    ended = anyio.Event()

    async def run_chat(*, task_status: TaskStatus[None]) -> None:
        # Members are told before the server closes what is left.
        await chat.run(stop, task_status=task_status)
        ended.set()

    async with anyio.create_task_group() as tasks:
        await tasks.start(log.run)
        await tasks.start(run_chat)
        if options.worker is not None:
            _, number, folder = options.worker
            await tasks.start(metrics.share, Path(folder), number)
        await serve(
            application(chat, metrics, allowed_hosts(options)),
            options,
            what="the chat",
            ring=ring,
            limits=web_limits,
            stop=ended,
            reuse_port=options.worker is not None,
            task_status=task_status,
        )
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    chosen = parse()
    if chosen.worker is not None:
        end_with_parent(int(chosen.worker[0]))
    elif chosen.workers > 1:
        sys.exit(run_workers(chosen))
    run(main, chosen)
