"""The server: where it listens, what its connections share, and how it stops."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import socket
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import anyio
import sniffio
from anyio.abc import ByteStream, Listener, SocketAttribute, TaskGroup, TaskStatus
from anyio.streams.tls import TLSListener

from .._connecting.connect import create_tcp_listener, create_unix_listener
from .._ring.opening import Driver, current_ring, open_ring
from ..listeners import ZeroCopySocketListener
from .connection import Application, Connection, Site, TrustedProxies
from .exchange import Message
from .peer import Limits

__all__ = ["LifespanError", "serve"]

log = logging.getLogger("zc_anyio.asgi")

# Deadlines are looked at in these intervals, or in a quarter of the shortest of them.
SWEEP_SECONDS = 1.0
SWEEP_AT_LEAST = 0.02
SWEPT_AT_ONCE = 1000
# What waits in the listen queue when the server is told to stop is taken for so long, and what was
# accepted just now may bring its request for so long.
LAST_ACCEPT_SECONDS = 0.1
LAST_REQUEST_SECONDS = 1.0
BACKLOG = 2048


class LifespanError(Exception):
    """The application has told that it cannot start."""


async def serve(
    app: Application,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    uds: str | None = None,
    fd: int | None = None,
    reuse_port: bool = False,
    tls: ssl.SSLContext | None = None,
    certificate: str | None = None,
    driver: Driver = "auto",
    limits: Limits | None = None,
    root_path: str = "",
    forwarded_allow_ips: str | None = None,
    access_log: bool = True,
    lifespan: Literal["auto", "on", "off"] = "auto",
    stop: anyio.Event | None = None,
    task_status: TaskStatus[list[str]] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an ASGI application, until it is told to stop or is cancelled.

    The ambient ring carries what is sent; where none is open, one is opened for as long as this
    runs, and is ambient in all that the application does.

    :param host: address or name to listen on.
    :param port: 0 for a free one.
    :param uds: path of a UNIX socket, in place of host and port.
    :param fd: descriptor of a socket that is bound, in place of all these.
    :param reuse_port: let other processes listen on the same port.
    :param tls: serve HTTPS; the ciphertext is made by Python's ``ssl``.
    :param certificate: the server's in PEM, for applications that use ASGI's TLS extension.
    :param driver: of the ring that is opened.
    :param root_path: where a proxy has mounted the application.
    :param forwarded_allow_ips: proxies whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are
        believed: addresses and networks, with commas between them, or ``*``; ``None`` for nobody.
    :param access_log: log each answer to ``zc_anyio.asgi.access``, as uvicorn does it.
    :param lifespan: ``"off"``: the application is not told of start and stop; ``"on"``: one that
        does not take it fails.
    :param stop: set it to stop gracefully: what was accepted is answered, within
        ``limits.stop_seconds``.  Cancelling ends everything at once.
    :param task_status: told the URLs when connections are taken.
    :raises LifespanError: the application could not start.
    :raises OSError: the address cannot be listened on.
    :raises DriverUnavailable: the driver cannot run here.
    :raises ValueError: ``forwarded_allow_ips`` names what is no address.
    """
    proxies = None if forwarded_allow_ips is None else TrustedProxies(forwarded_allow_ips)
    async with AsyncExitStack() as stack:
        ring = current_ring()
        if ring is None:
            ring = await stack.enter_async_context(open_ring(driver=driver, drain_timeout=1.0))
        state = await stack.enter_async_context(running(app, lifespan))
        listener = await _listen(host, port, uds, fd, reuse_port)
        server = _Server(
            app=app,
            ring=ring,
            limits=limits or Limits(),
            root_path=root_path,
            proxies=proxies,
            certificate=certificate,
            logs_access=access_log,
            state=state,
            soon=_call_soon(),
        )
        urls = _urls(listener, "http" if tls is None else "https")
        if tls is not None:
            listener = TLSListener(listener, tls, standard_compatible=False)
        await server.run(listener, stop or anyio.Event(), lambda: task_status.started(urls))


# --- listening ---


async def _listen(
    host: str, port: int, uds: str | None, fd: int | None, reuse_port: bool
) -> Listener[Any]:
    if fd is not None:
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        sock.listen(BACKLOG)
        return await ZeroCopySocketListener.from_socket(sock)
    if uds is not None:
        return await create_unix_listener(uds, backlog=BACKLOG)
    return await create_tcp_listener(
        local_host=host, local_port=port, backlog=BACKLOG, reuse_port=reuse_port
    )


def _urls(listener: Listener[Any], scheme: str) -> list[str]:
    urls = []
    for one in getattr(listener, "listeners", [listener]):
        address = one.extra(SocketAttribute.local_address)
        if isinstance(address, tuple):
            host = f"[{address[0]}]" if ":" in address[0] else address[0]
            urls.append(f"{scheme}://{host}:{address[1]}")
        else:
            urls.append(f"unix:{address}")
    return urls


