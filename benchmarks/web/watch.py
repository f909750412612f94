"""What a server takes while it is measured: CPU time and memory, of all its processes."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path

__all__ = ["Watch"]

SAMPLE_SECONDS = 0.1
PAGE = 4096
# The CPU clock of a process's threads, those that have ended included (clock_getcpuclockid(3)).
CPU_CLOCK = 2


class Watch:
    """Watches a process and its descendants for as long as the block is open.

    :ivar seconds: how long that was.
    :ivar cpu_seconds: user and system time of all their threads.
    :ivar memory: the most that was seen: anonymous memory of the processes, and the memory of all
        TCP sockets of the machine above what it was at the beginning; bytes.
    """

    def __init__(self, process: int) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self.memory = (0, 0)
        self._process = process

    def __enter__(self) -> Watch:
        self._all = _tree(self._process)
        self._sockets = _socket_bytes()
        self._ended = threading.Event()
        self._sampling = threading.Thread(target=self._sample)
        self._cpu, self._clock = self._cpu_clocks(), time.perf_counter()
        self._sampling.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._clock
        self._ended.set()
        self._sampling.join()
        self.cpu_seconds = self._cpu_clocks() - self._cpu

    def _cpu_clocks(self) -> float:
        return sum(time.clock_gettime(~process << 3 | CPU_CLOCK) for process in self._all)

    def _sample(self) -> None:
        while True:
            private = sum(map(_private_bytes, self._all))
            sockets = _socket_bytes() - self._sockets
            self.memory = (max(self.memory[0], private), max(self.memory[1], sockets))
            if self._ended.wait(SAMPLE_SECONDS):
                return


def _tree(root: int) -> list[int]:
    """Return a process and its descendants."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # The name, in parentheses, may hold anything.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = int(fields[1])
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def _private_bytes(process: int) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def _socket_bytes() -> int:
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            return int(line.split()[-1]) * PAGE
    raise OSError("/proc/net/sockstat has no line for TCP")
