"""Where memory lies, and what kind it is."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np


def address_of(view: memoryview) -> int:
    """Return where the memory of a view begins."""
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def mapping_flags(address: int) -> set[str]:
    """Return the VmFlags of the mapping that an address is in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii").splitlines():
        if bounds := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    raise LookupError("not mapped")


def maps_of(path: Path, *, or_replaced: bool = True) -> int:
    """Return how many maps of a file this process has.

    :param or_replaced: count those of files that were deleted or replaced at that path as well.
    """
    lines = Path("/proc/self/maps").read_text().splitlines()
    if or_replaced:
        lines = [line.removesuffix(" (deleted)") for line in lines]
    return sum(line.endswith(f" {path}") for line in lines)
