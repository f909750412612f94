"""``python -m zc_anyio.asgi`` as a child process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.commands import ROOT
from tests.support.waiting import until_blocking

LIMIT = 45.0
APP = "tests.asgi.served_app:app"


class Command:
    """A server that was started by the command.

    :ivar urls: where it listens.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self.urls: list[str] = []
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            if (match := re.search(r"zc_anyio running on (\S+) by", line)) is not None:
                self.urls.append(match[1])

    def ask(self, path: str = "/", **options: Any) -> Any:
        """Ask on a connection of its own, and return what the JSON says."""
        return httpx.get(self.urls[0] + path, timeout=LIMIT, **options).json()

    def processes(self, count: int) -> set[int]:
        """Wait until ``count`` processes have answered, and return them."""
        found: set[int] = set()

        def asked() -> bool:
            found.add(self.ask()["process"])
            return len(found) >= count

        until_blocking(asked, f"{count} processes answer")
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it and return its exit status."""
        self.process.send_signal(number)
        status = self.process.wait(LIMIT)
        self._reading.join(LIMIT)
        return status

    def errors(self) -> list[str]:
        return [line for line in self.lines if not line.startswith("INFO:")]


@contextmanager
def command(
    *arguments: str,
    workers: int = 1,
    app: str = APP,
    folder: Path = ROOT,
    pass_fds: Sequence[int] = (),
) -> Iterator[Command]:
    """Run the command, wait until all workers listen; kill what is left at the end."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-W", "error", "-m", "zc_anyio.asgi", app, "--port=0"),
            *(*arguments, f"--workers={workers}"),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        pass_fds=pass_fds,
    )
    assert process.stdout is not None
    started = Command(process)
    try:
        until_blocking(
            lambda: len(started.urls) >= workers or process.poll() is not None, "it listens"
        )
        assert process.poll() is None, started.lines
        yield started
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        started._reading.join(LIMIT)
        assert process.stderr is not None
        process.stderr.close()
        process.stdout.close()
