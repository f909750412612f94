"""The servers, each as its users start it: one worker, no access log, otherwise its defaults."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["SERVERS", "Server", "running"]

ROOT = Path(__file__).resolve().parents[2]
APP = "benchmarks.web.application:app"
START_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Server:
    """A way to serve the application.

    :ivar arguments: of Python; ``{port}`` is where to listen.
    :ivar room: the path of the room in which messages go to all members.
    :ivar only: the beginning of the paths for which it is compared.
    """

    name: str
    arguments: tuple[str, ...]
    room: str = "/room"
    only: str = ""


def _ours(backend: str) -> tuple[str, ...]:
    command = ("-m", "zc_anyio.asgi", APP, "--port", "{port}", "--no-access-log")
    return (*command, "--backend", backend)


def _hypercorn(worker: str) -> tuple[str, ...]:
    return ("-m", "hypercorn", APP, "--bind", "127.0.0.1:{port}", "--worker-class", worker)


UVICORN = ("-m", "uvicorn", APP, "--port", "{port}", "--no-access-log")
GRANIAN = ("-m", "granian", APP, "--interface", "asgi", "--port", "{port}", "--no-access-log")
SERVERS = (
    *[Server(f"zc_anyio on {name}", _ours(name)) for name in ("asyncio", "uvloop", "trio")],
    Server("zc_anyio on uvloop, send group", _ours("uvloop"), room="/group", only="{room}"),
    Server("uvicorn", (*UVICORN, "--loop", "uvloop", "--http", "httptools")),
    Server("Hypercorn on asyncio", _hypercorn("asyncio")),
    Server("Hypercorn on trio", _hypercorn("trio")),
    Server("Granian", (*GRANIAN, "--loop", "uvloop")),
    Server(
        *("websockets.broadcast", ("-m", "benchmarks.web.bare_broadcast", "{port}")),
        only="{room}",
    ),
    Server("nginx", ("-m", "benchmarks.web.nginx", "{port}"), only="/files/"),
)


@contextmanager
def running(server: Server, core: int, files: Path, log: Path) -> Iterator[tuple[int, int]]:
    """Run a server on a core; gives its process and its port.

    :param files: the folder that it serves.
    :param log: where its output goes.
    :raises RuntimeError: it does not start; its output is in the message.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = [one.format(port=port) for one in server.arguments]
    command = ["taskset", "--cpu-list", str(core), sys.executable, *arguments]
    environment = {**os.environ, "BENCHMARK_FILES": str(files)}
    with (
        log.open("w") as output,
        subprocess.Popen(
            *(command,),
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        ) as process,
    ):
        try:
            if not _listens(process, port):
                raise RuntimeError(f"it does not start: {log.read_text().strip()[-500:]}")
            yield process.pid, port
        finally:
            # A session of its own: workers end as well, whatever their parent does.
            os.killpg(process.pid, signal.SIGKILL)


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    until = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.02)
    return False
