"""Datagrams that tell whether they are whole, and a process that looks at each that arrives.

A datagram has its number and its size, and a pattern that follows from the number: neighbours have
nothing in common, so a byte of another one is noticed.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import select
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

__all__ = ["LARGEST", "SMALLEST", "Checked", "Checker", "datagram"]

HEADER = struct.Struct("!QH")
SMALLEST = HEADER.size
LARGEST = 1 << 13
# Patterns are parts of this, from different places on.
PLACES = 1 << 16
TABLE = random.Random(11).randbytes(PLACES + LARGEST)
STEP = 40_503
# Everything that is under way has come when nothing came for so long.
QUIET_SECONDS = 0.5
PROGRESS = struct.Struct("Q")
SO_RCVBUFFORCE = 33


def datagram(number: int, size: int) -> bytes:
    """Make datagram ``number``, of ``size`` bytes."""
    place = number * STEP % PLACES
    return HEADER.pack(number, size) + TABLE[place : place + size - HEADER.size]


@dataclass
class Checked:
    """What a receiver has found.

    :ivar received: different datagrams that came as they were cut.
    :ivar wrong: pieces that are no datagram of the sender.
    :ivar twice: datagrams that had come before.
    :ivar example: one that is wrong, in hexadecimal.
    """

    received: int = 0
    wrong: int = 0
    twice: int = 0
    example: str = ""


class Checker:
    """Looks at what comes to a socket, in a process of its own.

    :param count: how many datagrams there are; they have the numbers from 0 on.
    """

    def __init__(self, sock: socket.socket, count: int) -> None:
        with suppress(PermissionError):
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self._memory = os.memfd_create("progress")
        os.truncate(self._memory, PROGRESS.size)
        self._progress = mmap.mmap(self._memory, PROGRESS.size)
        descriptors = sock.fileno(), self._memory
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.numbered", *map(str, (*descriptors, count))],
            pass_fds=descriptors,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._progress.close()
        os.close(self._memory)

    @property
    def seen(self) -> int:
        """How many have come, of whatever kind."""
        return int(PROGRESS.unpack(self._progress[:])[0])

    def finish(self) -> Checked:
        """Wait until nothing more comes, and return what was found."""
        output, _ = self._process.communicate()
        return Checked(**json.loads(output))


def check(sock: socket.socket, progress: mmap.mmap, count: int) -> Checked:
    """Look at what comes until nothing does, and standard input has ended."""
    found = Checked()
    had = bytearray(count)
    seen = 0
    while True:
        try:
            data = sock.recv(LARGEST * 2)
        except TimeoutError:
            if select.select([sys.stdin], [], [], 0)[0]:
                return found
            continue
        number, size = HEADER.unpack_from(data) if len(data) >= SMALLEST else (count, 0)
        if number >= count or data != datagram(number, size):
            found.wrong += 1
            found.example = data.hex()
        elif had[number]:
            found.twice += 1
        else:
            had[number] = True
            found.received += 1
        seen += 1
        PROGRESS.pack_into(progress, 0, seen)


def main() -> None:
    """Check what comes to a descriptor that was passed on."""
    descriptor, memory, count = map(int, sys.argv[1:])
    with socket.socket(fileno=descriptor) as sock:
        sock.settimeout(QUIET_SECONDS)
        found = check(sock, mmap.mmap(memory, PROGRESS.size), count)
    print(json.dumps(vars(found)))


if __name__ == "__main__":
    main()
