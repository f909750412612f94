"""What programs call a file, and which part of it they send."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from .._base.errors import os_error
from .._files.maps import truncated

__all__ = ["File", "Part", "open_part", "read_cached", "read_part"]


class HasDescriptor(Protocol):
    """A binary file object."""

    def fileno(self) -> int: ...


File: TypeAlias = str | os.PathLike[str] | HasDescriptor | int


@dataclass(slots=True)
class Part:
    """A part of an open file.

    :ivar count: bytes of it.
    :ivar own: whether the descriptor was opened here, and is closed soon.
    """

    fd: int
    status: os.stat_result
    count: int
    own: bool


@contextmanager
def open_part(file: File, offset: int, count: int | None) -> Iterator[Part]:
    """Open a file, if it is not, and yield the part of it that has to be sent.

    :raises ValueError: the part is not within the file.
    """
    if offset < 0 or (count is not None and count < 0):
        raise ValueError("offset and count must not be negative")
    opened = None
    if isinstance(file, int):
        fd = file
    elif isinstance(file, str | os.PathLike):
        opened = fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    elif hasattr(file, "fileno"):
        fd = file.fileno()
    else:
        raise TypeError(
            f"file must be a path, a binary file or a descriptor, not {type(file).__name__}"
        )
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise os_error(errno.EINVAL, "only regular files can be sent")
        left = max(0, status.st_size - offset)
        if count is not None and count > left:
            raise ValueError(f"the file has {left} bytes from offset {offset} on, not {count}")
        yield Part(fd, status, left if count is None else count, opened is not None)
    finally:
        if opened is not None:
            os.close(opened)


def read_cached(fd: int, offset: int, size: int) -> bytearray | None:
    """Read a part of a file, or return ``None`` if some of it is not in memory."""
    data = bytearray(size)
    try:
        done = os.preadv(fd, [data], offset, os.RWF_NOWAIT)
    except OSError:
        # EAGAIN, or EOPNOTSUPP: the file system cannot tell.  Another error comes again.
        return None
    return data if done == size else None


def read_part(fd: int, offset: int, size: int) -> bytes:
    """Read a part of a file; blocks.

    :raises OSError: ``EIO``, the file was truncated.
    """
    data = b""
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            raise truncated()
        data += more
    return data
