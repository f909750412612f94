"""What `docs/fit.md` says of gains is what was measured."""

from __future__ import annotations

import re

import pytest

from benchmarks.peers.peer import BACKENDS
from benchmarks.report.results import Results
from benchmarks.report.summary import JOBS, gain
from tests.support.commands import ROOT

PAGE = " ".join((ROOT / "docs" / "fit.md").read_text(encoding="utf-8").split())
RESULTS = Results.read(ROOT / "docs" / "performance" / "results")
# Rounding, and the spread of what is measured again.
TOLERANCE = 0.1
CLAIMS = {
    "1 MiB at a time 1.6x": "1 MiB after 1 MiB",
    "64 KiB from a pool 2.8x to 3.1x": "64 KiB after 64 KiB, from a pool",
    "15x to 19x to 1,000 of them": "1 KiB to each of 1,000",
    "21x to 24x to 100": "1 KiB to each of 100 connections",
    "of thousands: 0.7x to 1.3x": "1 KiB to each of 9,900, the first time",
    "a 41st of the memory": "memory for 1 MiB to 200 peers that read nothing",
    "1,400 B one by one 2x to 2.8x": "UDP, 1,400 B after 1,400 B",
    "in trains 74x to 82x": "UDP, 1,400 B after 1,400 B, in trains",
    "1 KiB 1.2x to 1.5x": "one 1 KiB by a stream's send",
    "64 KiB 1.1x to 1.35x": "one 64 KiB by a stream's send",
    "system call: 64 KiB 2.4x": "64 KiB after 64 KiB over loopback",
    "nothing: 0.9x to 1.0x": "one 1 KiB, in a group of its own",
}


@pytest.mark.parametrize(("claim", "work"), CLAIMS.items())
def test_a_claim_is_what_was_measured(claim: str, work: str) -> None:
    assert claim in PAGE
    said = [float(number) for number in re.findall(r"([\d.]+)(?:x|th|st)\b", claim)]
    (job,) = (job for job in JOBS if job.work == work)
    gains = [gain(RESULTS, job, backend) for backend in BACKENDS]
    medians = [found.median for found in gains if found is not None]
    assert len(medians) == len(BACKENDS)
    assert min(said) == pytest.approx(min(medians), rel=TOLERANCE)
    assert max(said) == pytest.approx(max(medians), rel=TOLERANCE)
