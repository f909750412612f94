"""What may not grow: samples of a process that is at rest, and whether they do."""

from __future__ import annotations

import ctypes
import gc
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import zc_anyio

PAGE = 4096
MEMORY_GROWTH = 0.05
# A ring touches its own memory bit by bit: a mebibyte of staging, two of buffers for receiving;
# and allocators keep some.  A run of fewer samples than this cannot tell that from a leak.
MEMORY_BREATH = 4 << 20
SAMPLES_OF_A_LONG_RUN = 24
# Threads of the event loop's pool come and go, each with a stack of its own.
MAPS_AT_LEAST = 12
# trio keeps ended scopes, and drops them by the thousand.
OBJECTS_GROWTH = 0.08
# Sockets of the program's own that the ring keeps for their next send: these are more or fewer.
KNOWN_SOCKETS = 32
NATIVE = ("contexts", "sockets", "allocations", "receivers")


@dataclass(frozen=True)
class Sample:
    """A process and its ring between two rounds."""

    memory: int
    """Bytes that are resident."""
    maps: int
    descriptors: int
    objects: int
    """Objects that the garbage collector knows, of all types."""
    own: int
    """Objects of the library's types."""
    contexts: int
    sockets: int
    allocations: int
    receivers: int
    types: Counter[str] = field(default_factory=Counter, repr=False)


def descriptors() -> int:
    """How many descriptors are open, without the one that counting needs."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1


def take(ring: zc_anyio.Ring) -> Sample:
    """Look at this process, with nothing left to collect and no free memory kept."""
    while gc.collect():
        pass
    ctypes.CDLL(None).malloc_trim(0)
    types = Counter(f"{type(o).__module__}.{type(o).__qualname__}" for o in gc.get_objects())
    counters: Any = ring._native.statistics()
    return Sample(
        memory=int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * PAGE,
        maps=len(Path("/proc/self/maps").read_text(encoding="ascii").splitlines()),
        descriptors=descriptors(),
        objects=types.total(),
        own=sum(count for name, count in types.items() if name.startswith("zc_anyio.")),
        types=types,
        **{name: int(getattr(counters, name)) for name in NATIVE},
    )


def allowed(name: str, before: float, count: int) -> float:
    """The most that a value may be: of ``count`` samples, the first of which were ``before``."""
    if name == "memory":
        breath = 0 if count >= SAMPLES_OF_A_LONG_RUN else MEMORY_BREATH
        return max(before * (1 + MEMORY_GROWTH), before + breath)
    if name == "maps":
        return max(before * (1 + MEMORY_GROWTH), before + MAPS_AT_LEAST)
    if name == "objects":
        return before * (1 + OBJECTS_GROWTH)
    if name in ("own", "allocations"):
        return before + KNOWN_SOCKETS
    return before


def growth(samples: Sequence[Sample]) -> list[str]:
    """Say what has grown, of samples after the warm-up: their first third beside their last.

    Memory, maps and all objects are compared by medians, since they breathe; what is counted
    exactly may not be more in any sample of the last third than in every one of the first.
    """
    third = max(len(samples) // 3, 1)
    first, last = samples[:third], samples[-third:]
    found = []
    for name in (f.name for f in fields(Sample) if f.name != "types"):
        exact = name not in ("memory", "maps", "objects")
        early = [getattr(sample, name) for sample in first]
        late = [getattr(sample, name) for sample in last]
        before = max(early) if exact else statistics.median(early)
        after = min(late) if exact else statistics.median(late)
        if after > allowed(name, before, len(samples)):
            found.append(f"{name} grew from {before:,.0f} to {after:,.0f}")
            if name in ("objects", "own"):
                more = last[-1].types - first[0].types
                found += [f"  {kind}: {n} more" for kind, n in more.most_common(5)]
    return found
