"""Finding something real to send."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path

# Where an ordinary system keeps large files that anybody may read and that rarely change.
USUAL_DIRECTORIES = ("/usr/lib", "/usr/lib64", "/usr/local", "/usr/bin", "/usr/share", "/opt")
SEARCH_SECONDS = 3.0


def largest_file(
    limit: int,
    directories: Iterable[str] = USUAL_DIRECTORIES,
    *,
    seconds: float = SEARCH_SECONDS,
) -> Path | None:
    """Return the largest readable regular file of at most ``limit`` bytes that was found in time.

    Symbolic links, other file systems and empty files are left out.  ``None``: there is no other.
    """
    best, best_size = None, 0
    give_up_at = time.monotonic() + seconds
    for directory in directories:
        if not Path(directory).is_dir():
            continue
        device = Path(directory).stat().st_dev
        for parent, names, files in os.walk(directory):
            if time.monotonic() > give_up_at:
                return best
            names[:] = [name for name in names if _device(Path(parent, name)) == device]
            for file in files:
                path = Path(parent, file)
                size = _size(path)
                if best_size < size <= limit and os.access(path, os.R_OK):
                    best, best_size = path, size
    return best


def _device(path: Path) -> int | None:
    try:
        return path.lstat().st_dev
    except OSError:
        return None


def _size(path: Path) -> int:
    """The size of a regular file; 0 for anything else."""
    try:
        status = path.lstat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
