"""The parts of a file that a request asks for, and its conditions (RFC 9110, 13 and 14)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime

__all__ = ["RANGES_MOST", "Range", "UnsatisfiableError", "Version", "parse_range"]

# For more ranges than this, the whole file is the cheaper answer.
RANGES_MOST = 16
RANGE = re.compile(r"(\d*)-(\d*)", re.ASCII)
DIGITS_MOST = 19


class UnsatisfiableError(Exception):
    """No part that was asked for is in the file, or the header is not a range."""


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of a file from ``start`` up to, not including, ``end``."""

    start: int
    end: int

    def header(self, size: int) -> str:
        """Return the value of ``Content-Range``."""
        return f"bytes {self.start}-{self.end - 1}/{size}"


def parse_range(header: str, size: int) -> list[Range] | None:
    """Return the parts that ``Range`` asks for; ``None``: the whole file.

    The whole file is the answer if the unit is not bytes, if there are more than ``RANGES_MOST``
    ranges, if they are together longer than the file, and if the file is empty.  nginx does the
    same.

    :raises UnsatisfiableError: 416.
    """
    unit, _, specs = header.partition("=")
    items = specs.split(",")
    if unit.strip().lower() != "bytes" or not specs or not size or len(items) > RANGES_MOST:
        return None
    ranges = []
    for item in items:
        if (match := RANGE.fullmatch(item.strip())) is None:
            raise UnsatisfiableError
        first, last = match.groups()
        if (not first and not last) or len(first) > DIGITS_MOST or len(last) > DIGITS_MOST:
            raise UnsatisfiableError
        if not first:
            start, end = max(0, size - int(last)), size
        else:
            start, end = int(first), min(size, int(last) + 1) if last else size
            if last and int(last) < start:
                raise UnsatisfiableError
        if start < end:
            ranges.append(Range(start, end))
    if not ranges:
        raise UnsatisfiableError
    if len(ranges) > 1 and sum(part.end - part.start for part in ranges) > size:
        return None
    return ranges


class Version:
    """The present version of a file, for requests with conditions.

    :ivar etag: a strong validator, made of the file's size, time and inode.
    :ivar last_modified: the file's time in HTTP's format.
    """

    def __init__(self, status: os.stat_result) -> None:
        self.etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"'
        self._seconds = int(status.st_mtime)
        self.last_modified = formatdate(self._seconds, usegmt=True)

    def precondition(self, header: Callable[[str], str | None]) -> int | None:
        """Return 304 or 412 if that is the answer.

        :param header: returns a header of the request by its name.
        """
        match, none_match = header("if-match"), header("if-none-match")
        unmodified = _seconds(header("if-unmodified-since")) if match is None else None
        modified = _seconds(header("if-modified-since")) if none_match is None else None
        if match is not None and not self._is_in(match, weak=False):
            return 412
        if unmodified is not None and self._seconds > unmodified:
            return 412
        if none_match is not None and self._is_in(none_match, weak=True):
            return 304
        if modified is not None and self._seconds <= modified:
            return 304
        return None

    def is_still(self, if_range: str | None) -> bool:
        """Whether ``If-Range`` allows a part to be sent."""
        if if_range is None:
            return True
        if if_range.startswith(('"', "W/")):
            return if_range == self.etag
        return if_range == self.last_modified

    def _is_in(self, tags: str, *, weak: bool) -> bool:
        listed = [tag.strip() for tag in tags.split(",")]
        if weak:
            listed = [tag.removeprefix("W/") for tag in listed]
        return self.etag in listed or listed == ["*"]


def _seconds(date: str | None) -> float | None:
    """Return an HTTP date in seconds; ``None`` if it is not one, and so has to be ignored."""
    if date is None:
        return None
    try:
        return parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError):
        return None
