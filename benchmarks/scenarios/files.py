"""A file over one TCP connection: again and again from the page cache, and from the disk."""

from __future__ import annotations

from benchmarks.lab.place import Place
from benchmarks.measure.rounds import Case, Round, Settings, measure_sending
from benchmarks.peers.peer import Peer
from benchmarks.scenarios.scenario import Scenario, scenario, size_name

SIZES = (4 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20, 1 << 30)


def _measure_once(peer: Peer, case: Case, place: Place, settings: Settings, _count: int) -> Round:
    """Send each file once: a file that was sent is in the page cache."""
    return measure_sending(peer, case, place, settings, 1)


scenario(
    Scenario(
        "files",
        "A file in the page cache, of",
        "file",
        tuple(Case(size_name(size), size) for size in SIZES),
        quick=("64 KiB",),
        reference="os.sendfile loop",
    )
)
scenario(
    Scenario(
        "cold-files",
        "A file that is not in the page cache, of",
        "cold file",
        tuple(Case(size_name(size), size) for size in SIZES if size > 64 << 10),
        quick=("1 MiB",),
        reference="os.sendfile loop",
        measure=_measure_once,
        once=True,
    )
)
scenario(
    Scenario(
        "file-to-many",
        "A file in the page cache, to many connections:",
        "file",
        (Case("64 MiB to 100", 64 << 20, 100),),
        quick=(),
        reference="os.sendfile loop",
        measure=_measure_once,
        once=True,
    )
)
