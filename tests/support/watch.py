"""What a test may leave behind: nothing."""

from __future__ import annotations

import gc
from contextlib import suppress
from pathlib import Path

import pytest

import zc_anyio


def descriptors() -> dict[int, str]:
    """Return the open descriptors of this process, and what each one is."""
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the listing's own
            found[int(path.name)] = str(path.readlink())
    return found


class Watch:
    """Sees every ring that is opened while it is in place, and counts descriptors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rings: list[zc_anyio.Ring] = []
        # Nothing public tells of rings that a send group opened for itself.
        made = zc_anyio.Ring.__init__

        def record(ring: zc_anyio.Ring, *args: object, **kwargs: object) -> None:
            made(ring, *args, **kwargs)  # type: ignore[arg-type]
            self.rings.append(ring)

        monkeypatch.setattr(zc_anyio.Ring, "__init__", record)
        self.before = descriptors()

    def check(self) -> None:
        """Assert that every ring ended with nothing under way, and no descriptor is left."""
        for ring in self.rings:
            with pytest.raises(RuntimeError, match="the ring is closed"):
                ring.check()
            counters = ring.statistics()
            assert (counters.queued, counters.in_flight, counters.held) == (0, 0, 0), counters
            assert counters.generations_open == 0, counters
            ends = counters.zero_copied + counters.copied + counters.staged + counters.failed
            assert counters.sends == ends, counters
        self.check_descriptors()

    def check_descriptors(self) -> None:
        """Assert that no more descriptors are open than when this began."""
        after = descriptors()
        if len(after) > len(self.before):
            gc.collect()  # an unreferenced socket closes itself, with a warning that fails the test
            after = descriptors()
        left = {number: what for number, what in after.items() if number not in self.before}
        assert len(after) <= len(self.before), f"left open: {left}"
