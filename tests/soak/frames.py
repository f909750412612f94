"""What is sent: frames whose content follows from their header, so that a receiver can check it.

Each connection carries frames of several sources.  Those of one source arrive in the order of their
numbers; what a cancelled group has taken back is missing.
"""

from __future__ import annotations

import random
import struct

HEADER = struct.Struct("<IBxHII")  # magic, kind, source, number, size of the body
MAGIC = 0x5A435A43

HELLO = 1  # the first of a connection: source is the behaviour wanted, number its parameter
DATA = 2
END = 3  # the last of a connection on which nothing was lost: number is how many came before

PERIOD = (1 << 20) - 3
MOST_BODY = 4 << 20
_block = random.Random(1).randbytes(PERIOD)
PATTERN = memoryview(_block * (MOST_BODY // PERIOD + 2))


class WrongBytesError(Exception):
    """What arrived is not what was sent."""


def header(kind: int, source: int = 0, number: int = 0, size: int = 0) -> bytes:
    """Return the header of a frame with a body of ``size`` bytes."""
    return HEADER.pack(MAGIC, kind, source, number, size)


def body(source: int, number: int, size: int) -> memoryview:
    """Return the body of a frame, which nobody can change."""
    start = (number * 7919 + source * 104_729) % PERIOD
    return PATTERN[start : start + size]


def frame(source: int, number: int, size: int) -> bytes:
    """Return a whole frame."""
    return header(DATA, source, number, size) + body(source, number, size)


class Checker:
    """Takes the bytes of one connection, in pieces, and compares them with what they must be."""

    def __init__(self) -> None:
        self.frames = 0
        self.hello: tuple[int, int] | None = None
        self.ended = False
        self._latest: dict[int, int] = {}
        self._header = bytearray()
        self._expected: memoryview = PATTERN[:0]

    @property
    def is_whole(self) -> bool:
        """Whether nothing of a frame is missing."""
        return not self._header and not self._expected

    def feed(self, data: bytes | memoryview) -> None:
        """Compare what arrived next.

        :raises WrongBytesError: it is something else.
        """
        left = memoryview(data)
        while left:
            if self.ended:
                raise WrongBytesError(f"{len(left)} bytes behind the end")
            if self._expected:
                size = min(len(left), len(self._expected))
                if left[:size] != self._expected[:size]:
                    raise WrongBytesError(
                        f"the body of frame {self.frames} is wrong, {size} bytes compared"
                    )
                self._expected = self._expected[size:]
                left = left[size:]
                self.frames += not self._expected
                continue
            size = HEADER.size - len(self._header)
            self._header += left[:size]
            left = left[size:]
            if len(self._header) == HEADER.size:
                self._begin(*HEADER.unpack(self._header))
                self._header.clear()

    def _begin(self, magic: int, kind: int, source: int, number: int, size: int) -> None:
        if magic != MAGIC or size > MOST_BODY:
            raise WrongBytesError(
                f"no header: {bytes(self._header).hex()} after {self.frames} frames"
            )
        if kind == HELLO and self.hello is None:
            self.hello = source, number
        elif kind == END:
            self.ended = True
            if number != self.frames:
                raise WrongBytesError(f"{self.frames} frames arrived of {number}")
        elif kind == DATA:
            if number <= self._latest.get(source, -1):
                raise WrongBytesError(f"frame {number} of {source} after {self._latest[source]}")
            # A file holds frames of source 0, which come again with each sending.
            if source:
                self._latest[source] = number
            self._expected = body(source, number, size)
            self.frames += not size
        else:
            raise WrongBytesError(f"kind {kind}")
