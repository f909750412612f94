"""Datagrams to a device that drops everything: the only zero copy that one machine can show.

The device is in a network namespace of a second process, and ends with it.  A datagram is sent when
the kernel hands it to the device, so only sending is measured.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import anyio

import zc_anyio

from .sending import Payload

# From the addresses for documentation; nothing else has a route there.
OWN, PEER = "198.51.100.1", "198.51.100.2"
DEVICE = "zc-demo"
# With headers a datagram of this size fits the largest MTU.
DATAGRAM = 60_000
TOTAL = 1 << 30
SECONDS = 120

# Of linux/socket.h and linux/errqueue.h, which Python's socket module does not have.
SO_ZEROCOPY, MSG_ZEROCOPY = 60, 0x4000000
NOTIFICATION = struct.Struct("=IBBBBII")
ORIGIN_ZEROCOPY, CODE_COPIED = 5, 1


class NotHere(Exception):  # noqa: N818 - as anyio's exceptions are named
    """The device cannot be made; the message says why."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """The cost of one way of sending.

    :ivar size: bytes sent.
    :ivar cpu_seconds: CPU time of the process, user and system.
    :ivar zero_copied: datagrams, by the kernel's own report; ``None``: there is no report.
    """

    way: str
    size: int
    cpu_seconds: float
    zero_copied: int | None
    copied: int | None


def measure(
    path: Path, limit: int, driver: str, backend: dict[str, Any], *, total: int = TOTAL
) -> list[Dropped]:
    """Send ``limit`` bytes of a file again and again, ``total`` in all, in a second process.

    :raises NotHere: the namespace or the device cannot be made.
    """
    names = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    asked = json.dumps([str(path), limit, driver, backend, total])
    command = ["unshare", *names, "--net", sys.executable, "-m", "examples.demo.dropped", asked]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise NotHere(str(exc)) from exc
    if done.returncode:
        raise NotHere((done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1])
    return [Dropped(**each) for each in json.loads(done.stdout)]


def main() -> None:
    path, limit, driver, backend, total = json.loads(sys.argv[1])
    make_device()
    chunks = Payload(Path(path), limit).chunks(limit, DATAGRAM)
    chunks *= total // sum(map(len, chunks)) + 1
    ways = [by_socket(chunks), by_msg_zerocopy(chunks)]
    ways.append(anyio.run(by_group, chunks, driver, **backend))
    print(json.dumps([asdict(each) for each in ways]))


def make_device() -> None:
    # Both kinds drop what they are given; not every kernel has both.
    if subprocess.run(["ip", *f"link add {DEVICE} type dummy".split()], check=False).returncode:
        ip(f"link add {DEVICE} type ifb")
    ip(f"link set {DEVICE} mtu 65535 up")
    ip(f"addr add {OWN}/24 dev {DEVICE}")


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


@contextmanager
def connected() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((PEER, 9))
        yield sock


def by_socket(chunks: list[memoryview]) -> Dropped:
    """What every program does."""
    with connected() as sock:
        cpu = measured(lambda: [sock.send(chunk) for chunk in chunks])
    return Dropped("socket.send", sum(map(len, chunks)), cpu, None, None)


def by_msg_zerocopy(chunks: list[memoryview]) -> Dropped:
    """The kernel's older interface, by hand."""
    counts = [0, 0]

    def send() -> None:
        for number, chunk in enumerate(chunks, 1):
            sock.send(chunk, MSG_ZEROCOPY)
            if number % 32 == 0:
                take_notifications(sock, counts)
        while sum(counts) < len(chunks):
            take_notifications(sock, counts)

    with connected() as sock:
        sock.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
        cpu = measured(send)
    return Dropped("MSG_ZEROCOPY", sum(map(len, chunks)), cpu, *counts)


def take_notifications(sock: socket.socket, counts: list[int]) -> None:
    """Count the sends that the kernel has finished: zero-copied, and copied."""
    while True:
        try:
            _, control, _, _ = sock.recvmsg(0, 512, socket.MSG_ERRQUEUE | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        for _, _, data in control:
            _, origin, _, code, _, low, high = NOTIFICATION.unpack_from(data)
            if origin == ORIGIN_ZEROCOPY:
                counts[code & CODE_COPIED] += high - low + 1


async def by_group(chunks: list[memoryview], driver: Any) -> Dropped:
    """A send group of this library."""
    with connected() as sock:
        sock.setblocking(False)
        async with zc_anyio.open_ring(driver=driver) as ring:
            start = time.process_time()
            async with zc_anyio.send_group() as group:
                await group.send_many(sock, chunks)
            cpu = time.process_time() - start
            counters = ring.statistics()
    return Dropped("send group", sum(map(len, chunks)), cpu, counters.zero_copied, counters.copied)


def measured(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    try:
        main()
    except (OSError, subprocess.CalledProcessError) as exc:
        sys.exit(f"no device that drops everything can be made: {exc}")
