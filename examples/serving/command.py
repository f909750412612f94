"""The command line that the servers share, and what it starts."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import math
import re
import resource
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import TaskStatus
from starlette.types import ASGIApp

import zc_anyio
from zc_anyio import asgi

from .hosts import ANY

__all__ = ["BACKENDS", "add_options", "positive", "run", "serve", "stop_on_signal", "whole"]

BACKENDS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
HOST = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
DRIVERS = ("auto", "io_uring", "msg_zerocopy", "copy")
# A connection needs a descriptor, its duplicate while it is sent to, and an open file.
DESCRIPTORS_EACH = 3
DESCRIPTORS_APART = 100


# --- options ---


class OptionError(Exception):
    """An option that cannot be followed; the message says why."""


def add_options(parser: argparse.ArgumentParser, *, port: int) -> None:
    """Add the options of every server.

    :param port: the default of ``--port``.
    """
    group = parser.add_argument_group("serving")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    group.add_argument(
        "--port", type=port_number, default=port, help="0 for a free one (%(default)s)"
    )
    group.add_argument("--backend", choices=BACKENDS, default="asyncio", help="(%(default)s)")
    group.add_argument("--driver", choices=DRIVERS, default="auto", help="(%(default)s)")
    group.add_argument(
        "--connections", type=whole, default=1000, metavar="N", help="at once (%(default)s)"
    )
    group.add_argument(
        "--access-log", action=argparse.BooleanOptionalAction, default=True, help="log each answer"
    )
    group.add_argument(
        "--allowed-host",
        action="append",
        type=_host,
        default=[],
        metavar="NAME",
        help="answer to this name as well, besides loopback and --host; * for any; repeatable",
    )
    group.add_argument(
        "--proxy-headers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="believe X-Forwarded-For and X-Forwarded-Proto of trusted proxies",
    )
    group.add_argument(
        "--forwarded-allow-ips",
        type=_proxies,
        default="127.0.0.1",
        metavar="LIST",
        help="these proxies: addresses and networks, or * (%(default)s)",
    )
    group.add_argument("--tls-cert", metavar="FILE", help="serve HTTPS; certificate chain in PEM")
    group.add_argument("--tls-key", metavar="FILE", help="its key, if not in the same file")


def whole(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def positive(text: str) -> float:
    """Read a positive number, neither infinite nor NaN."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return number


def port_number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535")
    return int(text)


def _host(text: str) -> str:
    try:
        # As it is written in URLs, or bare.
        return str(ipaddress.ip_address(text.removeprefix("[").removesuffix("]")))
    except ValueError:
        if text == ANY or HOST.fullmatch(text):
            return text
    raise argparse.ArgumentTypeError(f"{text!r} is not a name or an address, without a port")


def _proxies(text: str) -> str:
    for part in text.split(","):
        try:
            if part.strip() not in ("", "*"):
                ipaddress.ip_network(part.strip())
        except ValueError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from None
    return text


# --- running ---


def run(main: Callable[[argparse.Namespace], Awaitable[None]], options: argparse.Namespace) -> None:
    """Run a server's main function on the event loop that was chosen."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    if options.access_log:
        access = logging.getLogger("zc_anyio.asgi.access")
        access.addHandler(logging.StreamHandler(sys.stdout))
        access.setLevel(logging.INFO)
        access.propagate = False
    needed = DESCRIPTORS_EACH * options.connections + DESCRIPTORS_APART
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise SystemExit(f"--connections {options.connections} needs `ulimit -n {needed}`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    failure = None
    try:
        anyio.run(main, options, **BACKENDS[options.backend])
    except* zc_anyio.DriverUnavailable as exc:
        failure = f"the driver {options.driver} cannot run: {_first(exc)}"
    except* OptionError as exc:
        failure = str(_first(exc))
    except* OSError as exc:
        failure = f"{options.host}, port {options.port}: {_first(exc)}"
    if failure is not None:
        raise SystemExit(failure)


def _first(exc: BaseException) -> BaseException:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc


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


async def serve(
    app: ASGIApp,
    options: argparse.Namespace,
    *,
    what: str,
    ring: zc_anyio.Ring,
    limits: asgi.Limits,
    stop: anyio.Event,
    reuse_port: bool = False,
    task_status: TaskStatus[list[str]] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an application through the ambient ring until ``stop`` is set.

    :param what: what is served, as it is told on the standard output.
    :param reuse_port: let other processes listen on the same port.
    """
    tls, certificate = _tls(options)
    await asgi.serve(
        app,
        host=options.host,
        port=options.port,
        limits=limits,
        access_log=options.access_log,
        lifespan="off",
        reuse_port=reuse_port,
        tls=tls,
        certificate=certificate,
        forwarded_allow_ips=options.forwarded_allow_ips if options.proxy_headers else None,
        stop=stop,
        task_status=_Announcement(what, ring, task_status),
    )


def _tls(options: argparse.Namespace) -> tuple[ssl.SSLContext | None, str | None]:
    """Return what HTTPS needs: a context, and the certificate chain in PEM."""
    if options.tls_cert is None:
        if options.tls_key is not None:
            raise OptionError("--tls-key needs --tls-cert")
        return None, None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    except OSError as exc:
        raise OptionError(f"--tls-cert {options.tls_cert}: {exc}") from exc
    return context, Path(options.tls_cert).read_text(encoding="ascii")


class _Announcement(TaskStatus[list[str]]):
    """Tells where the server listens, by which driver it sends, and why by no better one."""

    def __init__(self, what: str, ring: zc_anyio.Ring, then: TaskStatus[list[str]]) -> None:
        self._what = what
        self._then = then
        self._capabilities = ring.capabilities

    def started(self, value: list[str] | None = None) -> None:
        found = self._capabilities
        where = ", ".join(f"{url}/" for url in value or [])
        lines = [f"serving {self._what} at {where} by {found.driver}"]
        lines += [f"{name} cannot run here: {why}" for name, why in found.unavailable.items()]
        if found.zero_copy_limited is not None and found.driver != "copy":
            lines.append(f"much will be copied: {found.zero_copy_limited}")
        # In one piece, as several workers may write at the same time.
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        sys.stdout.flush()
        self._then.started(value or [])
