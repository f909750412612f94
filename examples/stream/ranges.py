"""The parts of a file that a request asks for, and its conditions (RFC 9110, 13 and 14)."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from email.utils import formatdate, parsedate_to_datetime

__all__ = ["RANGES_MOST", "Version", "satisfiable"]

# For more ranges than this, the whole file is the cheaper answer.
RANGES_MOST = 16
RANGE = re.compile(r"(\d*)-(\d*)", re.ASCII)
DIGITS_MOST = 19


def satisfiable(header: str, size: int) -> str | None:
    """Return what a ``Range`` header asks for, written plainly; ``None``: the whole file.

    The whole file is the answer if the unit is not bytes, if there are more than ``RANGES_MOST``
    ranges, if they are together longer than the file, and if the file is empty.  nginx does the
    same.  If nothing in it can be answered, a range is returned that begins after the file.
    """
    unit, _, specs = header.partition("=")
    items = specs.split(",")
    if unit.strip().lower() != "bytes" or not specs or not size or len(items) > RANGES_MOST:
        return None
    ranges = []
    for item in items:
        match = RANGE.fullmatch(item.strip())
        first, last = match.groups() if match is not None else ("", "")
        if not first + last or max(len(first), len(last)) > DIGITS_MOST:
            return f"bytes={size}-"
        if first and last and int(last) < int(first):
            return f"bytes={size}-"
        start = int(first) if first else max(0, size - int(last))
        end = min(size, int(last) + 1) if first and last else size
        if start < end:
            ranges.append((start, end))
    if len(ranges) > 1 and sum(end - start for start, end in ranges) > size:
        return None
    plain = ",".join(f"{start}-{end - 1}" for start, end in ranges)
    return f"bytes={plain or f'{size}-'}"


class Version:
    """The present version of a file, for requests with conditions.

    :ivar etag: a strong validator, made of the file's size, time and inode.
    :ivar last_modified: the file's time in HTTP's format.
    """

    def __init__(self, status: os.stat_result) -> None:
        self.etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"'
        self._seconds = int(status.st_mtime)
        self.last_modified = formatdate(self._seconds, usegmt=True)

    def precondition(self, headers: Mapping[str, str]) -> int | None:
        """Return 304 or 412 if that is the answer."""
        match, none_match = headers.get("if-match"), headers.get("if-none-match")
        unmodified = _seconds(headers.get("if-unmodified-since")) if match is None else None
        modified = _seconds(headers.get("if-modified-since")) if none_match is None else None
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
        return if_range in (None, self.etag, self.last_modified)

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
