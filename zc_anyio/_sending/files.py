"""Files as buffers: the kernel reads the page cache through a map; Python reads nothing.

A map is never read here: if the file was truncated meanwhile, reading past its end would raise
SIGBUS.  When the kernel reads there, it answers EFAULT instead.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeAlias

from .._base.errors import os_error
from .._native.lib import from_buffer

__all__ = ["PIECE", "File", "Piece", "map_piece", "open_part", "truncated"]


class HasDescriptor(Protocol):
    """A binary file object."""

    def fileno(self) -> int: ...


File: TypeAlias = str | os.PathLike[str] | HasDescriptor | int

# The size of one map, which is one send: small enough that a window takes several.
PIECE = 4 << 20
# Linux 5.14; Python's mmap module has no name for it.
MADV_POPULATE_READ = 22


@contextmanager
def open_part(file: File, offset: int, count: int | None) -> Iterator[tuple[int, int]]:
    """Yield the descriptor of a file, and how many bytes from ``offset`` on have to be sent.

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
        yield fd, left if count is None else count
    finally:
        if opened is not None:
            os.close(opened)


class Piece:
    """A map of a part of a file; it is unmapped when this object and ``reference`` are gone.

    :ivar pointer: where the part begins.
    :ivar reference: an object that keeps it mapped.
    """

    def __init__(self, mapped: mmap.mmap, start: int, end: int) -> None:
        self.reference: Any = from_buffer("char[]", mapped)
        self.pointer: Any = self.reference + start
        self._mapped = mapped
        self._end = end

    def is_cut(self) -> bool:
        """Whether the file by now ends before the part does."""
        return self._mapped.size() < self._end


def map_piece(fd: int, offset: int, size: int) -> Piece:
    """Map a part of a file and have it read from the disk.

    Blocks, so it is called in a worker thread.

    :raises OSError: ``EIO``, the file was truncated.
    """
    start = offset - offset % mmap.ALLOCATIONGRANULARITY
    try:
        mapped = mmap.mmap(
            fd, offset + size - start, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=start
        )
    except ValueError as exc:
        raise truncated() from exc
    try:
        mapped.madvise(MADV_POPULATE_READ)
    except OSError as exc:
        if exc.errno == errno.EFAULT:
            raise truncated() from exc
        with suppress(OSError):
            mapped.madvise(mmap.MADV_WILLNEED)
    return Piece(mapped, offset - start, offset + size)


def truncated() -> OSError:
    """Return the error for a file that became shorter than what is sent of it."""
    return os_error(errno.EIO, "the file was truncated while it was sent")
