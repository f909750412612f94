"""A moving test picture, encoded as JPEG into memory that is given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from io import BufferedIOBase
from typing import IO, Any, cast

from PIL import Image, ImageDraw, ImageFont

__all__ = ["BOUNDARY", "CODE_BITS", "FIRST", "Part", "Picture"]

BARS = ["#c8c8c8", "#c8c800", "#00c8c8", "#00c800", "#c800c8", "#c80000", "#0000c8"]
QUALITY = 80
BOUNDARY = "frame"
# How much is kept free before the picture for the head of its part.
HEAD_MOST = 160
FIRST = f"--{BOUNDARY}\r\n".encode()
TAIL = b"\r\n" + FIRST
# The frame's number in black and white squares at the bottom, the lowest bit to the right.
CODE_BITS = 24


class Writer(BufferedIOBase):
    """A file object that writes into a piece of memory.

    Writing more than there is room for raises ``ValueError``.
    """

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self.size = 0

    def write(self, data: Any) -> int:
        self._view[self.size : self.size + len(data)] = data
        self.size += len(data)
        return len(data)


@dataclass(frozen=True, slots=True)
class Part:
    """A frame in memory.

    :ivar chunk: as a chunk of HTTP/1.1.
    :ivar bare: the same without the bytes that make it a chunk.
    """

    chunk: memoryview
    bare: memoryview


class Picture:
    """Draws frames of one size."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.height = height
        self._font = ImageFont.load_default(height / 14)
        self._background = Image.new("RGB", (width, height), "#101014")
        draw = ImageDraw.Draw(self._background)
        bar = width / len(BARS)
        for number, colour in enumerate(BARS):
            draw.rectangle((number * bar, 0, (number + 1) * bar, height * 0.55), fill=colour)
        for x in range(0, width, 4):
            draw.rectangle((x, height * 0.55, x + 3, height * 0.62), fill=(x * 255 // width,) * 3)

    def draw(self, number: int, now: datetime) -> Image.Image:
        """Return the frame of a number, with the time."""
        image = self._background.copy()
        draw = ImageDraw.Draw(image)
        width, height = self.width, self.height
        radius = height / 12
        x = radius + (width - 2 * radius) * (0.5 - 0.5 * math.cos(number / 40))
        y = height * 0.5 - abs(math.sin(number / 12)) * height * 0.4
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), "white", "black", 3)
        text = f"Frame {number}    {now:%H:%M:%S}.{now.microsecond // 10000:02}"
        draw.text((width / 2, height * 0.75), text, "white", self._font, anchor="mm")
        side = width / CODE_BITS
        for bit in range(CODE_BITS):
            left = (CODE_BITS - 1 - bit) * side
            lit = number >> bit & 1
            draw.rectangle(
                (left, height * 0.9, left + side, height), "white" if lit else "black", "#404040"
            )
        return image

    def encode(self, number: int, now: datetime, view: memoryview) -> Part:
        """Draw a frame and write it into memory as a part of ``multipart/x-mixed-replace``.

        :raises ValueError: ``view`` is too small.
        """
        writer = Writer(view[HEAD_MOST:])
        self.draw(number, now).save(cast("IO[bytes]", writer), "JPEG", quality=QUALITY)
        size = writer.size
        # Browsers show a part when they see that the next one begins, so the boundary ends it.
        writer.write(TAIL)
        head = (
            f"Content-Type: image/jpeg\r\nContent-Length: {size}\r\n"
            f"X-Frame: {number}\r\nX-Time: {now.timestamp():.3f}\r\n\r\n"
        ).encode()
        start, end = HEAD_MOST - len(head), HEAD_MOST + writer.size
        # The part as a chunk of HTTP/1.1: its size before it, and a line break after it.
        size_line = b"%x\r\n" % (end - start)
        writer.write(b"\r\n")
        view[start:HEAD_MOST] = head
        view[start - len(size_line) : start] = size_line
        return Part(view[start - len(size_line) : end + 2], view[start:end])

    def room(self) -> int:
        """Return bytes that are enough for any frame: twice what one takes."""
        view = memoryview(bytearray(3 * self.width * self.height + 2 * HEAD_MOST))
        return 2 * len(self.encode(0, datetime.now().astimezone(), view).chunk) + HEAD_MOST
