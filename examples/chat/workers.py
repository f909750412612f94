"""Several processes that accept on the same port."""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from tempfile import TemporaryDirectory
from types import FrameType

__all__ = ["end_with_parent", "run_workers"]

log = logging.getLogger("examples.chat")

TICK_SECONDS = 0.1
# A worker that ends sooner would do so again.
SHORT_LIFE_SECONDS = 5.0
# linux/prctl.h
PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Have this process stopped when its parent ends, in whatever way that happens."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise SystemExit("the parent has ended already")


def run_workers(options: argparse.Namespace) -> int:
    """Run the workers until SIGTERM or SIGINT; start those again that end.

    :return: the exit status: 1 if a worker has ended as soon as it was started.
    """
    # This socket keeps the port; as it does not listen, it takes no connections.
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with (
        TemporaryDirectory(prefix="chat-") as folder,
        socket.socket(family, socket.SOCK_STREAM) as place,
    ):
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            place.bind((options.host, options.port))
        except OSError as exc:
            raise SystemExit(f"{options.host}, port {options.port}: {exc}") from None
        port = place.getsockname()[1]
        command = [sys.executable, "-m", "examples.chat", *sys.argv[1:], f"--port={port}"]
        stopping = False

        def stop(_signal: int, _frame: FrameType | None) -> None:
            nonlocal stopping
            stopping = True

        for told_by in (signal.SIGTERM, signal.SIGINT):
            signal.signal(told_by, stop)
        workers: dict[subprocess.Popen[bytes], tuple[int, float]] = {}

        def start(number: int) -> None:
            told = ["--worker", str(os.getpid()), str(number), folder]
            workers[subprocess.Popen([*command, *told])] = number, time.monotonic()

        for number in range(options.workers):
            start(number)
        status = 0
        while not stopping:
            time.sleep(TICK_SECONDS)
            for worker, (number, began) in list(workers.items()):
                if worker.poll() is None or stopping:
                    continue
                log.error("worker %d has ended with status %d", worker.pid, worker.returncode)
                del workers[worker]
                if time.monotonic() - began < SHORT_LIFE_SECONDS:
                    status, stopping = 1, True
                else:
                    start(number)
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()
        return status
