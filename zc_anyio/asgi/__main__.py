"""``python -m zc_anyio.asgi module:app``: serve an application from the command line."""

from __future__ import annotations

import argparse
import http
import importlib
import logging
import math
import os
import resource
import signal
import ssl
import sys
from pathlib import Path
from typing import Any, NoReturn

import anyio

import zc_anyio

from ._connection import Application
from ._lifespan import LifespanError
from ._peer import Limits
from ._server import serve
from ._workers import Supervisor, end_with_parent, find_place, take_orders

BACKENDS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
DRIVERS = ("auto", "io_uring", "msg_zerocopy", "copy")
LEVELS = ("critical", "error", "warning", "info", "debug")
# The same status as uvicorn's.
STARTUP_FAILED = 3

log: logging.Logger = logging.getLogger("zc_anyio.asgi")


def main() -> None:
    """Serve as the command line says."""
    orders = take_orders()
    options = parser().parse_args()
    if orders is not None:
        end_with_parent(orders["pipe"])
        if "fd" in orders:
            options.fd, options.uds = orders["fd"], None
        else:
            options.host, options.port = orders["host"], orders["port"]
    _log_to_the_terminal(options.log_level)
    if orders is None and (options.workers > 1 or options.reload):
        sys.exit(_supervise(options))
    app = load(options.app)
    _raise_descriptor_limit()
    try:
        anyio.run(_serve, app, options, orders is not None, **BACKENDS[options.backend])
    except ImportError as exc:
        _give_up(f"--backend {options.backend}: {exc}")
    except zc_anyio.DriverUnavailable as exc:
        _give_up(f"The driver {options.driver} cannot run: {exc}")
    except LifespanError as exc:
        log.error("Application startup failed: %s", exc)
        sys.exit(STARTUP_FAILED)
    except OSError as exc:
        _give_up(f"{_where(options)}: {exc}")
    if options.uds is not None:
        Path(options.uds).unlink(missing_ok=True)


# --- options ---


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = _Parser(
        prog="python -m zc_anyio.asgi",
        description="Serve an ASGI application; large answers are sent without a copy.",
    )
    add = made.add_argument
    add("app", metavar="MODULE:APP", type=_app, help="where the application is")
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=_port, default=8000, help="0 for a free one (%(default)s)")
    add("--uds", metavar="PATH", help="a UNIX socket in place of host and port")
    add("--fd", type=_count, metavar="N", help="descriptor of a socket that is bound")
    add("--workers", type=_some, default=1, metavar="N", help="processes (%(default)s)")
    add("--reload", action="store_true", help="start anew when a Python file here changes")
    add("--backend", choices=BACKENDS, default="asyncio", help="event loop (%(default)s)")
    add("--driver", choices=DRIVERS, default="auto", help="what carries sends (%(default)s)")
    add("--lifespan", choices=("auto", "on", "off"), default="auto", help="(%(default)s)")
    add("--log-level", choices=LEVELS, default="info", help="(%(default)s)")
    add("--access-log", action=argparse.BooleanOptionalAction, default=True)
    add(
        "--proxy-headers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="believe X-Forwarded-For and X-Forwarded-Proto of trusted proxies",
    )
    add(
        "--forwarded-allow-ips",
        type=_proxies,
        default=os.environ.get("FORWARDED_ALLOW_IPS", "127.0.0.1"),
        metavar="LIST",
        help="these proxies: addresses and networks, or * (%(default)s)",
    )
    add("--root-path", default="", metavar="PATH", help="where a proxy has mounted it")
    add("--limit-concurrency", type=_some, metavar="N", help="connections; beyond it 503")
    add("--limit-max-requests", type=_some, metavar="N", help="requests; then the process ends")
    add("--limit-body", type=_some, metavar="BYTES", help="of a request's body; beyond it 413")
    add("--timeout-keep-alive", type=_seconds, default=5.0, metavar="S", help="(%(default)s)")
    add("--timeout-head", type=_seconds, default=10.0, metavar="S", help="(%(default)s)")
    add("--timeout-stall", type=_seconds, default=60.0, metavar="S", help="(%(default)s)")
    add("--timeout-graceful-shutdown", type=_seconds, default=math.inf, metavar="S")
    add("--tls-cert", metavar="FILE", help="certificate chain in PEM")
    add("--tls-key", metavar="FILE", help="its key, if that is not in the same file")
    return made


def _app(text: str) -> str:
    module, colon, name = text.partition(":")
    if not module or not colon or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form MODULE:APP")
    return text


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535")
    return int(text)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def _some(text: str) -> int:
    if (number := _count(text)) == 0:
        raise argparse.ArgumentTypeError("at least 1 is needed")
    return number


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return seconds


