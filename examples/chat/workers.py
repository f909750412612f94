"""Several processes that accept on the same port."""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
from types import FrameType

__all__ = ["run_workers"]


def run_workers(options: argparse.Namespace) -> int:
    """Run the workers until SIGTERM or SIGINT, or until one of them ends; then end them all.

    :return: the exit status: 0 if all of them ended well.
    """
    # This socket keeps the port; as it does not listen, it takes no connections.
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            place.bind((options.host, options.port))
        except OSError as exc:
            raise SystemExit(f"{options.host}, port {options.port}: {exc}") from None
        port = place.getsockname()[1]
        command = [sys.executable, "-m", "examples.chat", *sys.argv[1:], "--port", str(port)]
        workers = [subprocess.Popen([*command, "--worker"]) for _ in range(options.workers)]

        stopping = False

        def stop(_signal: int = 0, _frame: FrameType | None = None) -> None:
            # Only once: a second signal would kill a worker that is about to end.
            nonlocal stopping
            if not stopping:
                stopping = True
                for worker in workers:
                    worker.terminate()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        waiting = list(workers)
        while waiting:
            waiting.remove(_wait_any(waiting))
            stop()
        # A worker that was still starting is ended by the signal itself.
        return int(any(worker.returncode not in (0, -signal.SIGTERM) for worker in workers))


def _wait_any(workers: list[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    while True:
        for worker in workers:
            try:
                worker.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                continue
            return worker
