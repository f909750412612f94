"""What is left in memory of a file that is sent often, after one that is larger than memory.

It has to run where memory is limited, as in a control group (version 1 here) of 512 MiB:

    mkdir /sys/fs/cgroup/memory/small
    echo 512M > /sys/fs/cgroup/memory/small/memory.limit_in_bytes
    sh -c 'echo $$ > /sys/fs/cgroup/memory/small/cgroup.procs; exec python -m benchmarks.page_cache'
    rmdir /sys/fs/cgroup/memory/small

TMPDIR has to be on a disk.  Everything goes over loopback.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.to_thread
from rich.console import Console
from rich.table import Table

import zc_anyio
from zc_anyio._files.memory_limit import memory_limit
from zc_anyio._native.lib import FileMemory

MIB = 1 << 20
PIECE = MIB

SendFile = Callable[[socket.socket, Path], Awaitable[object]]


def resident(path: Path) -> float:
    """Return the share of a file that is in memory."""
    size = path.stat().st_size
    memory = FileMemory(os.open(path, os.O_RDONLY), size)
    return sum(memory.is_resident(at, PIECE) for at in range(0, size, PIECE)) * PIECE / size


async def by_group(sock: socket.socket, path: Path) -> None:
    async with zc_anyio.send_group(window=8 * MIB) as group:
        await group.send_file(sock, path)


async def by_sendfile(sock: socket.socket, path: Path) -> None:
    def run() -> None:
        with path.open("rb") as file:
            sock.setblocking(True)
            sock.sendfile(file)

    await anyio.to_thread.run_sync(run)


async def by_reading(sock: socket.socket, path: Path) -> None:
    def run() -> None:
        sock.setblocking(True)
        with path.open("rb", buffering=0) as file:
            while data := file.read(256 << 10):
                sock.sendall(data)

    await anyio.to_thread.run_sync(run)


def drain(sock: socket.socket) -> None:
    memory = bytearray(MIB)
    while sock.recv_into(memory):
        pass


async def measure(send: SendFile, often: Path, large: Path) -> tuple[float, float, float]:
    """Return seconds for the large file, and how much of each file is in memory then."""

    async def once(path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            with socket.create_connection(listening.getsockname()) as sock:
                taking = threading.Thread(target=drain, args=[listening.accept()[0]])
                taking.start()
                sock.setblocking(False)
                await send(sock, path)
            await anyio.to_thread.run_sync(taking.join)

    async with zc_anyio.open_ring():
        for _ in range(3):
            await once(often)
        began = time.monotonic()
        await once(large)
        return time.monotonic() - began, resident(often), resident(large)


def main() -> None:
    """Measure each way of sending, in turn."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mib", type=int, default=2048, help="of the large file (%(default)s)")
    parser.add_argument("--often", type=int, default=128, help="MiB of the other (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each way (%(default)s)")
    arguments = parser.parse_args()
    if arguments.mib * MIB <= memory_limit():
        parser.error(f"{arguments.mib} MiB fit into memory, see the beginning of this file")
    table = Table("way", "seconds", "of the file sent often", "of the large file")
    with tempfile.TemporaryDirectory() as folder:
        often, large = Path(folder, "often"), Path(folder, "large")
        for path, size in (often, arguments.often), (large, arguments.mib):
            with path.open("wb") as file:
                for _ in range(size):
                    file.write(os.urandom(MIB))
                os.fsync(file.fileno())
        for _ in range(arguments.rounds):
            for name, send in (
                ("send_file", by_group),
                ("sendfile(2)", by_sendfile),
                ("read and send", by_reading),
            ):
                for path in often, large:
                    with path.open("rb") as file:
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                seconds, kept, passed = anyio.run(measure, send, often, large)
                table.add_row(name, f"{seconds:.2f}", f"{kept:.0%}", f"{passed:.0%}")
    Console().print(table)


if __name__ == "__main__":
    main()
