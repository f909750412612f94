"""How much memory this process can have, the page cache of what it reads included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

__all__ = ["memory_limit"]

GROUPS = Path("/proc/self/cgroup")
MOUNTED = Path("/sys/fs/cgroup")


@cache
def memory_limit() -> int:
    """Return the bytes of memory of the machine, or of a control group that has less.

    A limit that changes later is not seen.
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    # No such file, or "max": there is no limit.
    with suppress(OSError):
        for file in _limit_files():
            with suppress(OSError, ValueError):
                limits.append(int(file.read_text()))
    return min(limits)


def _limit_files() -> Iterator[Path]:
    """Yield the limits of this process's control group and those above it, of either version.

    See cgroups(7): each line is ``hierarchy:controllers:path``, without controllers in version 2.
    """
    for line in GROUPS.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, name = MOUNTED, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = MOUNTED / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        yield from (
            folder / name for folder in (group, *group.parents) if folder.is_relative_to(root)
        )