def _proxies(text: str) -> str:
    from ._connection import TrustedProxies

    try:
        TrustedProxies(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None
    return text


def load(text: str) -> Application:
    """Import an application.

    An exception that its own module raises is passed on.
    """
    sys.path[:0] = [] if "" in sys.path else [""]
    name, _, attributes = text.partition(":")
    try:
        found: Any = importlib.import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{name}.".startswith(f"{exc.name}."):
            raise
        _give_up(f'Error loading ASGI app. Could not import module "{name}".')
    try:
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except AttributeError:
        _give_up(f'Error loading ASGI app. Attribute "{attributes}" not found in "{name}".')
    if not callable(found):
        _give_up(f'Error loading ASGI app. "{text}" is not callable.')
    loaded: Application = found
    return loaded


# --- running ---


async def _serve(app: Application, options: argparse.Namespace, worker: bool) -> None:
    stop = anyio.Event()
    tls, certificate = _tls(options)
    raised: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_watch_signals, stop, tasks.cancel_scope)
        try:
            async with zc_anyio.open_ring(driver=options.driver, drain_timeout=1.0) as ring:
                log.info("Started server process [%d]", os.getpid())
                await serve(
                    app,
                    host=options.host,
                    port=options.port,
                    uds=options.uds,
                    fd=options.fd,
                    reuse_port=worker and options.fd is None,
                    tls=tls,
                    certificate=certificate,
                    limits=_limits(options),
                    root_path=options.root_path,
                    forwarded_allow_ips=(
                        options.forwarded_allow_ips if options.proxy_headers else None
                    ),
                    access_log=options.access_log,
                    lifespan=options.lifespan,
                    stop=stop,
                    task_status=_Announcement(ring),
                )
                log.info("Finished server process [%d]", os.getpid())
        except Exception as exc:
            # The task group does not see it: it would wrap it in an exception group.
            raised = exc
        tasks.cancel_scope.cancel()
    if raised is not None:
        raise raised


class _Announcement(anyio.abc.TaskStatus[list[str]]):
    """Logs where the server listens, and how it sends."""

    def __init__(self, ring: zc_anyio.Ring) -> None:
        self._capabilities = ring.capabilities

    def started(self, value: list[str] | None = None) -> None:
        for name, why in self._capabilities.unavailable.items():
            log.warning("The driver %s cannot run here: %s", name, why)
        if self._capabilities.zero_copy_limited and self._capabilities.driver != "copy":
            log.warning("Little memory may be locked (ulimit -l): much will be sent by copying.")
        where = ", ".join(value or [])
        driver = self._capabilities.driver
        log.info("zc_anyio running on %s by %s (Press CTRL+C to quit)", where, driver)


async def _watch_signals(stop: anyio.Event, scope: anyio.CancelScope) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            if stop.is_set():
                # This is the second signal: nothing is waited for any more.
                scope.cancel()
            log.info("Shutting down")
            stop.set()


def _limits(options: argparse.Namespace) -> Limits:
    return Limits(
        concurrency=options.limit_concurrency,
        requests=options.limit_max_requests,
        body_bytes=options.limit_body,
        keep_alive_seconds=options.timeout_keep_alive,
        head_seconds=options.timeout_head,
        stall_seconds=options.timeout_stall,
        stop_seconds=options.timeout_graceful_shutdown,
    )


def _tls(options: argparse.Namespace) -> tuple[ssl.SSLContext | None, str | None]:
    if options.tls_cert is None:
        return None, None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    except OSError as exc:
        _give_up(f"--tls-cert {options.tls_cert}: {exc}")
    return context, Path(options.tls_cert).read_text(encoding="ascii")


def _supervise(options: argparse.Namespace) -> int:
    if options.reload:
        try:
            import watchfiles  # noqa: F401
        except ImportError:
            _give_up("--reload needs another package: pip install watchfiles")
    try:
        sock, place = find_place(options.host, options.port, options.uds, options.fd)
    except OSError as exc:
        _give_up(f"{_where(options)}: {exc}")
    with sock:
        folder = Path.cwd() if options.reload else None
        status = Supervisor(sys.argv[1:], options.workers, place, reload=folder).run()
    if options.uds is not None:
        Path(options.uds).unlink(missing_ok=True)
    return status


def _where(options: argparse.Namespace) -> str:
    if options.fd is not None:
        return f"descriptor {options.fd}"
    return options.uds or f"{options.host}, port {options.port}"


def _give_up(reason: str) -> NoReturn:
    log.error(reason)
    sys.exit(1)


def _raise_descriptor_limit() -> None:
    # A connection needs one descriptor, and a second one for the ring.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# --- logs, as uvicorn writes them ---


class _Format(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        record.prefix = f"{record.levelname}:".ljust(9)
        if record.name == "zc_anyio.asgi.access" and isinstance(record.args, tuple):
            record = logging.makeLogRecord(vars(record))
            *others, status = record.args or ()
            record.msg = '%s - "%s %s HTTP/%s" %s'
            record.args = (*others, _with_phrase(status))
        return super().format(record)


def _with_phrase(status: Any) -> str:
    try:
        return f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _log_to_the_terminal(level: str) -> None:
    for name, stream in (("zc_anyio", sys.stderr), ("zc_anyio.asgi.access", sys.stdout)):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(_Format("%(prefix)s %(message)s"))
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(level.upper())
        logger.propagate = False


if __name__ == "__main__":
    main()
