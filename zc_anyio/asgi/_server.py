"""The server: where it listens, what its connections share, and how it stops."""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import logging
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, Literal

import anyio
from anyio.abc import ByteStream, Listener, SocketAttribute, TaskGroup, TaskStatus

from .._base.loops import TrioLoop, running_loop
from .._connecting.listen import create_tcp_listener, create_unix_listener
from .._ring.opening import Driver, current_ring, open_ring
from ..listeners import ZeroCopySocketListener
from ..tls import TLSListener
from ._connection import Application, Connection, Site, TrustedProxies
from ._exchange import Exchange
from ._lifespan import running
from ._peer import Limits

__all__ = ["serve"]

log = logging.getLogger("zc_anyio.asgi")

# Deadlines are checked at this interval, or at a quarter of the shortest limit if that is less.
SWEEP_SECONDS = 1.0
SWEEP_AT_LEAST = 0.02
SWEPT_AT_ONCE = 1000
# When the server is told to stop, connections that wait in the listen queue are still accepted, for
# this long at most.  Those accepted last have as long to send their request.
LAST_ACCEPT_SECONDS = 5.0
LAST_REQUEST_SECONDS = 1.0
# From asm-generic/socket.h and linux/filter.h: the filter `ret 0`, which drops every packet.
SO_ATTACH_FILTER = 26
DROP = struct.pack("HBBI", 0x06, 0, 0, 0)
BACKLOG = 2048


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
    """Serve an ASGI application until told to stop, or cancelled.

    The ambient ring carries what is sent.  If none is open, one is opened for as long as this runs;
    it is then the ambient ring of the application.

    :param app: an ASGI 3 application.
    :param host: address or name to listen on.
    :param port: 0 for a free one.
    :param uds: path of a UNIX socket, in place of host and port.
    :param fd: descriptor of a bound socket, in place of host, port and path.
    :param reuse_port: let other processes listen on the same port.
    :param tls: serve HTTPS; the kernel encrypts where it can, as of :func:`zc_anyio.tls.wrap_tls`.
    :param certificate: the server's in PEM, for applications that use ASGI's TLS extension.
    :param driver: driver of the ring that is opened.
    :param limits: what peers may ask; ``Limits()`` by default.
    :param root_path: where a proxy has mounted the application.
    :param forwarded_allow_ips: proxies whose ``X-Forwarded-For`` and ``X-Forwarded-Proto`` are
        believed: addresses and networks, with commas between them, or ``*``; ``None`` for nobody.
    :param access_log: log each answer to ``zc_anyio.asgi.access``, in uvicorn's format.
    :param lifespan: ``"off"``: the application is not told of start and stop; ``"on"``: an
        application that does not support this fails; ``"auto"``: it is told if it does.
    :param stop: set it to stop gracefully: what was accepted is answered, within
        ``limits.stop_seconds``.  Cancelling ends everything at once.
    :param task_status: gets the URLs when connections are accepted.
    :raises LifespanError: the application could not start.
    :raises OSError: the address cannot be listened on.
    :raises DriverUnavailable: the driver cannot run here.
    :raises ValueError: ``forwarded_allow_ips`` contains something that is not an address.
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
        )
        urls = _urls(listener, "http" if tls is None else "https")
        own = [] if fd is not None else _sockets(listener)
        if tls is not None:
            listener = TLSListener(listener, tls, standard_compatible=False)
        await server.run(listener, own, stop or anyio.Event(), lambda: task_status.started(urls))


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


def _sockets(listener: Listener[Any]) -> list[Any]:
    listeners = getattr(listener, "listeners", [listener])
    return [one.extra(SocketAttribute.raw_socket) for one in listeners]


def _urls(listener: Listener[Any], scheme: str) -> list[str]:
    urls = []
    for sock in _sockets(listener):
        address = sock.getsockname()
        if sock.family == socket.AF_UNIX:
            urls.append(f"unix:{address}")
        else:
            host = f"[{address[0]}]" if ":" in address[0] else address[0]
            urls.append(f"{scheme}://{host}:{address[1]}")
    return urls


async def _empty_queue(sock: Any) -> None:
    """Have the kernel take no more connections, and wait until those it has are accepted.

    Closing a socket resets the connections in its queue, so the queue must be empty first.
    """
    code = ctypes.create_string_buffer(DROP)
    with suppress(OSError):  # a UNIX socket
        program = struct.pack("HP", 1, ctypes.addressof(code))
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    with anyio.move_on_after(LAST_ACCEPT_SECONDS):
        while poll.poll(0):  # noqa: ASYNC110 - the listener is watched by who accepts
            await anyio.sleep(0.001)


@dataclass(eq=False, kw_only=True)
class _Server(Site):
    def __post_init__(self) -> None:
        self._connections: set[Connection] = set()
        self._tasks: TaskGroup
        self._stop: anyio.Event
        self._stopping = False
        self._answered = 0
        # Exchanges whose applications may go on after their answers.
        self._open: list[tuple[Connection, Exchange]] = []
        self._call_soon = _call_soon()
        # Connections are served with the context variables that the server was started with.
        self._context = contextvars.copy_context()

    # --- what connections ask for ---

    def is_stopping(self) -> bool:
        return self._stopping

    def is_crowded(self) -> bool:
        most = self.limits.concurrency
        return most is not None and len(self._connections) > most

    def answered(self, connection: Connection, exchange: Exchange | None = None) -> None:
        if exchange is not None:
            if not self._open:
                self._call_soon(self._look_at_open)
            self._open.append((connection, exchange))
        self._answered += 1
        if self._answered == self.limits.requests:
            log.warning("Maximum request limit of %d exceeded. Terminating.", self._answered)
            self._stop.set()

    def _look_at_open(self) -> None:
        found, self._open = self._open, []
        for connection, exchange in found:
            connection.hand_over(exchange)

    def closed(self, connection: Connection) -> None:
        self._connections.discard(connection)

    def start(self, function: Callable[[], Coroutine[Any, Any, object]]) -> None:
        self._context.run(lambda: self._tasks.start_soon(function))

    # --- running ---

    async def run(
        self,
        listener: Listener[Any],
        own: list[Any],
        stop: anyio.Event,
        started: Callable[[], object],
    ) -> None:
        """Serve until it is told to stop, then stop gracefully.

        :param own: sockets of the listener on which nobody else accepts.
        """
        self._stop = stop
        async with anyio.create_task_group() as sweeping:
            async with anyio.create_task_group() as self._tasks:
                sweeping.start_soon(self._sweep)
                async with listener, anyio.create_task_group() as accepting:
                    accepting.start_soon(listener.serve, self._accepted, self._tasks)
                    started()
                    await stop.wait()
                    self._stopping = True
                    for sock in own:
                        await _empty_queue(sock)
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
            # The connection is gone already.
            await anyio.aclose_forcefully(stream)
            return
        self._connections.add(connection)
        await connection.serve()

    def _end_idle(self) -> None:
        """End connections that have nothing to answer."""
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
        """Check deadlines, a few connections at a time."""
        limits = self.limits
        shortest = min(
            limits.head_seconds,
            limits.keep_alive_seconds,
            limits.body_seconds,
            limits.websocket_ping_seconds,
            limits.stall_seconds,
        )
        interval = max(SWEEP_AT_LEAST, min(SWEEP_SECONDS, shortest / 4))
        while True:
            await anyio.sleep(interval)
            now = time.monotonic()
            for number, connection in enumerate(list(self._connections), start=1):
                connection.peer.check_deadline(now)
                connection.peer.check_rate(now)
                websocket = connection.websocket
                if websocket is not None and websocket.is_due(now):
                    self.start(websocket.ping)
                if number % SWEPT_AT_ONCE == 0:
                    await anyio.lowlevel.checkpoint()


def _call_soon() -> Callable[[Callable[[], object]], object]:
    """Return a function that calls another after all tasks that can run now have run."""
    if isinstance(running_loop(), TrioLoop):
        import trio

        return trio.lowlevel.current_trio_token().run_sync_soon
    return asyncio.get_running_loop().call_soon