@dataclass(eq=False, kw_only=True)
class _Server(Site):
    def __post_init__(self) -> None:
        self._connections: set[Connection] = set()
        self._tasks: TaskGroup
        self._stop: anyio.Event
        self._stopping = False
        self._answered = 0
        # Connections are served with the context variables that the server was started with.
        self._context = contextvars.copy_context()

    # --- what connections ask for ---

    def is_stopping(self) -> bool:
        return self._stopping

    def is_crowded(self) -> bool:
        most = self.limits.concurrency
        return most is not None and len(self._connections) > most

    def answered(self) -> None:
        self._answered += 1
        if self._answered == self.limits.requests:
            log.warning("Maximum request limit of %d exceeded. Terminating.", self._answered)
            self._stop.set()

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)

    def start(self, function: Callable[[], Coroutine[Any, Any, object]]) -> None:
        self._context.run(lambda: self._tasks.start_soon(function))

    # --- running ---

    async def run(
        self, listener: Listener[Any], stop: anyio.Event, started: Callable[[], object]
    ) -> None:
        """Serve until it is told to stop, then stop gracefully."""
        self._stop = stop
        async with anyio.create_task_group() as sweeping:
            async with anyio.create_task_group() as self._tasks:
                sweeping.start_soon(self._sweep)
                async with listener, anyio.create_task_group() as accepting:
                    accepting.start_soon(listener.serve, self._accepted, self._tasks)
                    started()
                    await stop.wait()
                    self._stopping = True
                    await anyio.sleep(LAST_ACCEPT_SECONDS)
                    accepting.cancel_scope.cancel()
                self._end_idle()
                self._tasks.cancel_scope.deadline = anyio.current_time() + self.limits.stop_seconds
            if self._tasks.cancel_scope.cancel_called:
                log.error("Cancelled what was under way after %s s.", self.limits.stop_seconds)
            sweeping.cancel_scope.cancel()

    async def _accepted(self, stream: ByteStream) -> None:
        try:
            connection = Connection(self, stream)
        except (OSError, anyio.TypedAttributeLookupError):
            # It is gone already.
            await anyio.aclose_forcefully(stream)
            return
        self._connections.add(connection)
        await connection.serve()

    def _end_idle(self) -> None:
        """Let connections end that have nothing to answer."""
        if self._connections:
            log.info("Waiting for connections to close.")
        for connection in list(self._connections):
            if connection.websocket is not None:
                self.start(connection.websocket.go_away)
            elif connection.idle and not connection.fresh:
                connection.peer.stop_receiving()
            elif connection.idle:
                connection.peer.deadline = min(
                    connection.peer.deadline, time.monotonic() + LAST_REQUEST_SECONDS
                )

    async def _sweep(self) -> None:
        """Look at deadlines, a few connections at a time."""
        limits = self.limits
        shortest = min(
            limits.head_seconds,
            limits.keep_alive_seconds,
            limits.body_seconds,
            limits.websocket_ping_seconds,
        )
        interval = max(SWEEP_AT_LEAST, min(SWEEP_SECONDS, shortest / 4))
        while True:
            await anyio.sleep(interval)
            now = time.monotonic()
            for number, connection in enumerate(list(self._connections), start=1):
                connection.peer.check_deadline(now)
                websocket = connection.websocket
                if websocket is not None and websocket.is_due(now):
                    self.start(websocket.ping)
                if number % SWEPT_AT_ONCE == 0:
                    await anyio.lowlevel.checkpoint()


def _call_soon() -> Callable[[Callable[[], object]], object]:
    """Return what calls a function when the tasks that can run now have run."""
    if sniffio.current_async_library() == "trio":
        import trio

        return trio.lowlevel.current_trio_token().run_sync_soon
    return asyncio.get_running_loop().call_soon


# --- lifespan ---


@asynccontextmanager
async def running(
    app: Application, mode: Literal["auto", "on", "off"]
) -> AsyncGenerator[dict[str, Any] | None, None]:
    """Tell an application that it starts, and at the end that it stops; give its state.

    :raises LifespanError: it could not start, or does not take this and the mode is ``"on"``.
    """
    if mode == "off":
        yield None
        return
    lifespan = _Lifespan(app)
    raised: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lifespan.run)
        try:
            await lifespan.start(required=mode == "on")
            try:
                yield lifespan.state
            except Exception as exc:
                # Kept from the task group, which would wrap it into an exception group.
                raised = exc
            await lifespan.stop()
        except LifespanError as exc:
            raised = exc
        tasks.cancel_scope.cancel()
    if raised is not None:
        raise raised


class _Lifespan:
    def __init__(self, app: Application) -> None:
        self.state: dict[str, Any] | None = {}
        self._app = app
        self._asked = 0
        self._stopping = anyio.Event()
        self._started = anyio.Event()
        self._stopped = anyio.Event()
        self._failure: str | None = None
        self._error: BaseException | None = None

    async def run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        try:
            await self._app(scope, self._receive, self._send)
        except Exception as exc:
            self._error = exc
            if self._started.is_set() and self._failure is None:
                log.exception("Exception in 'lifespan' protocol")
        finally:
            self._started.set()
            self._stopped.set()

    async def start(self, *, required: bool) -> None:
        log.info("Waiting for application startup.")
        await self._started.wait()
        if self._failure is not None:
            raise LifespanError(self._failure)
        if self._error is not None and required:
            raise LifespanError("the application takes no lifespan") from self._error
        if self._error is not None:
            self.state = None
            log.info("ASGI 'lifespan' protocol appears unsupported.")
        else:
            log.info("Application startup complete.")

    async def stop(self) -> None:
        if self._stopped.is_set():
            return
        log.info("Waiting for application shutdown.")
        self._stopping.set()
        await self._stopped.wait()
        if self._failure is not None:
            log.error("Application shutdown failed: %s", self._failure)
        elif self._error is None:
            log.info("Application shutdown complete.")

    async def _receive(self) -> Message:
        self._asked += 1
        if self._asked == 1:
            return {"type": "lifespan.startup"}
        if self._asked > 2:
            await anyio.sleep_forever()
        await self._stopping.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind.endswith(".failed"):
            self._failure = message.get("message", "") or "the application gave no reason"
        if kind.startswith("lifespan.startup."):
            self._started.set()
        elif kind.startswith("lifespan.shutdown."):
            self._stopped.set()
        else:
            raise RuntimeError(f"{kind} is no message of a lifespan")
