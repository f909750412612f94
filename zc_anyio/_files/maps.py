"""Maps of files, and those that a ring keeps.

Sending from a map that exists costs half of mapping, faulting and unmapping each piece.  The rules:

- A map is unmapped when nobody refers to it: no ring keeps it, and no send holds it.
- A ring keeps one map of a file, and uses it while size and times are those at its making.
- A ring drops what was not used for :data:`KEPT_SECONDS`, and the longest unused beyond
  :data:`KEPT_BYTES` and :data:`KEPT_FILES`.

A file that is larger than memory would push everything else out of the page cache, and gain
nothing by it: what is read of it is dropped again when it has been sent.

Maps are shared with the page cache, so a file that is written in place is never sent stale.  A map
keeps its inode in use: a file that was replaced has another one.  Nothing in this process reads a
map: past the end of a file that was truncated this would raise SIGBUS.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from contextlib import suppress
from time import monotonic
from typing import Any

import anyio
import anyio.to_thread

from .._base.errors import os_error
from .._base.loops import uninterrupted
from .._native.lib import FileMemory
from .memory_limit import memory_limit

__all__ = ["KEPT_BYTES", "KEPT_FILES", "KEPT_SECONDS", "PIECE", "FileMap", "KeptMaps", "truncated"]

# One send: small enough that a window takes several.
PIECE = 4 << 20
# Bytes of one read whose result is dropped.  Reads have the kernel read ahead as for sendfile;
# advice and faults took twice the CPU time.
SCRATCH = 128 << 10
# A map takes addresses, a descriptor, and a page table of 1/512 of what was sent of the file.
KEPT_BYTES = 4 << 30
KEPT_FILES = 64
# The space of a deleted file is free only after this.
KEPT_SECONDS = 10.0
# So many pieces at least that were read of a file that is larger than memory stay there: those that
# are being sent, and what others send that follow closely.
STAYING = 16
# For how long a piece counts as resident where the kernel does not tell.
TRUSTED_SECONDS = 1.0


class FileMap:
    """A map of a whole file.

    :ivar pointer: where the file begins; this object keeps it mapped, and the file open.
    """

    def __init__(self, fd: int, status: os.stat_result) -> None:
        """Map a file, of which this object takes the descriptor."""
        self.version = _version(status)
        self.size = status.st_size
        self.used = monotonic()
        self._fd = fd
        self._memory = FileMemory(fd, status.st_size)
        self.pointer: Any = self._memory.pointer
        self._reading = anyio.Lock()
        # To others than the owner and those who may write a file, mincore calls each page resident.
        self._is_told = status.st_uid == os.geteuid() or os.access(
            f"/proc/self/fd/{fd}", os.W_OK, effective_ids=True
        )
        self._read_at: dict[int, float] = {}
        # What was read of a file that is larger than memory, and is still there.
        self._staying: deque[tuple[int, int]] | None = None
        if self.size > memory_limit():
            self._staying = deque()

    async def read(self, offset: int, size: int) -> None:
        """Have a part of a piece read from the disk, unless it is in memory.

        A worker thread reads, once for all that ask at the same time.

        :raises OSError: ``EIO``, the file was truncated or cannot be read.
        """
        self.used = monotonic()
        if self._is_resident(offset, size):
            if self._staying and any(sum(piece) == offset for piece in self._staying):
                # The kernel has read ahead.
                await self._pass(offset, size)
            return
        async with self._reading:
            if not self._is_resident(offset, size):
                await anyio.to_thread.run_sync(self._populate, offset, size)
                self._read_at[offset // PIECE] = monotonic()
        await self._pass(offset, size)

    def _is_resident(self, offset: int, size: int) -> bool:
        if self._is_told:
            return self._memory.is_resident(offset, size)
        start = offset - offset % PIECE
        return monotonic() < self._read_at.get(start // PIECE, 0.0) + TRUSTED_SECONDS

    def _populate(self, offset: int, size: int) -> None:
        start = offset - offset % PIECE
        if not self._is_told:
            # What is noted as read is the whole piece.
            offset, size = start, min(PIECE, self.size - start)
        scratch = bytearray(min(SCRATCH, size))
        at = offset
        while at < offset + size:
            done = os.preadv(self._fd, [scratch], at)
            if not done:
                raise truncated()
            at += done
        try:
            self._memory.populate(offset, size)
        except OSError as exc:
            if self.is_cut(offset + size):
                raise truncated() from exc
            if exc.errno == errno.EFAULT:
                raise os_error(errno.EIO, "the file cannot be read") from exc
            raise

    async def _pass(self, offset: int, size: int) -> None:
        """Note a piece that was read; drop earlier ones if memory cannot have the whole file."""
        if self._staying is None:
            return
        self._staying.append((offset, size))
        if len(self._staying) >= 2 * STAYING:
            passed = [self._staying.popleft() for _ in range(STAYING)]
            await anyio.to_thread.run_sync(self._drop, passed)

    def _drop(self, pieces: list[tuple[int, int]]) -> None:
        """Drop pieces, except for pages that are being sent or that others have mapped."""
        for offset, size in pieces:
            self._read_at.pop(offset // PIECE, None)
            self._memory.leave(offset, size)
            with suppress(OSError):  # the file system takes no advice
                os.posix_fadvise(self._fd, offset, size, os.POSIX_FADV_DONTNEED)

    def is_cut(self, end: int) -> bool:
        """Whether the file by now ends before ``end``."""
        return os.fstat(self._fd).st_size < end


class KeptMaps:
    """The maps that a ring keeps, by device and inode; the one that was used last is the last."""

    def __init__(self) -> None:
        self._maps: dict[tuple[int, int], FileMap] = {}
        self._filled = anyio.Event()
        # Not cancelled with the ring's scope: what is sent meanwhile is kept no longer either.
        self._scope = anyio.CancelScope(shield=True)

    def find(self, fd: int, status: os.stat_result, *, own: bool) -> FileMap:
        """Return the map of a file.

        :param status: of the file, which is not empty.
        :param own: whether nobody else has this descriptor or a duplicate of it.
        :raises OSError: the file cannot be mapped.
        """
        key = status.st_dev, status.st_ino
        found = self._maps.pop(key, None)
        if found is None or found.version != _version(status):
            found = None
            self._make_room(status.st_size)
            duplicate, keeps = _duplicate(fd, own)
            if keeps:
                # The caller's descriptor shares nothing with it, so this is no advice about that.
                os.posix_fadvise(duplicate, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            found = FileMap(duplicate, status)
            if not keeps or status.st_size > KEPT_BYTES:
                return found
        if not self._maps:
            self._filled.set()
        self._maps[key] = found
        return found

    @uninterrupted
    async def run(self) -> None:
        """Drop what was not used for a while, for as long as the ring is open."""
        with self._scope:
            while True:
                await self._filled.wait()
                while self._maps:
                    await anyio.sleep(KEPT_SECONDS / 4)
                    if unused := self._take_unused(monotonic() - KEPT_SECONDS):
                        # Unmapping takes milliseconds for each gibibyte.
                        await anyio.to_thread.run_sync(unused.clear)
                self._filled = anyio.Event()

    def stop(self) -> None:
        """End :meth:`run`."""
        self._scope.cancel()

    def close(self) -> None:
        """Drop all maps."""
        self._maps.clear()

    def _take_unused(self, since: float) -> list[FileMap]:
        unused = [key for key, kept in self._maps.items() if kept.used < since]
        return [self._maps.pop(key) for key in unused]

    def _make_room(self, size: int) -> None:
        total = size + sum(kept.size for kept in self._maps.values())
        while self._maps and (total > KEPT_BYTES or len(self._maps) >= KEPT_FILES):
            total -= self._maps.pop(next(iter(self._maps))).size


def truncated() -> OSError:
    """Return the error for a file that became shorter than what is sent of it."""
    return os_error(errno.EIO, "the file was truncated while it was sent")


def _version(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _duplicate(fd: int, own: bool) -> tuple[int, bool]:
    """Return another descriptor of a file, and whether it may outlive the first.

    A lock of the caller's (``flock``) lasts while any duplicate of its descriptor, or a map made
    with it, exists.  So the file is opened again.
    """
    if not own:
        try:
            return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), True
        except OSError:
            # Nobody can open it by now; or there is no /proc.
            pass
    return os.dup(fd), own
