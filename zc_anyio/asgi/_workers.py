"""Several worker processes that serve one address: they are watched, restarted and ended."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["Place", "Supervisor", "end_with_parent", "find_place", "take_orders"]

log = logging.getLogger("zc_anyio.asgi")

# By this variable a worker gets the pipe that ends when its parent does, and the address to serve.
ORDERS = "ZC_ANYIO_ASGI_WORKER"
TICK_SECONDS = 0.1
# After several workers in a row that ended sooner than this, none is started again.
SHORT_LIFE_SECONDS = 5.0
SHORT_LIVES = 5
# How long a worker may go on with what it has accepted after its parent has ended.
ORPHAN_SECONDS = 30.0

Place = dict[str, Any]


def find_place(
    host: str, port: int, uds: str | None, fd: int | None
) -> tuple[socket.socket, Place]:
    """Take the address that workers are to share.

    A port is only bound here; each worker listens on it with a socket of its own, and the kernel
    distributes connections among them.  A UNIX socket, or a socket that was handed over, is shared
    by all workers.

    :return: the socket, which keeps the address taken, and what workers have to be told.
    :raises OSError: the address is taken, or does not exist.
    """
    if fd is not None:
        sock = socket.socket(fileno=fd)
        return sock, {"fd": fd}
    if uds is not None:
        if Path(uds).is_socket():
            Path(uds).unlink()
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(uds)
        return sock, {"fd": sock.fileno()}
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Binding fails here if another process listens there without sharing the port.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock, {"host": sock.getsockname()[0], "port": sock.getsockname()[1]}


def take_orders() -> Place | None:
    """Return what this process was told as a worker, or ``None`` if it is not one."""
    text = os.environ.pop(ORDERS, None)
    return None if text is None else json.loads(text)


def end_with_parent(pipe: int) -> None:
    """End this process when its parent ends in any way, which closes the parent's end of a pipe."""

    def watch() -> None:
        os.read(pipe, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(ORPHAN_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="zc_anyio parent").start()


class Supervisor:
    """Runs workers until it is told to stop.

    :param command: the arguments of ``python -m zc_anyio.asgi``.
    :param reload: a folder; when a Python file in it changes, all workers are started anew.
    """

    def __init__(
        self, command: Sequence[str], count: int, place: Place, *, reload: Path | None = None
    ) -> None:
        self._command = [sys.executable, "-m", "zc_anyio.asgi", *command]
        self._count = count
        self._place = place
        self._reload = reload
        self._workers: dict[subprocess.Popen[bytes], float] = {}
        self._read, self._write = os.pipe()
        self._stopping = False
        self._short_lives = 0

    def run(self) -> int:
        """Run until told to stop; return 0, or the exit status of a worker that cannot start."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        log.info("Started parent process [%d]", os.getpid())
        try:
            for _ in range(self._count):
                self._start()
            for changed in self._ticks():
                if changed:
                    log.warning("Detected changes in %s. Reloading...", ", ".join(sorted(changed)))
                    self._restart()
                status = self._look_after()
                if status is not None or self._stopping:
                    break
            self._end_all()
        finally:
            os.close(self._read)
            os.close(self._write)
        log.info("Stopped parent process [%d]", os.getpid())
        return status or 0

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        if self._stopping:
            # This is the second signal: nothing is waited for any more.
            for worker in self._workers:
                worker.kill()
        self._stopping = True

    def _start(self) -> None:
        orders = json.dumps({**self._place, "pipe": self._read})
        inherited = [self._read, *([self._place["fd"]] if "fd" in self._place else [])]
        # In a process group of its own: Ctrl+C at the terminal reaches only the parent, which then
        # tells the workers.
        worker = subprocess.Popen(
            self._command,
            env={**os.environ, ORDERS: orders},
            stdin=subprocess.DEVNULL,
            pass_fds=inherited,
            process_group=0,
        )
        self._workers[worker] = time.monotonic()

    def _look_after(self) -> int | None:
        """Replace workers that have ended; return the status to end with if that is hopeless."""
        for worker, began in list(self._workers.items()):
            if worker.poll() is None or self._stopping:
                continue
            del self._workers[worker]
            lived = time.monotonic() - began
            self._short_lives = self._short_lives + 1 if lived < SHORT_LIFE_SECONDS else 0
            level = logging.ERROR if worker.returncode else logging.INFO
            log.log(level, "Worker [%d] ended with status %d.", worker.pid, worker.returncode)
            if self._reload is not None:
                # With --reload the author is about to change the program.
                continue
            if worker.returncode > 0 and self._short_lives >= SHORT_LIVES:
                log.error("Workers end as soon as they are started: giving up.")
                return worker.returncode
            self._start()
        return None

    def _restart(self) -> None:
        self._end_all()
        for _ in range(self._count):
            self._start()

    def _end_all(self) -> None:
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                worker.terminate()
        for worker in self._workers:
            worker.wait()
        self._workers.clear()

    def _ticks(self) -> Iterator[set[str]]:
        """Yield the files that have changed, again and again."""
        if self._reload is None:
            while True:
                time.sleep(TICK_SECONDS)
                yield set()
        import watchfiles

        watched = watchfiles.watch(
            self._reload,
            watch_filter=watchfiles.PythonFilter(),
            rust_timeout=int(TICK_SECONDS * 1000),
            yield_on_timeout=True,
            raise_interrupt=False,
        )
        for changes in watched:
            yield {os.path.relpath(path) for _, path in changes}
